"""The record of a training, `training.json`, and what a resumed training must share with the one before."""

import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerState

from lonas_edge.files import sha256
from lonas_edge.network.channel_order import FILE as ORDER
from lonas_edge.network.location import fingerprint
from lonas_edge.network.training_record import (
    EvalData,
    EvalLoss,
    Logged,
    Recovered,
    TeacherModel,
    TrainedBase,
    TrainedData,
    TrainingRecord,
)
from lonas_edge.training.defaults import device_of
from lonas_edge.training.inputs import Inputs
from lonas_edge.training.options import EVAL_LOSS, TrainOptions
from lonas_edge.training.schedule import Schedule
from lonas_edge.training.tokens import Tokenized
from lonas_edge.versions import versions

_PACKAGES = ("lonas-edge", "torch", "transformers", "peft", "accelerate")
_FREE_TO_CHANGE = {"save_steps", "log_steps", "eval_steps", "lr"}


@dataclass(frozen=True)
class Hashes:
    """SHA-256 of the inputs' files, by name; `data` in the order of the files."""

    base: dict[str, str]
    tokenizer: dict[str, str]
    start: dict[str, str]
    teacher: dict[str, str]
    data: tuple[str, ...]
    eval_data: tuple[str, ...] = ()

    @classmethod
    def of(cls, inputs: Inputs) -> "Hashes":
        """Hash the files of the inputs."""
        folder, adapter = inputs.base.folder, inputs.source.adapter
        start = fingerprint(adapter.folder) | _hash([adapter.folder / ORDER]) if adapter else {}
        eval_data = inputs.eval_data.files if inputs.eval_data else ()
        return cls(
            fingerprint(folder),
            _hash([folder / "tokenizer.json", folder / "tokenizer.model"]),
            start,
            _hash(inputs.teacher.files) if inputs.teacher else {},
            tuple(sha256(file.path) for file in inputs.data.files),
            tuple(sha256(file.path) for file in eval_data),
        )


def _hash(files: Iterable[Path]) -> dict[str, str]:
    return {path.name: sha256(path) for path in files if path.exists()}


def identity(inputs: Inputs, hashes: Hashes, options: TrainOptions, schedule: Schedule, processes: int) -> dict[str, Any]:
    """Collect the settings and hashes that a resumed training must share, as JSON."""
    files = enumerate(zip(inputs.data.files, hashes.data, strict=True), 1)
    content = {
        **asdict(hashes),
        "data": {f"{number} {file.path.name}": [digest, file.weight] for number, (file, digest) in files},
        "pooling": asdict(inputs.data.pooling) if inputs.data.pooling else None,
        "widths": inputs.subnetwork.widths if inputs.subnetwork else (),
        "search_space": inputs.space.hash,
        "stages": [{name: value for name, value in asdict(stage).items() if name != "lr"} for stage in schedule.stages],
        "processes": processes,
        "options": {name: value for name, value in asdict(options).items() if name not in _FREE_TO_CHANGE},
    }
    frozen: dict[str, Any] = json.loads(json.dumps(content))
    return frozen


def make_record(
    inputs: Inputs,
    options: TrainOptions,
    schedule: Schedule,
    hashes: Hashes,
    state: TrainerState,
    tokens: Tokenized,
    *,
    reordered: bool,
    int8_layers: tuple[str, ...],
    resumed_from_step: int | None,
    processes: int,
    seconds: float,
) -> TrainingRecord:
    """Make the record of a finished training; `hashes` are from its start, `seconds` those of this run."""
    source, glue, recovered = inputs.source, inputs.data.options.glue, None
    if inputs.subnetwork:
        name = (source.adapter or source.base).name
        recovered = Recovered(name, hashes.start, inputs.subnetwork.name, inputs.subnetwork.widths)
    return TrainingRecord(
        base=TrainedBase(inputs.base.name, inputs.base.revision, hashes.base),
        search_space=inputs.space.hash if inputs.space.groups else None,
        recovered=recovered,
        teacher=TeacherModel(inputs.teacher.name, hashes.teacher) if inputs.teacher else None,
        data=tuple(
            TrainedData(file.path.name, digest, file.kind, file.weight, len(tokens.files[index]), tokens.dropped(file, index))
            for index, (file, digest) in enumerate(zip(inputs.data.files, hashes.data, strict=True))
        ),
        task=glue.name if glue else (source.training.task if source.training else None),
        prompt=tokens.prompting.template if tokens.prompting else None,
        chat_template=tokens.prompting.chat if tokens.prompting else None,
        options=json.loads(json.dumps(asdict(options))),
        stages=tuple(asdict(stage) for stage in schedule.stages),
        warmup_steps=schedule.warmup_steps,
        steps=state.global_step,
        device=torch.cuda.get_device_name() if device_of(options) == "cuda" else "cpu",
        precision=options.precision,
        losses=tuple(_read_log(entry) for entry in state.log_history if "loss" in entry),
        versions=versions(_PACKAGES),
        tokens=state.num_input_tokens_seen or None,
        eval_data=_eval_data(inputs, hashes, tokens, state),
        pipeline=inputs.data.kind.pipeline_tag,
        pooling=inputs.data.pooling.description if inputs.data.pooling else None,
        reordered=reordered,
        int8_layers=int8_layers,
        resumed_from_step=resumed_from_step,
        processes=processes,
        seconds=round(seconds, 1),
    )


def _eval_data(inputs: Inputs, hashes: Hashes, tokens: Tokenized, state: TrainerState) -> EvalData | None:
    if inputs.eval_data is None:
        return None
    losses = {entry["step"]: entry[EVAL_LOSS] for entry in state.log_history if EVAL_LOSS in entry}
    finite = tuple(EvalLoss(step, loss) for step, loss in losses.items() if math.isfinite(loss))
    return EvalData(inputs.eval_data.path.name, hashes.eval_data[0], len(tokens.held_out), tokens.also_trained, finite)


def _read_log(entry: dict[str, Any]) -> Logged:
    """Keep the finite values of a log entry: fp16 skips steps whose gradients are not finite, and JSON has no Infinity."""
    names = ("loss", "learning_rate", "grad_norm")
    return Logged(entry["step"], **{name: entry[name] for name in names if name in entry and math.isfinite(entry[name])})
