"""Measure exported networks: latency; and of language models loss and accuracy on held-out examples, and answers."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lonas_edge.bench.measure import Sample as Measured
from lonas_edge.bench.measure import Schedule
from lonas_edge.bench.options import BenchOptions
from lonas_edge.bench.record import METRICS, BenchRecord
from lonas_edge.bench.run import bench
from lonas_edge.bench.statistics import (
    Interval,
    Ratio,
    difference_of_means,
    difference_of_shares,
    median_interval,
    paired_ratio,
)
from lonas_edge.bench.variants import SUBNET, Case, Timing
from lonas_edge.data.encoding import Learned, Prompting, encode, encode_prompt
from lonas_edge.data.language import LanguageTask
from lonas_edge.data.task import MAX_LENGTH, Task
from lonas_edge.data.templates import Example, Text
from lonas_edge.errors import LonasEdgeError, raise_all
from lonas_edge.exporting.exported import open_exported
from lonas_edge.ir import MODEL
from lonas_edge.ir.core import inputs_of, openvino_core
from lonas_edge.network.source import open_source
from lonas_edge.network.tokenizer import require_tokenizer
from lonas_edge.pipeline.record import Latency, Quality, Sample
from lonas_edge.progress import Progress

if TYPE_CHECKING:
    from lonas_edge.pipeline.plan import Plan

ROUNDS = 18  # in six process starts, over which `bench` computes intervals
ANSWERS, ANSWER_TOKENS = 4, 96


@dataclass(frozen=True)
class Scores:
    """Results by held-out example, each [examples]: loss in nats, correct tokens, learned tokens."""

    loss: np.ndarray
    correct: np.ndarray
    tokens: np.ndarray


def score(folder: Path, examples: Sequence[Learned], prompting: Prompting, progress: Progress) -> Scores:
    """Compute loss and accuracy of an IR on the learned tokens of examples, one example at a time."""
    tokenizer = require_tokenizer(folder, "measuring the held-out loss")
    request = openvino_core().compile_model(folder / MODEL, "CPU").create_infer_request()
    names = {name for port in request.model_inputs for name in port.get_names()}
    rows = []
    for index, example in enumerate(examples):
        progress(f"held-out loss of {folder.name}", index / len(examples))
        parts = encode([example], prompting, tokenizer, MAX_LENGTH)
        rows.append(np.sum([_scored(request, names, part) for part in parts], axis=0) if parts else np.zeros(3))
    loss, correct, tokens = np.array(rows).T
    return Scores(loss, correct, tokens)


def qualities(plan: "Plan", folders: Mapping[str, Path], progress: Progress) -> dict[str, dict[str, Quality]]:
    """Measure loss and accuracy, see `PipelineTask.measured`.

    Raises:
        LonasEdgeError: If a loss is not finite.
    """
    data, prompting = held_out(plan)
    examples = data.examples
    scores = on_common_examples({name: score(folder, examples, prompting, progress) for name, folder in folders.items()})
    raise_all(
        "The held-out loss is not finite:",
        [name for name, each in scores.items() if not np.isfinite(each.loss).all()],
        "The weights are damaged, or a training diverged; see the losses in steps/.",
    )
    first = scores[next(iter(folders))]
    return {
        name: {
            "loss": Quality(
                float(each.loss.sum() / first.tokens.sum()), None if each is first else loss_difference(first, each)
            ),
            "accuracy": Quality(
                float(100 * each.correct.sum() / each.tokens.sum()), None if each is first else accuracy_difference(first, each)
            ),
        }
        for name, each in scores.items()
    }


def held_out(plan: "Plan") -> tuple[Task, Prompting]:
    """The held-out data, and the prompt template of the trainings."""
    source = open_source(plan.places.unpruned, plan.places.base, elastic=False)
    data = source.open_data(plan.places.held_out, plan.options.prompt)
    prompting = data.prompting(require_tokenizer(source.base.folder, "measuring the held-out loss"))
    assert prompting  # a language model's data
    return data, prompting


def on_common_examples(scores: Mapping[str, Scores]) -> dict[str, Scores]:
    """Set the results of examples to 0 that are too long for one of the networks' tokenizers, for all networks."""
    common = np.all([each.tokens > 0 for each in scores.values()], axis=0)
    return {name: Scores(each.loss * common, each.correct * common, each.tokens * common) for name, each in scores.items()}


def _scored(request: Any, names: set[str], part: Mapping[str, list[int]]) -> tuple[float, int, int]:
    """Loss, correct and learned tokens of one sequence."""
    request.reset_state()
    inputs = inputs_of(np.array([part["input_ids"]], np.int64))
    logits = request.infer({name: value for name, value in inputs.items() if name in names})["logits"][0]
    return LanguageTask.score(logits, part["labels"])


def loss_difference(first: Scores, second: Scores) -> Interval:
    """second - first in nats per learned token of `first`, paired by example.

    The denominator is the same for both: a trimmed vocabulary has other tokens for the same text.
    """
    return difference_of_means(first.loss, second.loss, first.tokens)


