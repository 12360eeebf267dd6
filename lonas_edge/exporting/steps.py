"""The steps of an export: what is shown while they go on, and what they took."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from lonas_edge.exporting.manifest import Step
from lonas_edge.processes import peak_memory
from lonas_edge.progress import Progress


@dataclass
class Steps:
    """The steps so far: seconds of each, and the largest resident memory of this process by the end of it."""

    report: Progress
    taken: dict[str, Step] = field(default_factory=dict)

    @contextmanager
    def step(self, name: str, shown: str) -> Iterator[Callable[[float], None]]:
        """Measure a step while the block runs.

        Args:
            name: What it is called in the manifest.
            shown: What people read meanwhile.

        Yields:
            To be called with the share done.
        """
        self.report(shown, None)
        start = time.perf_counter()
        yield lambda done: self.report(shown, done)
        self.taken[name] = Step(round(time.perf_counter() - start, 3), peak_memory())
