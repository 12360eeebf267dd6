"""A sub-network that is solved before it is trained further: its change of the base is found once, kept, and trained on."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from safetensors import safe_open

from lonas_edge.exporting.solved import Texts, read_texts, solve_model
from lonas_edge.network.correction import FILE, Correction, read_correction
from lonas_edge.network.materialize import MaterializedModel
from lonas_edge.network.solved import Solved
from lonas_edge.training.inputs import Start
from lonas_edge.training.plan import Solve
from lonas_edge.training.working import SOLVING

_SOLVED = "solved"  # in the file's metadata: what solving gave


@dataclass(frozen=True)
class Solving:
    """A sub-network that is to be solved, and the prompts; no weights are computed with yet."""

    model: MaterializedModel
    texts: Texts
    tokenizer: Any

    @classmethod
    def of(cls, start: Start, tokenizer: Any, solve: Solve) -> "Solving":
        """Read the prompts.

        Args:
            start: The super-adapter and the sub-network.
            tokenizer: The base's.
            solve: What to solve on.

        Returns:
            What is to be solved.

        Raises:
            LonasEdgeError: If the sub-network cuts nothing that can be solved, or there is too little data.
        """
        model = MaterializedModel(start.source, start.subnetwork)
        return cls(model, read_texts(model, tokenizer, Path(solve.data), solve.prompts), tokenizer)

    def solved(self, folder: Path, tell: Callable[[str], None]) -> None:
        """Solve it, unless that has been done, and keep what it gave in a training's working directory.

        Args:
            folder: The working directory.
            tell: Called with what is being done.

        Raises:
            LonasEdgeError: If what a layer is given is not finite.
        """
        if (folder / FILE).exists():
            return
        tell("Solving what is cut")
        with TemporaryDirectory(dir=folder, prefix=SOLVING, ignore_cleanup_errors=True) as scratch:
            model, found = solve_model(self.model, self.texts, self.tokenizer, Path(scratch), lambda _share: None)
            model.correction.save(folder, {_SOLVED: json.dumps(asdict(found))})


def kept(folder: Path, start: Start) -> tuple[Correction, Solved]:
    """What solving gave, from a training's working directory.

    Args:
        folder: The working directory.
        start: The super-adapter and the sub-network.

    Returns:
        The change of the base, none where it was no better, and its record.

    Raises:
        LonasEdgeError: If the file is damaged.
    """
    correction = read_correction(folder / FILE, start.subnetwork)
    with safe_open(folder / FILE, "pt") as file:
        return correction, Solved(**json.loads(file.metadata()[_SOLVED]))
