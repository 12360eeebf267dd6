"""Accuracy by the `option-text` protocol: which option's text does the model find most likely after the question?

Options are ranked after "Question: Q", a new line and "Answer:", by log-likelihood (acc) and by log-likelihood per byte of the
option (acc_norm), as in lm-evaluation-harness; BoolQ ranks " true" and " false". The answer loss is the mean negative
log-likelihood of the right option, in nats. A question and its options are one sequence: an option sees the question and itself
(attention mask), so the question is computed once.
"""

import json
import math
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

TASKS = ("ARC-Easy", "ARC-Challenge", "openbookqa", "boolq")


@dataclass(frozen=True)
class Question:
    """A question, its options, and the index of the right one."""

    task: str
    text: str
    options: tuple[str, ...]
    answer: int


def parse(task: str, item: dict[str, str]) -> Question:
    """Take question and options from an instruction of the LLM-Adapters collection."""
    if task == "boolq":
        text = re.search(r"question: (.*?)\n\nAnswer format", item["instruction"], re.DOTALL).group(1)
        return Question(task, text, ("true", "false"), ("true", "false").index(item["answer"]))
    text, options = re.search(r"question: (.*?)\n\n(Answer1: .*?)\n\nAnswer format", item["instruction"], re.DOTALL).groups()
    found = re.split(r"\s*Answer\d: ", options)[1:]
    return Question(task, text.strip(), tuple(option.strip() for option in found), int(item["answer"][-1]) - 1)


def questions(datasets: Path, task: str, split: str, limit: int | None = None, seed: int = 0) -> list[Question]:
    """Read a task's questions; `limit` takes a seeded sample."""
    items = json.loads((datasets / task / f"{split}.json").read_text())
    if limit and limit < len(items):
        items = random.Random(f"{seed}/{task}/{split}").sample(items, limit)
    return [parse(task, item) for item in items]


def examples(asked: Sequence[Question]) -> list[dict[str, str]]:
    """Training examples whose answer is the right option's text."""
    return [{"instruction": q.text, "input": "", "output": q.options[q.answer]} for q in asked]


@dataclass(frozen=True)
class Answer:
    """How the options of one question were ranked."""

    task: str
    right: bool
    right_normalized: bool
    loss: float


def answer(model: Any, tokenizer: Any, asked: Sequence[Question], batch_tokens: int = 1024) -> list[Answer]:
    """Rank the options of all questions. The model computes as it is: dtype, active sub-network."""
    encoded = [_Encoded.of(tokenizer, question) for question in asked]
    found: dict[int, Answer] = {}
    batch: list[int] = []
    order = sorted(range(len(asked)), key=lambda index: len(encoded[index].ids))
    for index in [*order, None]:
        if batch and (index is None or len(encoded[index].ids) * (len(batch) + 1) > batch_tokens):
            scores = _score(model, [encoded[i] for i in batch])
            found |= {i: _decide(asked[i], score) for i, score in zip(batch, scores, strict=True)}
            batch = []
        if index is not None:
            batch.append(index)
    return [found[index] for index in range(len(asked))]


@dataclass(frozen=True)
class _Encoded:
    """Tokens of a question and its options in one sequence; `part` is 0 for the question, 1, 2, … for the options."""

    ids: list[int]
    position: list[int]
    part: list[int]

    @classmethod
    def of(cls, tokenizer: Any, question: Question) -> "_Encoded":
        ids = tokenizer(f"Question: {question.text}\nAnswer:")["input_ids"]
        position, part, start = list(range(len(ids))), [0] * len(ids), len(ids)
        for number, option in enumerate(question.options, 1):
            tokens = tokenizer(f" {option}", add_special_tokens=False)["input_ids"]
            ids = ids + tokens
            position += range(start, start + len(tokens))
            part += [number] * len(tokens)
        return cls(ids, position, part)


def _score(model: Any, batch: list[_Encoded]) -> list[list[float]]:
    """Log-likelihood of each option of each question."""
    length = max(len(item.ids) for item in batch)

    def padded(values: list[list[int]], filler: int) -> torch.Tensor:
        return torch.tensor([row + [filler] * (length - len(row)) for row in values])

    ids = padded([item.ids for item in batch], 0)
    part = padded([item.part for item in batch], -1)
    position = padded([item.position for item in batch], 0)
    same = part[:, :, None] == part[:, None, :]
    question = (part == 0)[:, None, :] & (part >= 0)[:, :, None]
    seen = (same | question) & torch.ones(length, length, dtype=torch.bool).tril()
    with torch.inference_mode():
        # the last token of the question predicts the first of every option
        hidden = model.model(input_ids=ids, position_ids=position, attention_mask=seen[:, None], use_cache=False)[0]
        scores = []
        for row, item in enumerate(batch):
            kinds = torch.tensor(item.part)
            last = int((kinds == 0).sum()) - 1
            targets = (kinds > 0).nonzero().flatten()
            starts = kinds[targets] != kinds[targets - 1]
            before = torch.where(starts, last, targets - 1)
            logits = model.lm_head(hidden[row, before]).float().log_softmax(-1)
            likelihood = logits.gather(1, ids[row, targets][:, None])[:, 0].double()
            scores.append([likelihood[kinds[targets] == number].sum().item() for number in range(1, max(item.part) + 1)])
    return scores


def _decide(question: Question, scores: list[float]) -> Answer:
    lengths = [len(f" {option}".encode()) for option in question.options]
    best = max(range(len(scores)), key=scores.__getitem__)
    per_byte = [score / length for score, length in zip(scores, lengths, strict=True)]
    normalized = max(range(len(scores)), key=per_byte.__getitem__)
    return Answer(question.task, best == question.answer, normalized == question.answer, -scores[question.answer])


def summary(answers: Sequence[Answer]) -> dict[str, float]:
    """acc, acc_norm (percent, with standard errors) and answer loss (nats)."""
    n = len(answers)
    result: dict[str, float] = {"n": n}
    for name, values in (("acc", [a.right for a in answers]), ("acc_norm", [a.right_normalized for a in answers])):
        share = sum(values) / n
        result |= {name: 100 * share, f"{name}_se": 100 * math.sqrt(share * (1 - share) / n)}
    return result | {"answer_loss": sum(a.loss for a in answers) / n}


def paired_difference(first: Sequence[float], second: Sequence[float], groups: Sequence[str]) -> tuple[float, float]:
    """Mean over tasks of the difference of two networks on the same questions, first - second, and half its 95 % interval.

    Normal approximation: the variance of a task's mean difference is that of the differences over their number.
    """
    tasks = sorted(set(groups))
    mean, variance = 0.0, 0.0
    for task in tasks:
        differences = [a - b for a, b, g in zip(first, second, groups, strict=True) if g == task]
        n = len(differences)
        center = sum(differences) / n
        mean += center / len(tasks)
        variance += sum((d - center) ** 2 for d in differences) / (n - 1) / n / len(tasks) ** 2
    return mean, 1.96 * math.sqrt(variance)
