"""What solving gives back to a sub-network: a dense change of base weights, on the parts that are active."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from lonas_edge.errors import raise_all
from lonas_edge.files import regular
from lonas_edge.network.checkpoints import number_fault, read_damaged, stored_shapes
from lonas_edge.space.elasticity import Widths
from lonas_edge.space.subnetwork import Subnetwork

FILE = "correction.safetensors"


class StoredDeltas(Mapping[str, torch.Tensor]):
    """Changes of layers, by module path, that lie in files: mapped when they are asked for, not kept."""

    def __init__(self, files: Iterable[Path]):
        """Look up what is in the files.

        Args:
            files: safetensors files, which stay where they are.

        Raises:
            LonasEdgeError: If one is missing or damaged.
        """
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
    """Changes of the base weights of some layers, in the super-network's channel order; none changes nothing.

    Attributes:
        deltas: By module path, fp32 [active rows, active columns].
    """

    deltas: Mapping[str, torch.Tensor] = field(default_factory=dict)

    def __bool__(self) -> bool:
        """Whether anything is changed."""
        return bool(self.deltas)

    def of(self, name: str) -> torch.Tensor | None:
        """The change of a parameter's active part; None where there is none."""
        layer, _, leaf = name.rpartition(".")
        return self.deltas.get(layer) if leaf == "weight" else None

    def onto(self, name: str, weight: torch.Tensor, widths: Mapping[str, Widths]) -> torch.Tensor:
        """Change a whole weight, what is active of it.

        Args:
            name: The parameter's name in the base.
            weight: [out, in], in the super-network's channel order; not changed.
            widths: The active part of each layer.

        Returns:
            The weight in float64; itself where there is no change.
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

    def apply_to_model(self, base: Any, widths: Mapping[str, Widths]) -> None:
        """Change the base weights of a live model, in place, what is active of them.

        Args:
            base: The Hugging Face model, with what PEFT put into it, its channels in the super-network's order.
            widths: The active part of each layer.
        """
        for name in self.deltas:
            layer = base.get_submodule(name)
            weight = getattr(layer, "base_layer", layer).weight
            weight.data = self.onto(f"{name}.weight", weight.data, widths).to(weight.dtype)

    def save(self, folder: Path, metadata: Mapping[str, str] | None = None) -> None:
        """Write `correction.safetensors`.

        Args:
            folder: An existing directory.
            metadata: What the file says beside the changes.
        """
        partial = folder / f"{FILE}.incomplete"
        save_file({name: delta.contiguous() for name, delta in self.deltas.items()}, partial, dict(metadata or {}))
        partial.replace(folder / FILE)


def read_correction(path: Path, subnetwork: Subnetwork) -> Correction:
    """Read what solving changed in a sub-network.

    Args:
        path: The file.
        subnetwork: The sub-network that it must fit.

    Returns:
        The changes.

    Raises:
        LonasEdgeError: If the file is missing or damaged, or is another sub-network's; every misfit is listed.
    """
    regular(path, "what solving changed in the base")
    deltas = StoredDeltas([path])
    widths, problems = subnetwork.linears, []
    for name, delta in deltas.items():
        wanted = (widths[name].out_features, widths[name].in_features) if name in widths else None
        if wanted is None:
            problems.append(f"{name}: the model has no such layer")
        elif delta.dtype != torch.float32 or tuple(delta.shape) != wanted:
            problems.append(f"{name}: expected torch.float32 {list(wanted)}, found {delta.dtype} {list(delta.shape)}")
        elif fault := number_fault(delta):
            problems.append(f"{name}: {fault}")
    raise_all(f"{path}: not the change of this sub-network:", problems, "Copy the adapter again, whole.")
    return Correction(deltas)
