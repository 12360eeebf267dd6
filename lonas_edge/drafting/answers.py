"""The answers that a draft learns: the model's own greedy ones, because it has to predict this model, not the references."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import openvino as ov

from lonas_edge.evaluate.answers import AnswerLog
from lonas_edge.evaluate.backends import batching_pipeline
from lonas_edge.exporting.answering import Prompts, Tokens, greedy
from lonas_edge.files import json_sha256
from lonas_edge.ir.core import compiling
from lonas_edge.progress import Progress

_BATCH = 64  # prompts, what a kill may cost


@dataclass(frozen=True)
class Answered:
    """A prompt and the model's answer. It ends with the token that ends a text, unless it was cut at the limit."""

    prompt: Tokens
    answer: Tokens
    cut: bool


def generate_answers(folder: Path, prompts: Prompts, log: Path, progress: Progress) -> list[Answered]:
    """Answer all prompts with continuous batching; answers in the file `log` are not generated again."""
    saved, pipeline, answers, config = AnswerLog(log), None, list[list[int]](), greedy(folder, prompts.limit)
    for start in range(0, len(prompts.tokens), _BATCH):
        progress("Answering the prompts", start / len(prompts.tokens))
        batch = prompts.tokens[start : start + _BATCH]
        key = json_sha256([prompts.limit, batch])
        if key not in saved.answers:
            with compiling(folder, "CPU", {}):
                pipeline = pipeline or batching_pipeline(folder, "CPU", {})
            inputs = [ov.Tensor(np.array([tokens], np.int64)) for tokens in batch]
            results = pipeline.generate(inputs, [config] * len(inputs))
            saved.add(key, [list(map(int, result.m_generation_ids[0])) for result in results])
        answers += saved.answers[key]
    pairs = zip(prompts.tokens, map(tuple, answers), strict=True)
    return [Answered(prompt, answer, not config.stop_token_ids & set(answer)) for prompt, answer in pairs]
