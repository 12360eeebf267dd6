"""Trainings of `compress`. A few timed steps choose the precision on this machine, and estimate how long a run takes."""

import statistics
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import ClassVar

import torch

from lonas_edge.files import read_text, replace_text
from lonas_edge.network.modeling import faster_dtype
from lonas_edge.output import OutputDirectory
from lonas_edge.pipeline.tasks import Profile
from lonas_edge.processes import peak_memory
from lonas_edge.progress import Progress
from lonas_edge.schema import Record
from lonas_edge.training.defaults import precision_of
from lonas_edge.training.inputs import Inputs, open_inputs, with_eval_data, with_teacher
from lonas_edge.training.options import EVAL_LOSS, TrainOptions
from lonas_edge.training.train import train

PROBE = "probe.json"
_STEPS = 3  # the first is not timed
_EXAMPLES = 4  # of a timed step of the fine-tuning
_VOCABULARY = 50_000  # up to which a micro-batch fits
_SPREAD = 1.25  # logits of a batch of similar lengths, relative to those of one example


@dataclass(frozen=True)
class Probe(Record):
    """Timed training steps."""

    NAME: ClassVar = "compress-probe"
    VERSION: ClassVar = 1
    AGAIN: ClassVar = "Delete it."

    precision: str  # the faster one on this machine, or that of an earlier run
    lora_step: float  # seconds of a step of the fine-tuning; of encoders, of the recovery without QAT
    recovery_step: float  # seconds of a step of the recovery
    evaluation: float  # seconds of the evaluation of a held-out example
    tokens: float  # mean of an example
    batch: int  # examples of a step of the recovery
    micro_batch: int  # examples that are computed at once
    peak_bytes: int  # of the process
    learned: float = 0.0  # mean of the learned tokens of an example; of encoders, and of earlier runs, 0
    inputs: dict[str, str] = field(default_factory=dict)  # hash of the examples, and options that the times depend on


def batches(profile: Profile, lengths: Sequence[int], spans: Sequence[int], vocabulary: int) -> tuple[int, int]:
    """Choose the examples of a step of the recovery, and those that are computed at once.

    A step has more examples where they are short. Fewer are computed at once where the longest has many tokens, or, of a large
    vocabulary, many logits: a batch has them where any of its examples has learned tokens. `spans` has the tokens from the
    first to the last learned one of each example.
    """
    batch, longest = profile.batch, max(lengths)
    positions = min(longest, _SPREAD * max(spans, default=0))
    most = max(longest, positions * vocabulary / _VOCABULARY)
    while 2 * batch <= profile.short_batch and 2 * batch * statistics.mean(lengths) <= profile.step_tokens:
        batch *= 2
    count = batch
    while count > 1 and count * most > profile.micro_tokens:
        count //= 2  # all batches are powers of two
    return batch, count


def time_steps(
    profile: Profile,
    base: str,
    data: Path,
    sizes: tuple[int, int],
    options: TrainOptions,
    precision: str | None,
    progress: Progress,
) -> Probe:
    """Time a few steps of the fine-tuning, and of the recovery with whole micro-batches, on typical examples of `data`.

    A model that is not fine-tuned has steps of the recovery only. `options` have the template, the length and the weight
    format of the recovery's quantization-aware training; without a precision, the faster of two is chosen. `sizes` are those of
    `batches`.
    """
    with TemporaryDirectory(prefix="lonas-edge-") as temporary:
        folder = Path(temporary)
        sample, evaluated = folder / "typical.jsonl", folder / "evaluated.jsonl"
        batch, at_once = sizes
        few = min(at_once, _EXAMPLES) if profile.adapts else at_once
        lines = typical(read_text(data, "the training examples").split("\n"), _STEPS * at_once)
        replace_text(sample, "\n".join(lines) + "\n")
        replace_text(evaluated, "\n".join(lines[: _STEPS * few]) + "\n")
        inputs = with_eval_data(open_inputs(base, sample, elastic=False, labels=False), evaluated)
        inputs = inputs if profile.adapts else with_teacher(inputs, base)
        chosen = precision or (precision_of(TrainOptions()) if torch.cuda.is_available() else None)
        precisions = [chosen] if chosen else list(dict.fromkeys(("fp32", faster_dtype())))
        timed = {}
        for number, name in enumerate(precisions):
            progress(f"Timing training steps in {name}", (number + 0.5) / (len(precisions) + 1))
            plain = replace(options, dtype=name, weight_format=None)
            timed[name] = _time(few, inputs, plain, folder)
        fastest = min(timed, key=lambda name: timed[name][0])
        step, evaluation, tokens = timed[fastest]
        lora = step * profile.batch / few
        recovery = lora
        if profile.adapts or options.weight_format:
            progress("Timing steps of the recovery", len(precisions) / (len(precisions) + 1))
            recovering = replace(options, dtype=fastest, ratio=1.0)  # the choice of layers takes no step
            step, *_ = _time(at_once, with_teacher(inputs, base), recovering, folder)
            recovery = step * batch / at_once
    rounded = round(lora, 3), round(recovery, 3), round(evaluation, 5), round(tokens, 1)
    return Probe(fastest, *rounded, *sizes, peak_memory())


def _time(batch: int, inputs: Inputs, options: TrainOptions, folder: Path) -> tuple[float, float, float]:
    """Seconds of a step of `batch` examples, and of the evaluation of an example; and its tokens."""
    steps: dict[int, float] = {}
    evaluated: list[float] = []

    def report(step: int, _steps: int, log: Mapping[str, float]) -> None:
        steps.setdefault(step, time.perf_counter())
        if EVAL_LOSS in log and step == _STEPS and not evaluated:
            evaluated.append(time.perf_counter() - steps[step])

    timing = replace(options, steps=_STEPS, batch_size=batch, save_steps=1000, log_steps=_STEPS, eval_steps=_STEPS)
    record = train(inputs, folder / "timed", timing, overwrite=True, report=report)
    assert record and record.tokens
    assert inputs.eval_data
    step = (steps[_STEPS] - steps[1]) / (_STEPS - 1)
    evaluation = evaluated[0] / sum(file.count for file in inputs.eval_data.files)
    return step, evaluation, record.tokens / _STEPS / batch


def typical(lines: Iterable[str], count: int) -> list[str]:
    """The lines of a JSON Lines file nearest to the median length, for timed training steps."""
    known = [line for line in lines if line.strip()]
    middle = statistics.median(map(len, known))
    return sorted(known, key=lambda line: abs(len(line) - middle))[:count]


def train_or_continue(inputs: Inputs, output: Path, options: TrainOptions, progress: Progress) -> None:
    """Train, or continue; held-out losses stay on the terminal."""

    def report(step: int, steps: int, log: Mapping[str, float]) -> None:
        line = f"step {step}/{steps}"
        if EVAL_LOSS in log:
            line = f"{line}  held-out loss {log[EVAL_LOSS]:.3f}\n{line}"
        progress(line, step / steps)

    resume = OutputDirectory(output).partial.exists()
    train(inputs, output, options, resume, False, report, lambda line: progress(f"{line}\nLoading", None))
