"""Time a few training steps on this machine: they choose the precision, and estimate how long a run takes."""

import statistics
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import ClassVar

import torch

from lonas_edge.files import read_text, replace_text
from lonas_edge.network.modeling import faster_dtype
from lonas_edge.pipeline.defaults import Defaults
from lonas_edge.processes import peak_memory
from lonas_edge.progress import Progress
from lonas_edge.schema import Record
from lonas_edge.training.defaults import precision_of
from lonas_edge.training.inputs import Inputs, open_inputs, with_eval_data, with_teacher
from lonas_edge.training.options import EVAL_LOSS, TrainOptions
from lonas_edge.training.train import train

PROBE = "probe.json"
_STEPS = 3  # the first is not timed


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
    peak_bytes: int  # of the process
    inputs: dict[str, str] = field(default_factory=dict)  # hash of the examples, and options that the times depend on


def time_steps(
    defaults: Defaults, base: str, data: Path, prompt: str | None, qat: str | None, precision: str | None, progress: Progress
) -> Probe:
    """Time a few steps of the fine-tuning and of the recovery on typical examples of `data`, a micro-batch each.

    A model that is not fine-tuned has steps of the recovery only. `qat` is the weight format of its quantization-aware
    training; without a precision, the faster of two is chosen.
    """
    with TemporaryDirectory(prefix="lonas-edge-") as temporary:
        folder = Path(temporary)
        sample = folder / "typical.jsonl"
        lines = typical(read_text(data, "the training examples").split("\n"), _STEPS * defaults.micro_batch)
        replace_text(sample, "\n".join(lines) + "\n")
        inputs = with_eval_data(open_inputs(base, sample, None, elastic=False), sample)
        inputs = inputs if defaults.adapts else with_teacher(inputs, base)
        chosen = precision or (precision_of(TrainOptions()) if torch.cuda.is_available() else None)
        precisions = [chosen] if chosen else list(dict.fromkeys(("fp32", faster_dtype())))
        timed = {}
        for number, name in enumerate(precisions):
            progress(f"Timing training steps in {name}", (number + 0.5) / (len(precisions) + 1))
            timed[name] = _time(defaults, inputs, TrainOptions(prompt=prompt, precision=name), folder)
        fastest = min(timed, key=lambda name: timed[name][0])
        lora, evaluation, tokens = timed[fastest]
        recovery = lora
        if defaults.adapts or qat:
            progress("Timing steps of the recovery", len(precisions) / (len(precisions) + 1))
            options = TrainOptions(prompt=prompt, precision=fastest)
            options = replace(options, weight_format=qat, ratio=1.0) if qat else options  # the choice of layers takes no step
            recovery, *_ = _time(defaults, with_teacher(inputs, base), options, folder)
    return Probe(fastest, round(lora, 3), round(recovery, 3), round(evaluation, 5), round(tokens, 1), peak_memory())


def _time(defaults: Defaults, inputs: Inputs, options: TrainOptions, folder: Path) -> tuple[float, float, float]:
    """Seconds of a whole batch, from parts of it, and of the evaluation of an example; and mean tokens of an example."""
    steps: dict[int, float] = {}
    evaluated: list[float] = []

    def report(step: int, _steps: int, log: Mapping[str, float]) -> None:
        steps.setdefault(step, time.perf_counter())
        if EVAL_LOSS in log and step == _STEPS and not evaluated:
            evaluated.append(time.perf_counter() - steps[step])

    timing = replace(
        options, steps=_STEPS, batch_size=defaults.micro_batch, save_steps=1000, log_steps=_STEPS, eval_steps=_STEPS
    )
    record = train(inputs, folder / "timed", timing, overwrite=True, report=report)
    assert record and record.tokens
    assert inputs.eval_data
    step = (steps[_STEPS] - steps[1]) / (_STEPS - 1) * defaults.batch / defaults.micro_batch
    evaluation = evaluated[0] / sum(file.count for file in inputs.eval_data.files)
    return step, evaluation, record.tokens / _STEPS / defaults.micro_batch


def typical(lines: Iterable[str], count: int) -> list[str]:
    """The lines of a JSON Lines file nearest to the median length, for timed training steps."""
    known = [line for line in lines if line.strip()]
    middle = statistics.median(map(len, known))
    return sorted(known, key=lambda line: abs(len(line) - middle))[:count]
