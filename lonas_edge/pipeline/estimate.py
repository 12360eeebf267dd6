"""Estimate time, memory and disk of a run from a few timed training steps on this machine."""

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, ClassVar

import torch

from lonas_edge.files import read_text, replace_text
from lonas_edge.network.modeling import faster_dtype
from lonas_edge.network.source import Source
from lonas_edge.pipeline.data import typical
from lonas_edge.pipeline.tasks import PipelineTask
from lonas_edge.processes import peak_memory
from lonas_edge.progress import Progress
from lonas_edge.schema import Record
from lonas_edge.training.defaults import precision_of
from lonas_edge.training.inputs import Inputs, open_inputs, with_teacher
from lonas_edge.training.options import TrainOptions
from lonas_edge.training.train import train

if TYPE_CHECKING:
    from lonas_edge.pipeline.plan import Plan

PROBE = "probe.json"
_STEPS = 3  # the first is not timed
_BACKWARD = 2.5  # a training step of LoRA takes this many forward passes
_IR_SPEED = 2.0  # an IR computes a prompt this many times as fast as PyTorch
_LOAD, _EXPORT = 12.0, 10.0  # seconds to start a training, and an export without its weights
_EXPORT_WEIGHT = 3e-8  # seconds of an export per parameter
_BANDWIDTH = 8e9  # bytes of weights per second that generation reads on two cores
_ROUNDS, _TABLE_ROUNDS, _TABLE_NETWORKS = 24, 16, 2  # generations of each network with warm-ups
_SEARCHED = 0.6  # of the evaluations that a search may take are usually needed, the sensitivity table included


@dataclass(frozen=True)
class Probe(Record):
    """Timed training steps.

    Attributes:
        precision: The faster precision on this machine, or the requested one.
        lora_step: Seconds of a step of the fine-tuning; of encoders, of the recovery without quantization-aware training.
        recovery_step: Seconds of a step of the recovery.
        tokens: Mean tokens per example.
        peak_bytes: Peak memory of the process.
        inputs: Hash of the examples, and options that the times depend on.
        requested: The precision as it was requested, such as auto.
    """

    NAME: ClassVar = "compress-probe"
    VERSION: ClassVar = 1
    AGAIN: ClassVar = "Delete it."

    precision: str
    lora_step: float
    recovery_step: float
    tokens: float
    peak_bytes: int
    inputs: dict[str, str] = field(default_factory=dict)
    requested: str = "auto"


@dataclass(frozen=True)
class Estimate:
    """Seconds by step, and bytes of memory and disk."""

    seconds: dict[str, float]
    memory_bytes: int
    disk_bytes: int


def probe(
    task: PipelineTask, base: str, data: Path, prompt: str | None, qat: str | None, precision: str, progress: Progress
) -> Probe:
    """Time a few steps of the fine-tuning and of the recovery on typical examples, a micro-batch each.

    Args:
        task: The model's task; one that is not fine-tuned has steps of the recovery only.
        base: The base model.
        data: The training examples, JSON Lines.
        prompt: The prompt template.
        qat: Weight format of quantization-aware training, or None.
        precision: Compute precision; auto chooses the faster of two.
        progress: Reports the steps.
    """
    with TemporaryDirectory(prefix="lonas-edge-") as temporary:
        folder = Path(temporary)
        sample = folder / "typical.jsonl"
        lines = typical(read_text(data, "the training examples", 2**33).split("\n"), _STEPS * task.micro_batch)
        replace_text(sample, "\n".join(lines) + "\n")
        inputs = open_inputs(base, sample, None, elastic=False)
        inputs = inputs if task.adapts else with_teacher(inputs, base)
        chosen = precision != "auto" or torch.cuda.is_available()
        fixed = precision_of(TrainOptions(precision=precision))
        precisions = [fixed] if chosen else list(dict.fromkeys(("fp32", faster_dtype())))
        timed = {}
        for number, name in enumerate(precisions):
            progress(f"Timing training steps in {name}", (number + 0.5) / (len(precisions) + 1))
            timed[name] = _step_seconds(task, inputs, TrainOptions(prompt=prompt, precision=name), folder)
        fastest = min(timed, key=lambda name: timed[name][0])
        lora, tokens = timed[fastest]
        recovery = lora
        if task.adapts or qat:
            progress("Timing steps of the recovery", len(precisions) / (len(precisions) + 1))
            options = TrainOptions(prompt=prompt, precision=fastest)
            options = replace(options, weight_format=qat, ratio=1.0) if qat else options  # the choice of layers takes no step
            recovery, _ = _step_seconds(task, with_teacher(inputs, base), options, folder)
    return Probe(fastest, round(lora, 3), round(recovery, 3), round(tokens, 1), peak_memory())


