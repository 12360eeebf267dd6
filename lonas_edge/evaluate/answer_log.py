"""Answers on disk as soon as they are there, so that a run which was killed goes on where it was.

lm-evaluation-harness 0.4.13 has a request cache too (`use_cache`). It is not used: it keeps single answers in pickles, and what
is left after a kill is then computed in other batches than it would have been, whose last bits may differ.
"""

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout
from lm_eval.api.model import LM

from lonas_edge.errors import LonasEdgeError
from lonas_edge.files import regular

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance

Progress = Callable[[str, float | None], None]
Told = Callable[[str, float, float | None], None]  # the task, the share of all work that is done, prompts a second


class AnswerLog:
    """A file of answered batches, one a line: {"batch": hash of its requests, "answers": […], "check": hash of the line}.

    A line is written and synced as a whole. One that is not as it was written counts for nothing, and its batch is asked again:
    cut short by a kill, damaged, of another model's log (the file's name is in the hash), or of a version before.
    """

    def __init__(self, path: Path, identity: dict[str, Any], fresh: bool = False):
        """Open or begin the file, and hold it until `close`.

        Args:
            path: The file; its name says what the answers depend on.
            identity: The same, to be read by people; kept in the first line.
            fresh: Whether the answers that are there are left alone; what is asked then is added and counts from then on.

        Raises:
            LonasEdgeError: If another process holds it, it is no file, or it cannot be written.
        """
        self._path, self._file = path, -1
        self._lock = FileLock(path.with_name(f"{path.name}.lock"), blocking=False)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._lock.acquire()
            begun = self._open()
            kept = dict(self._entries()) if begun and not fresh else {}
        except Timeout:
            raise LonasEdgeError(f"{path}: another evaluation of the same model is running; wait for it") from None
        except (OSError, LonasEdgeError) as error:
            self.close()
            raise LonasEdgeError(f"{path}: finished answers cannot be kept there: {error}") from error
        self.batches: dict[str, list[Any]] = kept
        if not begun:
            self._write({"identity": identity})

    def _open(self) -> int:
        """Open it and cut off a last line that is not whole. Returns the bytes that are there."""
        if self._path.is_symlink():
            raise LonasEdgeError("it is a link, and what it leads to is not written to; remove it")
        if self._path.exists():
            regular(self._path, "the answer log")  # a pipe would be waited for
        # a descriptor: a buffer that could not be written would be written again when it is closed
        self._file = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666)
        size = os.fstat(self._file).st_size
        whole = _end_of_last_line(self._path) if size else 0
        if whole < size:
            os.ftruncate(self._file, whole)
        return whole

    def _entries(self) -> Iterator[tuple[str, list[Any]]]:
        """The answers that are there."""
        with self._path.open("rb") as file:
            for line in file:
                yield from self._entry(line)

    def _entry(self, line: bytes) -> Iterator[tuple[str, list[Any]]]:
        """A line's batch and answers; nothing of a line that is not as it was written."""
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            return
        if not isinstance(entry, dict) or entry.keys() != {"batch", "answers", "check"}:
            return
        if entry["check"] == self._check(entry["batch"], entry["answers"]):
            yield entry["batch"], entry["answers"]

    def _check(self, batch: Any, answers: Any) -> str:
        return hashlib.sha256(json.dumps([self._path.stem, batch, answers]).encode()).hexdigest()[:16]

    def add(self, batch: str, answers: list[Any]) -> None:
        """Keep a batch's answers.

        Args:
            batch: Its hash.
            answers: One for each request, as JSON can hold them.
        """
        self._write({"batch": batch, "answers": answers, "check": self._check(batch, answers)})
        self.batches[batch] = answers

    def close(self) -> None:
        """Let the file go. Its lock file stays, and locks nothing."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
        self._lock.release()

    def _write(self, entry: dict[str, Any]) -> None:
        left = memoryview(json.dumps(entry).encode() + b"\n")
        try:
            while left:
                left = left[os.write(self._file, left) :]
            os.fsync(self._file)
        except OSError as error:
            self.close()
            raise LonasEdgeError(f"{self._path}: the answers so far are kept, but no more: {error}") from error


def _end_of_last_line(path: Path) -> int:
    with path.open("rb") as file:
        return sum(len(line) for line in file if line.endswith(b"\n"))


class ResumingLM(LM):  # type: ignore[misc]
    """A model whose answers are kept: requests reach it in batches that depend on nothing but the task and the batch size."""

    def __init__(self, load: Callable[[], LM], log: AnswerLog, batch_size: int, report: Told):
        """Wrap a model.

        Args:
            load: Loads it; called when the first batch without an answer is met.
            log: Where the answers are kept.
            batch_size: Prompts of a batch.
            report: Told of the progress.
        """
        super().__init__()
        self._load, self._log, self._batch_size, self._report = load, log, batch_size, report
        self._model: LM | None = None
        self.asked = 0  # prompts that the model answered in this run
        self.seconds = 0.0  # that it took, loading not counted

    def loglikelihood(self, requests: "list[Instance]") -> list[tuple[float, bool]]:
        """See `LM`."""
        return [(value, greedy) for value, greedy in self._answers("loglikelihood", requests)]

    def loglikelihood_rolling(self, requests: "list[Instance]") -> list[float]:
        """See `LM`."""
        return self._answers("loglikelihood_rolling", requests)

    def generate_until(self, requests: "list[Instance]") -> list[str]:
        """See `LM`."""
        return self._answers("generate_until", requests)

    def _answers(self, kind: str, requests: "list[Instance]") -> list[Any]:
        batches = list(_batches(requests, self._batch_size))
        work = [
            sum(len(text) for place in batch for text in requests[place].args if isinstance(text, str)) for batch in batches
        ]
        found: list[Any] = [None] * len(requests)
        done, total = 0, sum(work) or 1
        for batch, share in zip(batches, work, strict=True):
            rate = self.asked / self.seconds if self.asked else None
            self._report(requests[batch[0]].task_name or kind, done / total, rate)
            key = _hash(kind, [requests[place] for place in batch])
            answers = self._log.batches.get(key)
            if answers is None or len(answers) != len(batch):
                self._model = self._model or self._load()
                start = time.perf_counter()
                answers = getattr(self._model, kind)([requests[place] for place in batch], disable_tqdm=True)
                self._log.add(key, answers)
                self.seconds += time.perf_counter() - start
                self.asked += len({requests[place].args[0] for place in batch})
            for place, answer in zip(batch, answers, strict=True):
                found[place] = answer
            done += share
        return found


def _batches(requests: "Sequence[Instance]", size: int) -> Iterator[list[int]]:
    """Places of requests, task by task, the longest prompts first, those of one prompt together."""
    order = sorted(range(len(requests)), key=lambda place: _rank(requests[place], place))
    batch: list[int] = []
    prompts: set[tuple[str | None, str]] = set()
    for place in order:
        prompt = (requests[place].task_name, requests[place].args[0])
        if batch and (requests[batch[0]].task_name != prompt[0] or (len(prompts) == size and prompt not in prompts)):
            yield batch
            batch, prompts = [], set()
        batch.append(place)
        prompts.add(prompt)
    if batch:
        yield batch


def _rank(request: "Instance", place: int) -> tuple[str, int, str, int]:
    return request.task_name or "", -len(request.args[0]), request.args[0], place


def _hash(kind: str, requests: "Sequence[Instance]") -> str:
    text = json.dumps([kind, *(request.args for request in requests)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
