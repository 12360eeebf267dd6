"""Measure exported networks on held-out examples: qualities, latency and answers. The first network is the baseline."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from lonas_edge.bench.answers import Answer, Answerer, time_answers
from lonas_edge.bench.measure import Schedule
from lonas_edge.bench.options import BenchOptions
from lonas_edge.bench.record import METRICS, BenchRecord
from lonas_edge.bench.run import bench
from lonas_edge.bench.statistics import (
    Interval,
    difference_of_means,
    difference_of_shares,
    difference_of_statistics,
    median_interval,
    paired_ratio,
)
from lonas_edge.bench.variants import SUBNET, Case
from lonas_edge.data.encoding import Learned, encode, encode_prompt
from lonas_edge.data.language import LanguageTask, question_and_reference
from lonas_edge.data.task import Task
from lonas_edge.data.texts import Texts
from lonas_edge.errors import LonasEdgeError, raise_all
from lonas_edge.evaluate.encoders import ir_outputs
from lonas_edge.evaluate.options import EvalSettings, RunOptions
from lonas_edge.evaluate.protocols import ANSWERS
from lonas_edge.evaluate.results import compute
from lonas_edge.evaluate.run import evaluate
from lonas_edge.evaluate.targets import DRAFTED, open_targets
from lonas_edge.exporting.drafts import open_draft
from lonas_edge.exporting.exported import open_exported
from lonas_edge.ir import MODEL
from lonas_edge.ir.core import inputs_of, openvino_core
from lonas_edge.network.tokenizer import require_tokenizer
from lonas_edge.pipeline.record import Latency, Quality, Sample
from lonas_edge.progress import Progress

ROUNDS = 18  # in six process starts, over which `bench` computes intervals
SAMPLES, TIMED_ANSWERS, ANSWER_TOKENS = 10, 16, 256  # answers in the report, timed ones, and tokens of these
_POSITIONS = 1024  # of a text that are scored at once: the logits of all would take much memory
EXACT = {"INFERENCE_PRECISION_HINT": "f32"}
ANSWER_TIMES: dict[str, Callable[[Answer], float]] = {
    "answer": lambda answer: answer.total,
    "ttft": lambda answer: answer.first,
    "tpot": lambda answer: answer.tpot,
}

Qualities = dict[str, dict[str, Quality]]  # by the name of the quality and that of the network


def losses(folders: Mapping[str, Path], data: LanguageTask, source: Path, progress: Progress) -> Qualities:
    """Measure loss and accuracy of language models on the learned tokens of examples; `source` has the prompt's tokenizer.

    Raises:
        LonasEdgeError: If a loss is not finite.
    """
    scores = {name: score(folder, data, source, progress) for name, folder in folders.items()}
    # an example that is too long for one of the networks' tokenizers counts for none
    common = np.all([each[:, 2] > 0 for each in scores.values()], axis=0)
    scores = {name: each * common[:, None] for name, each in scores.items()}
    _check_finite(scores)
    # nats per token of the baseline: a trimmed vocabulary has other tokens for the same text
    tokens = next(iter(scores.values()))[:, 2]
    loss = _compare(
        scores,
        lambda each: float(each[:, 0].sum() / tokens.sum()),
        lambda first, each: difference_of_means(first[:, 0], each[:, 0], tokens),
    )
    accuracy = _compare(
        scores,
        lambda each: 100 * float(each[:, 1].sum() / each[:, 2].sum()),
        lambda first, each: difference_of_shares(first[:, 1], each[:, 1], first[:, 2], each[:, 2]),
    )
    return {"loss": loss, "accuracy": accuracy}


def _compare(
    figures: Mapping[str, np.ndarray],
    value: Callable[[np.ndarray], float],
    difference: Callable[[np.ndarray, np.ndarray], Interval],
) -> dict[str, Quality]:
    """Compute a quality of each network from its figures of the examples, and its difference from the first network."""
    first = next(iter(figures.values()))
    return {name: Quality(value(each), None if each is first else difference(first, each)) for name, each in figures.items()}


def score(folder: Path, data: LanguageTask, source: Path, progress: Progress) -> np.ndarray:
    """Score an IR: [examples, 3], loss in nats, correct tokens, learned tokens; 0 for examples that are too long."""
    tokenizer = require_tokenizer(folder, "measuring the held-out loss")
    prompting = data.prompting(require_tokenizer(source, "measuring the held-out loss"))
    request = openvino_core().compile_model(folder / MODEL, "CPU").create_infer_request()
    names = {name for port in request.model_inputs for name in port.get_names()}
    rows = np.zeros((len(data.examples), 3))
    for index, example in enumerate(data.examples):
        progress(f"held-out loss of {folder.name}", index / len(data.examples))
        for part in encode([example], prompting, tokenizer, data.context):
            request.reset_state()
            for start in range(0, len(part["input_ids"]), _POSITIONS):
                end = start + _POSITIONS
                inputs = inputs_of(np.array([part["input_ids"][:end]], np.int64), start)
                logits = request.infer({name: value for name, value in inputs.items() if name in names})["logits"][0]
                rows[index] += data.score(logits, part["labels"][start : end + 1])
    return rows


def distances(folders: Mapping[str, Path], data: Task, reference: Path | None, progress: Progress) -> Qualities:
    """Measure what encoders are used for, by labels, and with `reference`, the unpruned model in fp32, distances from it.

    Raises:
        LonasEdgeError: If outputs are not finite.
    """
    outputs = {name: ir_outputs(folder, data, {}, progress) for name, folder in folders.items()}
    _check_finite(outputs)
    qualities = _by_labels(outputs, data, progress)
    if reference is None:
        return qualities
    expected = ir_outputs(reference, data, EXACT, progress)
    figures = {name: data.distances(expected, each) for name, each in outputs.items()}
    return {"distance": _compare(figures, lambda each: float(each.mean()), difference_of_means), **qualities}


def _by_labels(outputs: Mapping[str, np.ndarray], data: Task, progress: Progress) -> Qualities:
    qualities: Qualities = {}
    labels = np.array([example.label for example in data.examples if example.label is not None])
    if len(labels) and not data.pooling and next(iter(outputs.values())).shape[-1] > 1:
        correct, ones = {name: each[:, 0].argmax(-1) == labels for name, each in outputs.items()}, np.ones(len(labels))
        qualities["accuracy"] = _compare(
            correct,
            lambda each: 100 * float(each.mean()),
            lambda first, each: _widened(difference_of_shares(first, each, ones, ones), len(labels)),
        )
    elif len(set(labels.tolist())) > 1:
        progress("correlations with the labels", None)
        qualities["spearman"] = _compare(
            {name: (each[:, 0] * each[:, 1]).sum(-1) if data.pooling else each[:, 0, 0] for name, each in outputs.items()},
            lambda each: correlation(labels, each),
            lambda first, each: difference_of_statistics(correlation, first, each, labels),
        )
    return qualities


def correlation(labels: np.ndarray, answers: np.ndarray) -> float:
    """Spearman's rank correlation, in percent; 0 for equal labels, which a resampling of few positive pairs can have."""
    return 100 * compute("spearman", labels, answers)


