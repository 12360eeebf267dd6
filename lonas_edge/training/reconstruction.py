"""Least-squares reconstruction of a sub-network before it is trained further: computed once, kept, and trained on."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from safetensors import safe_open

from lonas_edge.exporting.reconstruction import ReconstructionPrompts, read_reconstruction_prompts, reconstruct_model
from lonas_edge.network.correction import FILE, Correction, read_correction
from lonas_edge.network.materialize import MaterializedModel
from lonas_edge.network.training_record import Reconstruction
from lonas_edge.training.inputs import Start
from lonas_edge.training.options import SolveOptions
from lonas_edge.training.working import SOLVING

_SOLVED = "reconstruction"  # key of the result in the file's metadata


@dataclass(frozen=True)
class Solving:
    """A sub-network and the prompts to reconstruct it on; no weights are read yet."""

    model: MaterializedModel
    prompts: ReconstructionPrompts
    tokenizer: Any

    @classmethod
    def of(cls, start: Start, tokenizer: Any, solve: SolveOptions) -> "Solving":
        """Read the prompts.

        Raises:
            LonasEdgeError: If the sub-network has nothing to reconstruct, or there is too little data.
        """
        model = MaterializedModel(start.source, start.subnetwork)
        return cls(model, read_reconstruction_prompts(model, tokenizer, Path(solve.data), solve.prompts), tokenizer)

    def run(self, folder: Path, tell: Callable[[str], None]) -> None:
        """Compute the correction, unless it is in the working directory already, and keep it there."""
        if (folder / FILE).exists():
            return
        tell("Least-squares reconstruction")
        with TemporaryDirectory(dir=folder, prefix=SOLVING, ignore_cleanup_errors=True) as scratch:
            model, solved = reconstruct_model(self.model, self.prompts, self.tokenizer, Path(scratch), lambda _share: None)
            model.correction.save(folder, {_SOLVED: json.dumps(asdict(solved))})


def reconstructed_correction(folder: Path, start: Start) -> tuple[Correction, Reconstruction]:
    """Read the kept correction and its record; the correction is empty where it was no better.

    Raises:
        LonasEdgeError: If the file is damaged.
    """
    correction = read_correction(folder / FILE, start.subnetwork)
    with safe_open(folder / FILE, "pt") as file:
        return correction, Reconstruction(**json.loads(file.metadata()[_SOLVED]))
