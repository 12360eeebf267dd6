"""The steps of an export: what is shown while they go on, and what they took."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from lonas_edge.exporting.manifest import Step

Progress = Callable[[str, float | None], None]  # the step, and the share of it that is done, where known


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
        self.taken[name] = Step(round(time.perf_counter() - start, 3), peak_memory() or 0)


def peak_memory(children: bool = False) -> int | None:
    """The largest resident memory so far.

    Args:
        children: Whether of the child processes that have ended, the largest one's, instead of this process.

    Returns:
        Bytes; None for children where the system does not keep it (Windows).
    """
    if sys.platform == "win32":
        import psutil

        return None if children else int(psutil.Process().memory_info().peak_wset)
    import resource

    who = resource.RUSAGE_CHILDREN if children else resource.RUSAGE_SELF
    return resource.getrusage(who).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