def _check_finite(outputs: Mapping[str, np.ndarray]) -> None:
    raise_all(
        "Outputs on the held-out examples are not finite:",
        [name for name, each in outputs.items() if not np.isfinite(each).all()],
        "The weights are damaged, or a training diverged; see the losses in steps/.",
    )


def answers(
    folders: Mapping[str, Path],
    data: LanguageTask,
    metrics: Sequence[str],
    log: Path,
    progress: Progress,
    draft: Path | None = None,
) -> tuple[Qualities, list[Sample]]:
    """Score greedy answers to held-out prompts, by `eval`.

    Args:
        folders: The networks by name, the baseline first and ours last.
        data: The held-out examples; plain texts have no answers.
        metrics: Metrics by name, or FILE.py:FUNCTION; the first one orders the samples.
        log: File of finished answers.
        progress: Reports what is being done.
        draft: The draft of networks whose names say so.

    Returns:
        The figures of the metrics, and the answers where ours differs from the baseline's, the worst first.
    """
    if all(isinstance(example, Texts) for example in data.examples):
        return {}, []
    targets = [
        replace(target, name=name)
        for name, folder in folders.items()
        for target in open_targets([str(folder)], [None], RunOptions(draft=draft if name.endswith(DRAFTED) else None))[-1:]
    ]
    settings = EvalSettings((), None, ANSWERS, data.description, data=data.path, metrics=tuple(metrics), skips_empty=True)
    record, logs = evaluate(targets, settings, progress, log)
    qualities: Qualities = {figure: {} for figure in record.targets[0].metrics}
    for target in record.targets:
        for figure, interval in target.metrics.items():
            qualities[figure][target.name] = Quality(interval.value, None, interval)
    shares = {task.task for task in record.targets[0].tasks if task.share}
    for each in record.differences:
        low, high = (each.points if bound is None else bound for bound in (each.low, each.high))
        change = Interval(each.points, low, high)
        change = _widened(change, each.questions) if each.scope in shares else change
        qualities[each.scope][each.target] = replace(qualities[each.scope][each.target], difference=change)
    figure = next(iter(qualities))
    return qualities, _differing(data, {name: list(each[figure]) for name, each in logs.items()}, figure)


def _widened(difference: Interval, count: int) -> Interval:
    """A difference in points; where all `count` examples score alike, at most 3 of them differ, with 95 % confidence."""
    if difference.low < difference.high:
        return difference
    return Interval(difference.value, difference.value - 300 / count, difference.value + 300 / count)


def _differing(data: LanguageTask, logs: Mapping[str, Sequence[Mapping[str, Any]]], figure: str) -> list[Sample]:
    """The answers of all networks where the last differs from the first, the worst first; else one of all."""
    rows = {name: {row["doc_id"]: row for row in each} for name, each in logs.items()}
    first, *_, ours = rows.values()
    common = [index for index in first if all(index in each for each in rows.values())]
    differing = [index for index in common if first[index]["answer"] != ours[index]["answer"]]
    differing.sort(key=lambda index: ours[index][figure] - first[index][figure])
    return [
        Sample(*question_and_reference(data.examples[index]), {name: each[index]["answer"] for name, each in rows.items()})
        for index in (differing or common[:1])[:SAMPLES]
    ]


