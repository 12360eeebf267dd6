"""Answers that are saved batch by batch, so that a killed evaluation continues.

The request cache of lm-evaluation-harness 0.4.13 (`use_cache`) keeps single answers in pickles; after a kill it computes the
rest in other batches, whose last bits may differ.
"""

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm_eval.api.model import LM

from lonas_edge.errors import LonasEdgeError
from lonas_edge.evaluate.results import SkippedSample
from lonas_edge.evaluate.targets import Target
from lonas_edge.files import json_sha256

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance

FILE = "answers.jsonl"


class AnswerLog:
    """A file of answered batches, one a line: {"batch": hash of target and requests, "answers": […]}.

    Attributes:
        answers: Answers by the hash.
    """

    def __init__(self, path: Path | None = None):
        """Read the file if it exists; without a path the answers stay in memory."""
        self._path, self.answers = path, dict[str, list[Any]]()
        for line in path.read_bytes().splitlines() if path and path.exists() else ():
            try:
                entry = json.loads(line)
            except ValueError:  # a kill cut it
                continue
            self.answers[entry["batch"]] = entry["answers"]

    def add(self, batch: str, answers: list[Any]) -> None:
        """Save the answers of a batch."""
        self.answers[batch] = answers
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
        self.target, self._log, self._identity = target, log, json_sha256(target.identity)
        self._model: Any = None
        self.answered, self.seconds = 0, 0.0

    def answers(self, requests: list[Any], prompts: int, run: Callable[[Any], list[Any]]) -> list[Any]:
        """Return the answers of a batch, saved or new.

        Args:
            requests: Everything except the target that the answers depend on, as JSON.
            prompts: Number of prompts.
            run: Computes the answers with the loaded model.
        """
        batch = json_sha256([self._identity, requests])
        if batch in self._log.answers:
            return self._log.answers[batch]
        self._model = self._model or self.target.load()
        start = time.perf_counter()
        answers = run(self._model)
        self.seconds += time.perf_counter() - start
        self.answered += prompts
        self._log.add(batch, answers)
        return answers


class BatchedLM(LM):  # type: ignore[misc]
    """A model for the harness: requests reach the target in batches that depend only on the task and the batch size."""

    def __init__(self, logged: LoggedTarget, progress: Callable[[str, float], None], special: bool = True):
        """Wrap a target; `progress` receives the task's name in the harness, and the share that is done.

        Without `special`, the prompts have their special tokens, and the tokenizer adds none.
        """
        super().__init__()
        self._logged, self._progress, self._special = logged, progress, special

    def loglikelihood(self, requests: "list[Instance]") -> list[tuple[float, bool]]:
        """See `LM`."""
        return [tuple(answer) for answer in self._answers("loglikelihood", requests)]  # saved ones are lists

    def loglikelihood_rolling(self, requests: "list[Instance]") -> list[float]:
        """See `LM`."""
        return self._answers("loglikelihood_rolling", requests)

    def generate_until(self, requests: "list[Instance]") -> list[str]:
        """See `LM`."""
        return self._answers("generate_until", requests)

    def _answers(self, kind: str, requests: "list[Instance]") -> list[Any]:
        answers: dict[int, Any] = {}
        for batch in _batches(requests, self._logged.target.batch_size):
            chosen = [requests[index] for index in batch]
            self._progress(chosen[0].task_name or kind, len(answers) / len(requests))
            asked, prompts = [kind, *(request.args for request in chosen)], len({request.args[0] for request in chosen})
            asked += [] if self._special else ["no special tokens"]
            answers |= zip(batch, self._logged.answers(asked, prompts, partial(run, kind, chosen, self._special)), strict=True)
        return [answers[index] for index in range(len(requests))]


def run(kind: str, requests: "list[Instance]", special: bool, model: Any) -> list[Any]:
    """Call a method of a harness's model, whose tokenizer adds special tokens or none; log-likelihoods are checked."""
    if not special:
        model.add_bos_token = False
    answers: list[Any] = getattr(model, kind)(requests, disable_tqdm=True)
    values = [answer[0] if isinstance(answer, tuple) else answer for answer in answers if not isinstance(answer, str)]
    if any(math.isnan(value) for value in values):  # the first option would look like the most likely one
        raise LonasEdgeError(
            f"{requests[0].task_name}: log-likelihoods are not numbers; is the model damaged, or does fp16 overflow?"
        )
    return answers


def _batches(requests: "Sequence[Instance]", size: int) -> Iterator[list[int]]:
    """Yield indices of requests, task by task, the longest prompts first, those of one prompt together."""

    def prompt(index: int) -> tuple[str, int, str]:
        request = requests[index]
        return request.task_name or "", -len(request.args[0]), request.args[0]

    for _, indices in groupby(sorted(range(len(requests)), key=prompt), lambda index: requests[index].task_name):
        by_prompt = [list(part) for _, part in groupby(indices, prompt)]
        for start in range(0, len(by_prompt), size):
            yield [index for part in by_prompt[start : start + size] for index in part]


def skip_too_long(target: Target, task: str, lengths: Mapping[int, int]) -> tuple[list[int], tuple[SkippedSample, ...]]:
    """Return the samples that fit the context, and those that are skipped: nothing is cut.

    `lengths` has the tokens of each chosen sample, with its answer.

    Raises:
        LonasEdgeError: If none fits.
    """
    limit = target.max_length
    skipped = tuple(SkippedSample(task, index, tokens, limit) for index, tokens in lengths.items() if tokens > limit)
    if len(skipped) == len(lengths):
        raise LonasEdgeError(f"{target.name}: no prompt fits the context of {limit} tokens (by config.json) in {task}")
    return [index for index, tokens in lengths.items() if tokens <= limit], skipped
