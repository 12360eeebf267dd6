"""Result of the least-squares reconstruction of a sub-network: a dense change of its active base weights."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from lonas_edge.network.checkpoints import read_damaged, stored_shapes
from lonas_edge.space.elasticity import Widths

FILE = "correction.safetensors"


class StoredDeltas(Mapping[str, torch.Tensor]):
    """Changes of layers by module path in safetensors files, mapped when they are read."""

    def __init__(self, files: Iterable[Path]):
        """Read the names in the files, which must stay in place."""
        self._files = {name: file for file in files for name in stored_shapes(file)}

    def __getitem__(self, name: str) -> torch.Tensor:
        file = self._files[name]
        with read_damaged(file), safe_open(file, "pt") as opened:
            delta: torch.Tensor = opened.get_tensor(name)
        return delta

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)


@dataclass(frozen=True)
class Correction:
    """Changes of some base weights, in the super-network's channel order; possibly none.

    Attributes:
        deltas: By module path, fp32 [active rows, active columns].
    """

    deltas: Mapping[str, torch.Tensor] = field(default_factory=dict)

    def __bool__(self) -> bool:
        """Whether anything changes."""
        return bool(self.deltas)

    def of(self, name: str) -> torch.Tensor | None:
        """The change of a parameter's active part, or None."""
        layer, _, leaf = name.rpartition(".")
        return self.deltas.get(layer) if leaf == "weight" else None

    def onto(self, name: str, weight: torch.Tensor, widths: Mapping[str, Widths]) -> torch.Tensor:
        """Add the change to the active part of a whole weight [out, in] in the super-network's channel order.

        Returns a copy in float64; the weight itself without a change.
        """
        delta = self.of(name)
        if delta is None:
            return weight
        active = widths[name.removesuffix(".weight")]
        changed, row = weight.to(torch.float64, copy=True), 0
        for top, bottom in active.rows:
            column = 0
            for left, right in active.columns:
                changed[top:bottom, left:right] += delta[row : row + bottom - top, column : column + right - left]
                column += right - left
            row += bottom - top
        return changed

    def save(self, folder: Path) -> None:
        """Write `correction.safetensors` into a directory."""
        partial = folder / f"{FILE}.incomplete"
        save_file({name: delta.contiguous() for name, delta in self.deltas.items()}, partial)
        partial.replace(folder / FILE)


NO_CORRECTION = Correction()
