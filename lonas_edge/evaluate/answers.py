"""Answers that are saved batch by batch, so that a killed evaluation continues.

The request cache of lm-evaluation-harness 0.4.13 (`use_cache`) keeps single answers in pickles; after a kill it computes the
rest in other batches, whose last bits may differ.
"""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lonas_edge.errors import LonasEdgeError
from lonas_edge.evaluate.targets import Target
from lonas_edge.files import json_sha256

FILE = "answers.jsonl"


class AnswerLog:
    """A file of answered batches, one a line: {"batch": hash of target and requests, "answers": […]}."""

    def __init__(self, path: Path | None = None):
        """Read the file if it exists; without a path the answers stay in memory."""
        self._path, self._answers = path, dict[str, list[Any]]()
        for line in path.read_bytes().splitlines() if path and path.exists() else ():
            try:
                entry = json.loads(line)
            except ValueError:  # a kill cut it
                continue
            self._answers[entry["batch"]] = entry["answers"]

    def get(self, batch: str) -> list[Any] | None:
        """Look up the answers of a batch; None where there are none."""
        return self._answers.get(batch)

    def add(self, batch: str, answers: list[Any]) -> None:
        """Save the answers of a batch."""
        self._answers[batch] = answers
        if self._path is None:
            return
        try:
            with self._path.open("ab") as file:  # the line break first: the line before may be cut
                file.write(f"\n{json.dumps({'batch': batch, 'answers': answers})}".encode())
        except OSError as error:
            raise LonasEdgeError(f"{self._path}: cannot be written: {error}") from error


class LoggedTarget:
    """A target whose answers are saved; it is loaded for the first batch without saved answers.

    Attributes:
        target: The target.
        answered: Prompts that it answered in this run.
        seconds: Time for those, without loading.
    """

    def __init__(self, target: Target, log: AnswerLog):
        """Remember the target; nothing is loaded yet."""
        self.target, self._log = target, log
        self._model: Any = None
        self.answered, self.seconds = 0, 0.0

    def answers(self, requests: list[Any], prompts: int, run: Callable[[Any], list[Any]]) -> list[Any]:
        """Return the answers of a batch, saved or new.

        Args:
            requests: Everything except the target that the answers depend on, as JSON.
            prompts: Number of prompts.
            run: Computes the answers with the loaded model.
        """
        batch = json_sha256([self.target.name, requests])
        saved = self._log.get(batch)
        if saved is not None:
            return saved
        self._model = self._model or self.target.load()
        start = time.perf_counter()
        answers = run(self._model)
        self.seconds += time.perf_counter() - start
        self.answered += prompts
        self._log.add(batch, answers)
        return answers
