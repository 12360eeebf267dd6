"""`training.json`: what a training was and how it went."""

import json
import math
from dataclasses import asdict
from typing import Any

import torch
from transformers import TrainerState

from lonas_edge.data.instructions import TEXT
from lonas_edge.network.solved import Solved
from lonas_edge.network.training_record import Logged, Specialized, Taught, TrainedBase, TrainedData, TrainingRecord
from lonas_edge.training.inputs import Inputs, Start, device_of, precision_of
from lonas_edge.training.plan import Plan
from lonas_edge.training.subjects import Portion
from lonas_edge.training.tokens import Tokens
from lonas_edge.training.working import Resumption, Settings
from lonas_edge.versions import versions

_PACKAGES = ("lonas-edge", "torch", "transformers", "peft", "accelerate")


def make_record(
    inputs: Inputs,
    plan: Plan,
    settings: Settings,
    state: TrainerState,
    tokens: Tokens,
    reordered: bool,
    resumption: Resumption,
    seconds: float,
    solved: Solved | None = None,
) -> TrainingRecord:
    """Make the record of a training that is done.

    Args:
        inputs: What it worked on.
        plan: Its steps.
        settings: Its settings, as they were at the start.
        state: The Trainer's, at the end.
        tokens: What was learned.
        reordered: Whether channels were put in order.
        resumption: Where this run went on, if it did.
        seconds: Of this run.
        solved: What solving the sub-network gave, if it was solved.

    Returns:
        The record.
    """
    options, start = settings.options, inputs.start
    return TrainingRecord(
        base=TrainedBase(inputs.base.name, inputs.base.revision, settings.base),
        search_space=settings.search_space if inputs.space.groups else None,
        specialized=_specialized(start, settings, solved) if start else None,
        teacher=Taught(inputs.teacher.name, settings.teacher) if inputs.teacher else None,
        data=tuple(
            _data(portion, sha256, len(encoded))
            for portion, (sha256, _), encoded in zip(inputs.subject.portions, settings.data, tokens.files, strict=True)
        ),
        task=inputs.subject.glue,
        prompt=tokens.prompting.template if tokens.prompting else None,
        chat_template=tokens.prompting.chat if tokens.prompting else None,
        options=json.loads(json.dumps(asdict(options))),
        reordered=reordered,
        stages=tuple(asdict(stage) for stage in plan.stages),
        warmup_steps=plan.warmup_steps,
        steps=state.global_step,
        resumed_from_step=resumption.step,
        damaged_checkpoints=resumption.damaged,
        seconds=round(seconds, 1),
        device=torch.cuda.get_device_name() if device_of(options) == "cuda" else "cpu",
        precision=precision_of(options),
        processes=settings.processes,
        losses=tuple(logged(entry) for entry in state.log_history if "loss" in entry),
        versions=versions(_PACKAGES),
    )


def _specialized(start: Start, settings: Settings, solved: Solved | None) -> Specialized:
    return Specialized(
        start.located.name, settings.start, start.subnetwork.name, settings.widths, solved or start.source.solved
    )


def _data(portion: Portion, sha256: str, learned: int) -> TrainedData:
    """A text gives pieces, so that none of them is left out."""
    dropped = 0 if portion.kind == TEXT else portion.count - learned
    return TrainedData(portion.path.name, sha256, portion.kind, portion.weight, learned, dropped)


def logged(entry: dict[str, Any]) -> Logged:
    """What is kept of an entry of the Trainer's log. With fp16 a step may be skipped, its gradients not finite."""
    names = ("loss", "learning_rate", "grad_norm")
    return Logged(entry["step"], **{name: entry[name] for name in names if name in entry and math.isfinite(entry[name])})
