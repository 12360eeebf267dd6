"""Make `training.json`: how an adapter was trained."""

import json
import math
from dataclasses import asdict
from typing import Any

import torch
from accelerate import PartialState
from transformers import TrainerState

from lonas_edge.network.training_record import (
    EvalData,
    EvalLoss,
    Logged,
    Recovered,
    Taught,
    TrainedBase,
    TrainedData,
    TrainingRecord,
)
from lonas_edge.training.inputs import Inputs, Start, device_of
from lonas_edge.training.options import EVAL_LOSS, TrainOptions
from lonas_edge.training.schedule import Schedule
from lonas_edge.training.tokens import Tokenized
from lonas_edge.training.working import Hashes, Resumption
from lonas_edge.versions import versions

_PACKAGES = ("lonas-edge", "torch", "transformers", "peft", "accelerate")


def make_record(
    inputs: Inputs,
    options: TrainOptions,
    schedule: Schedule,
    hashes: Hashes,
    state: TrainerState,
    tokens: Tokenized,
    reordered: bool,
    int8_layers: tuple[str, ...],
    resumption: Resumption,
    processes: PartialState,
    seconds: float,
) -> TrainingRecord:
    """Make the record of a finished training; `hashes` are from its start, `seconds` those of this run."""
    start, glue = inputs.start, inputs.data.options.glue
    return TrainingRecord(
        base=TrainedBase(inputs.base.name, inputs.base.revision, hashes.base),
        search_space=inputs.space.hash if inputs.space.groups else None,
        recovered=_recovered(start, hashes) if start else None,
        teacher=Taught(inputs.teacher.name, hashes.teacher) if inputs.teacher else None,
        data=_data(inputs, hashes, tokens),
        task=glue.name if glue else (start.source.training.task if start and start.source.training else None),
        prompt=tokens.prompting.template if tokens.prompting else None,
        chat_template=tokens.prompting.chat if tokens.prompting else None,
        options=json.loads(json.dumps(asdict(options))),
        reordered=reordered,
        stages=tuple(asdict(stage) for stage in schedule.stages),
        warmup_steps=schedule.warmup_steps,
        steps=state.global_step,
        resumed_from_step=resumption.step,
        damaged_checkpoints=resumption.damaged,
        seconds=round(seconds, 1),
        device=torch.cuda.get_device_name() if device_of(options) == "cuda" else "cpu",
        precision=options.precision,
        processes=processes.num_processes,
        losses=tuple(logged(entry) for entry in state.log_history if "loss" in entry),
        versions=versions(_PACKAGES),
        tokens=state.num_input_tokens_seen or None,
        eval_data=_eval_data(inputs, hashes, tokens, state),
        int8_layers=int8_layers,
        pipeline=inputs.data.kind.pipeline_tag,
        pooling=inputs.data.pooling.described if inputs.data.pooling else None,
    )


def _eval_data(inputs: Inputs, hashes: Hashes, tokens: Tokenized, state: TrainerState) -> EvalData | None:
    if inputs.eval_data is None:
        return None
    losses = {entry["step"]: entry[EVAL_LOSS] for entry in state.log_history if EVAL_LOSS in entry}
    finite = tuple(EvalLoss(step, loss) for step, loss in losses.items() if math.isfinite(loss))
    [digest] = hashes.eval_data
    return EvalData(inputs.eval_data.files[0].path.name, digest, len(tokens.held_out), tokens.also_trained, finite)


def _recovered(start: Start, hashes: Hashes) -> Recovered:
    return Recovered(start.located.name, hashes.start, start.subnetwork.name, start.subnetwork.widths)


def _data(inputs: Inputs, hashes: Hashes, tokens: Tokenized) -> tuple[TrainedData, ...]:
    return tuple(
        TrainedData(file.path.name, sha256, file.kind, file.weight, len(tokens.files[index]), tokens.dropped(file, index))
        for index, (file, sha256) in enumerate(zip(inputs.data.files, hashes.data, strict=True))
    )


def logged(entry: dict[str, Any]) -> Logged:
    """Keep the finite values of a log entry: fp16 skips steps whose gradients are not finite, and JSON has no Infinity."""
    names = ("loss", "learning_rate", "grad_norm")
    return Logged(entry["step"], **{name: entry[name] for name in names if name in entry and math.isfinite(entry[name])})
