"""What solving gives back to a sub-network: a dense change of base weights, on the parts that are active."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import save_file

from lonas_edge.space.elasticity import Widths

FILE = "correction.safetensors"


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
        rows, columns = (torch.cat([torch.arange(*range_) for range_ in part]) for part in (active.rows, active.columns))
        changed = weight.to(torch.float64, copy=True)
        changed[rows[:, None], columns] += delta
        return changed

    def save(self, folder: Path) -> None:
        """Write `correction.safetensors`.

        Args:
            folder: An existing directory.
        """
        save_file({name: delta.contiguous() for name, delta in self.deltas.items()}, folder / FILE)
