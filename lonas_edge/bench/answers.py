"""Time greedy answers to real prompts, one at a time, with or without a draft model."""

import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from lonas_edge.exporting.answering import Tokens, greedy
from lonas_edge.exporting.drafts import PRECISION, Draft
from lonas_edge.ir.core import compiling
from lonas_edge.progress import Progress

Name = TypeVar("Name")


@dataclass(frozen=True)
class Answer:
    """A generated answer, its time to the first token and in all, in ms, and the passes of the model."""

    tokens: Tokens
    first: float
    total: float
    passes: int

    @property
    def tpot(self) -> float:
        """Time per output token after the first; of a single token the time in all."""
        return (self.total - self.first) / (len(self.tokens) - 1) if len(self.tokens) > 1 else self.total


class Answerer:
    """An IR in `openvino_genai.LLMPipeline`, without a cache of prompts, which would speed up those that occur twice."""

    def __init__(self, folder: Path, limit: int, draft: Draft | None = None, precision: str | None = None):
        """Compile the IR, and the draft model if any; answers have at most `limit` tokens.

        `precision` is that of a model without a draft; a draft has its own.
        """
        import openvino_genai

        scheduler = openvino_genai.SchedulerConfig()
        scheduler.enable_prefix_caching = False
        scheduler.max_num_batched_tokens = 2**31  # LLMPipeline's default: the prompt in one pass
        self._draft, self._config = draft, greedy(folder, limit)
        with compiling(draft.folder if draft else folder, "CPU", {}):
            options = draft.options("CPU") if draft else {PRECISION: precision} if precision else {}
            self._pipeline = openvino_genai.LLMPipeline(folder, "CPU", scheduler_config=scheduler, **options)

    def answer(self, prompt: Sequence[int], proposed: int | None = None) -> Answer:
        """Answer a prompt; the draft proposes its own number of tokens, or `proposed`."""
        import openvino as ov
        import openvino_genai

        if self._draft:
            self._config.num_assistant_tokens = proposed or self._draft.num_assistant_tokens
        ids = np.array([prompt], np.int64)
        inputs = openvino_genai.TokenizedInputs(ov.Tensor(ids), ov.Tensor(np.ones_like(ids)))
        start = time.perf_counter()
        result = self._pipeline.generate(inputs, self._config)
        total = 1000 * (time.perf_counter() - start)
        tokens, details = tuple(map(int, result.tokens[0])), result.extended_perf_metrics
        passes = len(details.main_model_metrics.raw_metrics.m_durations) if details else len(tokens)
        return Answer(tokens, result.perf_metrics.raw_metrics.m_times_to_first_token[0] / 1000, total, passes)


def time_answers(
    answerers: Mapping[Name, Callable[[Any], Answer]], prompts: Sequence[Any], progress: Progress
) -> dict[Name, list[Answer]]:
    """Let all answer each prompt, in a random order; the first prompt also warms up."""
    timed: dict[Name, list[Answer]] = {name: [] for name in answerers}
    for index, prompt in enumerate([prompts[0], *prompts]):
        progress("Timing answers", index / (len(prompts) + 1))
        for name in random.Random(index).sample(list(answerers), len(answerers)):
            answer = answerers[name](prompt)
            timed[name] += [answer] * bool(index)
    return timed