def accuracy_difference(first: Scores, second: Scores) -> Interval:
    """second - first in points, paired by example: each a share of its own learned tokens."""
    return difference_of_shares(first.correct, second.correct, first.tokens, second.tokens)


def sampled(plan: "Plan", folders: Mapping[str, Path], progress: Progress) -> list[Sample]:
    """Answers to the first held-out examples, see `PipelineTask.answers`."""
    data, prompting = held_out(plan)
    return answers(folders, data.examples, prompting, progress)


def answers(folders: Mapping[str, Path], examples: Sequence[Learned], prompting: Prompting, progress: Progress) -> list[Sample]:
    """Greedy answers of the networks to the first examples, by openvino_genai."""
    import openvino as ov
    import openvino_genai

    chosen = [example for example in examples if not isinstance(example, Text)][:ANSWERS]
    texts: list[dict[str, str]] = [{} for _ in chosen]
    for name, folder in folders.items() if chosen else ():
        progress(f"answers of {name}", None)
        tokenizer = require_tokenizer(folder, "generating answers")
        pipeline = openvino_genai.LLMPipeline(folder, "CPU")
        config = openvino_genai.GenerationConfig()
        config.max_new_tokens, config.do_sample, config.apply_chat_template = ANSWER_TOKENS, False, False
        config.eos_token_id = tokenizer.eos_token_id
        for text, example in zip(texts, chosen, strict=True):
            ids = encode_prompt(example, prompting, tokenizer, MAX_LENGTH)
            prompt = openvino_genai.TokenizedInputs(
                ov.Tensor(np.array([ids], np.int64)), ov.Tensor(np.ones((1, len(ids)), np.int64))
            )
            text[name] = tokenizer.decode(pipeline.generate(prompt, config).tokens[0], skip_special_tokens=True).strip()
    return [Sample(_asked(example), _expected(example), answered) for example, answered in zip(chosen, texts, strict=True)]


def _asked(example: Any) -> str:
    if isinstance(example, Example):
        return "\n\n".join(filter(None, (example.instruction, example.input)))
    last = max(index for index, (role, _) in enumerate(example.messages) if role == "assistant")
    return "\n\n".join(f"{role}: {content}" for role, content in example.messages[:last])


def _expected(example: Any) -> str:
    if isinstance(example, Example):
        return example.output
    return str(next(content for role, content in reversed(example.messages) if role == "assistant"))


def latencies(
    folders: Mapping[str, Path], case: Case, timed: Mapping[str, str], progress: Progress
) -> tuple[dict[str, dict[str, Latency]], BenchRecord]:
    """Measure all networks in one interleaved run; the first is the baseline of the ratios, the last one is ours.

    Returns:
        Latencies by network and by name, and the report of `bench`.

    Raises:
        LonasEdgeError: If a network cannot be measured.
    """
    *others, (ours, folder) = folders.items()
    arms = (SUBNET, *(str(path) for _, path in others))
    result = bench(open_exported(folder), BenchOptions(arms=arms, cases=(case,), schedule=Schedule.of(ROUNDS)), progress)
    if result.interrupted:
        raise KeyboardInterrupt
    if result.failures:
        raise LonasEdgeError("; ".join(f"{failure.variant}: {failure.reason}" for failure in result.failures))
    names = zip((ours, *(name for name, _ in others)), (variant.name for variant in result.variants), strict=True)
    samples = {name: [each for each in result.samples if each.variant == variant] for name, variant in names}
    baseline = samples[next(iter(folders))]
    return {
        name: {each: _latency(samples[name], baseline, METRICS[metric]) for metric, each in timed.items()} for name in folders
    }, result


def _latency(samples: Sequence[Measured], baseline: Sequence[Measured], metric: Callable[[Timing], float]) -> Latency:
    by_round, ratio = {each.round: each for each in baseline}, None
    # where memory holds two networks at a time, ours takes turns with each of the others, which have no rounds in common
    pairs = [(each, by_round[each.round]) for each in samples if each.round in by_round]
    if pairs and samples is not baseline:
        figures = [[metric(each.timing) for each in side] for side in zip(*pairs, strict=True)]
        ratio = _interval(paired_ratio(figures[0], figures[1], [each.start for each, _ in pairs]))
    values = tuple(round(metric(each.timing), 3) for each in samples)
    return Latency(median_interval(values), ratio, values)


def for_equal_texts(latency: Latency, tokens: float) -> Latency:
    """Multiply the ratio by the tokens per text, relative to the first network's."""
    ratio = latency.ratio
    scaled = ratio and Interval(tokens * ratio.value, tokens * ratio.low, tokens * ratio.high)
    return replace(latency, ratio=scaled)


def _interval(ratio: Ratio) -> Interval:
    return Interval(
        ratio.value, ratio.value if ratio.low is None else ratio.low, ratio.value if ratio.high is None else ratio.high
    )
