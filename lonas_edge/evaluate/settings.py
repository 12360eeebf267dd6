"""Settings of an evaluation: tasks, protocol, prompt and samples."""

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lonas_edge.evaluate.protocols import CLASSIFY, Encode, Protocol


@dataclass(frozen=True)
class EvalSettings:
    """Tasks, protocol and choice of samples.

    Attributes:
        tasks: Tasks of the protocol, or of lm-evaluation-harness; of classifiers GLUE's; of embedding models STS-B or names of
            retrieval data; of rerankers names of reranking data.
        datasets: Directory of the test sets; only the harness's own tasks need none.
        protocol: The protocol.
        prompt: Name of the prompt; each target's own when None.
        num_beams: Beams of a protocol that generates; its own number when None.
        limit: Samples of each task, a seeded choice; all when None.
        seed: Seed of that choice.
    """

    tasks: tuple[str, ...]
    datasets: Path | None
    protocol: Protocol | Encode = CLASSIFY
    prompt: str | None = None
    num_beams: int | None = None
    limit: int | None = None
    seed: int = 0

    @property
    def beams(self) -> int | None:
        """Beams; None where nothing is generated."""
        return self.num_beams or self.protocol.num_beams

    @property
    def identity(self) -> dict[str, Any]:
        """Everything except the targets that answers depend on."""
        names = {"tasks": list(self.tasks), "protocol": self.protocol.name, "prompt": self.prompt, "num_beams": self.beams}
        return {**names, "limit": self.limit, "seed": self.seed}

    def chosen(self, task: str, count: int) -> list[int]:
        """Choose indices of a task's samples, by the seed and the task's name alone."""
        if self.limit is None or self.limit >= count:
            return list(range(count))
        return sorted(random.Random(f"{self.seed}/{task}").sample(range(count), self.limit))
