"""Measure a draft on held-out prompts, for several numbers of proposed tokens, next to the model alone."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

from lonas_edge.bench.answers import Answer, Answerer, time_answers
from lonas_edge.bench.statistics import median_interval, paired_ratio
from lonas_edge.exporting.answering import Tokens
from lonas_edge.exporting.drafts import PRECISION, Draft, DraftSpeed
from lonas_edge.ir.core import openvino_core
from lonas_edge.progress import Progress

PROPOSED = (2, 4, 7, 10)  # numbers of tokens: docs/benchmarks/draft.md
_ALONE = 0
_F32 = "f32"


def measure_draft(model: Path, draft: Path, prompts: Sequence[Tokens], limit: int, progress: Progress) -> list[DraftSpeed]:
    """Time greedy answers of the model alone, which come first, and with each number of proposed tokens, interleaved.

    With bf16 as its default, on processors with AMX, a CPU is also timed in f32: there activations are quantized to INT8, and
    several tokens take little longer than one (docs/benchmarks/draft.md).
    """
    answerers: dict[tuple[int, str | None], Callable[[Tokens], Answer]] = {}
    for precision in (None, *([_F32] if default_precision() != _F32 else [])):
        answerers[_ALONE, precision] = Answerer(model, limit, precision=precision).answer
        drafted = Answerer(model, limit, Draft(draft, max(PROPOSED), precision))
        answerers |= {(number, precision): partial(drafted.answer, proposed=number) for number in PROPOSED}
    timed = time_answers(answerers, prompts, progress)
    return [speed_of(*which, answers, timed[_ALONE, None]) for which, answers in timed.items()]


def fastest(speeds: Iterable[DraftSpeed]) -> DraftSpeed:
    """The speed with a draft at which answers take least time, prompts included: f32 has a lower TPOT, and a higher TTFT."""
    return min((each for each in speeds if each.num_assistant_tokens), key=lambda each: each.answer_ratio[0])


def default_precision() -> str:
    """The precision in which the CPU computes by default."""
    return str(openvino_core().get_property("CPU", PRECISION).to_string())


def speed_of(number: int, precision: str | None, answers: Sequence[Answer], alone: Sequence[Answer]) -> DraftSpeed:
    """Summarize answers to the same prompts with a number of proposed tokens and by the model alone."""
    tpots = [(ours.tpot, theirs.tpot) for ours, theirs in zip(answers, alone, strict=True)]
    totals = [(ours.total, theirs.total) for ours, theirs in zip(answers, alone, strict=True)]
    return DraftSpeed(
        num_assistant_tokens=number,
        precision=precision,
        tpot_ms=median_interval([ours for ours, _ in tpots]).value,
        answer_ms=median_interval([ours for ours, _ in totals]).value,
        tpot_ratio=_ratio(tpots),
        answer_ratio=_ratio(totals),
        tokens_per_pass=sum(len(each.tokens) for each in answers) / sum(each.passes for each in answers),
        identical=sum(ours.tokens == theirs.tokens for ours, theirs in zip(answers, alone, strict=True)) / len(alone),
    )


def _ratio(pairs: Sequence[tuple[float, float]]) -> tuple[float, float, float]:
    found = paired_ratio([ours for ours, _ in pairs], [theirs for _, theirs in pairs], range(len(pairs)))
    return found.value, found.low or found.value, found.high or found.value
