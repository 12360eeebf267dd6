"""Display the steps of an export, and measure their seconds and memory."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from lonas_edge.exporting.manifest import Step
from lonas_edge.processes import peak_memory
from lonas_edge.progress import Progress


@dataclass
class Steps:
    """The steps so far: seconds of each, and the largest resident memory of this process up to its end."""

    report: Progress
    taken: dict[str, Step] = field(default_factory=dict)

    @contextmanager
    def step(self, name: str, shown: str) -> Iterator[Callable[[float], None]]:
        """Measure a step while the block runs, and yield a function that takes the share done."""
        self.report(shown, None)
        start = time.perf_counter()
        yield lambda done: self.report(shown, done)
        self.taken[name] = Step(round(time.perf_counter() - start, 3), peak_memory())