def answer_times(
    folders: Mapping[str, Path],
    data: LanguageTask,
    source: Path,
    draft: Path,
    tokens: Mapping[str, float],
    progress: Progress,
) -> dict[str, dict[str, Latency]]:
    """Measure the time of a greedy answer to held-out prompts, one at a time: each network in turn with the first one.

    `source` has the tokenizer of the prompts. Networks whose names say so answer with the `draft`, and get TTFT and TPOT, too.
    Ratios are over prompts; those of TPOT are for equal texts, see `latencies`.
    """
    chosen = [example for example in data.examples if not isinstance(example, Texts)][:TIMED_ANSWERS]
    prompting = data.prompting(require_tokenizer(source, "generating answers"))

    def answerer(name: str) -> Callable[[Learned], Answer]:
        folder, tokenizer = folders[name], require_tokenizer(folders[name], "generating answers")
        drafted = open_draft(draft, open_exported(folder, ours=False)) if name.endswith(DRAFTED) else None
        loaded = Answerer(folder, ANSWER_TOKENS, drafted)
        return lambda example: loaded.answer(encode_prompt(example, prompting, tokenizer, data.context))

    baseline, *others = folders
    answer, measured = answerer(baseline), dict[str, dict[str, Latency]]()
    for name in others:
        timed = time_answers({baseline: answer, name: answerer(name)}, chosen, progress)
        first = [each.total for each in timed[baseline]]
        measured.setdefault(baseline, {"answer": Latency(median_interval(first), None, tuple(first))})
        kinds = ("answer", "ttft", "tpot") if name.endswith(DRAFTED) else ("answer",)
        equal = {"tpot": tokens.get(name, 1.0)}  # the other times are those of whole texts
        measured[name] = {
            kind: _latency(timed[name], timed[baseline], ANSWER_TIMES[kind], equal.get(kind, 1.0)) for kind in kinds
        }
    return measured


def _latency(ours: Sequence[Answer], baseline: Sequence[Answer], time: Callable[[Answer], float], tokens: float) -> Latency:
    """Summarize a time of answers, and its ratio to that of the baseline's answers to the same prompts."""
    times, others = tuple(map(time, ours)), tuple(map(time, baseline))
    return Latency(median_interval(times), _ratio(times, others, range(len(times)), tokens), times)


def _ratio(times: Sequence[float], baseline: Sequence[float], starts: Sequence[int], tokens: float) -> Interval:
    """The paired ratio of times to a baseline's; `tokens` are the tokens of a text, relative to the baseline's."""
    found = paired_ratio(times, baseline, starts)
    return Interval(*(tokens * bound for bound in (found.value, found.low or found.value, found.high or found.value)))


def latencies(
    folders: Mapping[str, Path], case: Case, tokens: Mapping[str, float], progress: Progress
) -> tuple[dict[str, dict[str, Latency]], BenchRecord]:
    """Measure all networks in one interleaved run; the first is the baseline of the ratios, the last one is ours.

    Ratios are for equal texts: `tokens` has the tokens per text of networks with a smaller vocabulary.

    Returns:
        Latencies by network and by name, and the report of `bench`.

    Raises:
        LonasEdgeError: If a network cannot be measured.
    """
    *others, (ours, folder) = folders.items()
    options = BenchOptions(variants=(SUBNET, *(str(path) for _, path in others)), cases=(case,), schedule=Schedule.of(ROUNDS))
    result = bench(open_exported(folder), options, progress)
    if result.interrupted:
        raise KeyboardInterrupt
    if result.failures:
        raise LonasEdgeError("; ".join(f"{failure.variant}: {failure.reason}" for failure in result.failures))
    variants = dict(zip((ours, *(name for name, _ in others)), (variant.name for variant in result.variants), strict=True))
    metrics = {"ttft": "ttft", "tpot": "tpot"} if case.new_tokens else {"latency": "generate_duration"}
    measured: dict[str, dict[str, Latency]] = {name: {} for name in folders}
    for title, metric in metrics.items():
        baseline: Mapping[int, float] = {}
        for name in folders:
            samples = [each for each in result.samples if each.variant == variants[name]]
            times = {each.round: METRICS[metric](each.timing) for each in samples}
            # where memory holds two networks at a time, ours takes turns with the others, which have no rounds in common
            common, ratio = [each for each in samples if each.round in baseline], None
            if common:
                pairs = [times[each.round] for each in common], [baseline[each.round] for each in common]
                ratio = _ratio(*pairs, [each.start for each in common], tokens.get(name, 1.0))
            baseline = baseline or times
            values = tuple(round(time, 3) for time in times.values())
            measured[name][title] = Latency(median_interval(values), ratio, values)
    return measured, result