def _step_seconds(task: PipelineTask, inputs: Inputs, options: TrainOptions, folder: Path) -> tuple[float, float]:
    """Seconds of a whole batch, from parts of it, and mean tokens of an example."""
    marks: dict[int, float] = {}

    def report(step: int, _steps: int, _log: Mapping[str, float]) -> None:
        marks.setdefault(step, time.perf_counter())

    record = train(
        inputs,
        folder / "timed",
        replace(options, steps=_STEPS, batch_size=task.micro_batch, save_steps=1000, log_steps=_STEPS),
        overwrite=True,
        report=report,
    )
    assert record and record.tokens
    seconds = (marks[max(marks)] - marks[1]) / (max(marks) - 1)
    return seconds * task.batch / task.micro_batch, record.tokens / record.steps / task.micro_batch


def estimate(plan: "Plan", pending: Mapping[str, str]) -> Estimate:
    """Estimate the pending steps; `pending` maps their names to their kinds."""
    seconds = {name: round(_seconds(plan, kind), 1) for name, kind in pending.items()}
    disk = sum(disk_bytes(plan.task, plan.source, plan.cost_settings.weight_format, kind) for kind in pending.values())
    return Estimate(seconds, plan.probe.peak_bytes, disk)


def least_disk_bytes(task: PipelineTask, source: Source, weight_format: str, networks: int) -> int:
    """Estimate the bytes of all steps of a first run, before any of them is planned."""
    once, each = ("fine-tune", "search", "baselines"), ("recover", "export")
    kinds = [*(once if source.adapter is None and task.adapts else once[1:]), *(each * networks)]
    return sum(disk_bytes(task, source, weight_format, kind) for kind in kinds)


def _seconds(plan: "Plan", kind: str) -> float:
    probed, source = plan.probe, plan.source
    passes = _BACKWARD if plan.task.adapts else _BACKWARD + 1  # the steps of others include the teacher's pass
    forward = probed.lora_step / plan.lora_options.batch_size / passes  # of an example
    held_out = plan.counts["held_out"] * forward
    parameters = source.sizes(source.unpruned).parameters
    export = _EXPORT + _EXPORT_WEIGHT * parameters
    settings = plan.cost_settings
    per_token = source.sizes(source.unpruned).bytes[settings.weight_format] / _BANDWIDTH
    prompt = settings.prompt_len / probed.tokens * forward / _IR_SPEED
    generation = prompt + settings.new_tokens * per_token
    networks = len(plan.picks) + 2
    search = plan.search_options
    return {
        "fine-tune": _LOAD + plan.lora_steps * probed.lora_step + _evaluations(plan.lora_options) * held_out,
        "trim": 20.0,
        "space": 1.0,
        "search": _TABLE_NETWORKS * (export + _TABLE_ROUNDS * generation)
        + _SEARCHED * search.evals * search.num_prompts * forward,
        "recover": 2 * _LOAD + plan.recovery_steps * probed.recovery_step + _evaluations(plan.recovery_options) * held_out,
        "export": 1.5 * export,
        "baselines": (3 + len(plan.task.references)) * export,
        "measure": networks * (5 * _ROUNDS / 12 + _ROUNDS * generation + held_out / _IR_SPEED) + 2 * _LOAD,
    }[kind]


def _evaluations(options: TrainOptions) -> int:
    """Evaluations of the held-out loss in a training: before it, and at each interval."""
    assert options.steps and options.eval_steps
    return 1 + math.ceil(options.steps / options.eval_steps)


def disk_bytes(task: PipelineTask, source: Source, weight_format: str, kind: str) -> int:
    """Bytes that a step adds: networks, and adapters with their checkpoints."""
    bytes_of = source.sizes(source.unpruned).bytes
    network = bytes_of[weight_format]
    linears = source.architecture.linears.values()
    adapter = 10 * 4 * TrainOptions().rank * sum(linear.in_features + linear.out_features for linear in linears)
    return round(
        {
            "fine-tune": adapter,
            "trim": bytes_of["fp32"],
            "space": 0,
            "search": _TABLE_NETWORKS * network,
            "recover": adapter,
            "export": network,
            "baselines": bytes_of["int8"] + bytes_of["int4"] + bytes_of["fp32"] * (1 + len(task.references)),
            "measure": 0,
        }[kind]
    )
