"""The directory of a super-adapter, with its record, `training.json`; and what a resumed training shares with it."""

import json
import math
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerState

from lonas_edge.data.pooling import read_pooling
from lonas_edge.data.task import Task
from lonas_edge.data.texts import PAIR, TRIPLET
from lonas_edge.files import sha256
from lonas_edge.network.channel_order import FILE as ORDER
from lonas_edge.network.location import TRAINING, Located, fingerprint
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
from lonas_edge.training.job import Job, Trained
from lonas_edge.training.options import EVAL_LOSS
from lonas_edge.training.tokens import Tokenized
from lonas_edge.versions import versions

_PACKAGES = ("lonas-edge", "torch", "transformers", "peft", "accelerate")
_FREE_TO_CHANGE = {"save_steps", "log_steps", "eval_steps", "lr", "gradient_checkpointing"}
_SORTED = (
    "lonas-edge sorts the channels of base and adapter by importance on loading (`channel_order.safetensors`). The adapter is "
    "stored in the base's order: plain PEFT loads it as the maximal network."
)


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
        folder, adapter = inputs.source.base.folder, inputs.source.adapter
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


def identity(job: Job, hashes: Hashes) -> dict[str, Any]:
    """Collect the settings and hashes that a resumed training must share, as JSON."""
    inputs, free = job.inputs, set(_FREE_TO_CHANGE)
    if inputs.teacher or not {PAIR, TRIPLET} & set(inputs.data.kinds):  # whose negatives are those of the micro-batch
        free.add("micro_batch_size")
    files = enumerate(zip(inputs.data.files, hashes.data, strict=True), 1)
    content = {
        **asdict(hashes),
        "data": {f"{number} {file.path.name}": [digest, file.weight] for number, (file, digest) in files},
        "pooling": asdict(inputs.data.pooling) if inputs.data.pooling else None,
        "widths": inputs.subnetwork.widths if inputs.subnetwork else (),
        "search_space": inputs.source.space.hash,
        **({"channel_order": inputs.source.order.sha256} if inputs.source.ordered_by_space else {}),
        "stages": [{name: value for name, value in asdict(stage).items() if name != "lr"} for stage in job.schedule.stages],
        "processes": job.state.num_processes,
        "options": {name: value for name, value in asdict(job.options).items() if name not in free},
    }
    frozen: dict[str, Any] = json.loads(json.dumps(content))
    return frozen


def make_record(job: Job, hashes: Hashes, trained: Trained, resumed_from: int | None, seconds: float) -> TrainingRecord:
    """Make the record of a finished training; `hashes` are from its start, `seconds` those of this run."""
    inputs, options, tokens, state = job.inputs, job.options, job.tokens, trained.state
    source, glue, pooling, recovered = inputs.source, inputs.data.options.glue, inputs.data.pooling, None
    task = glue.name if glue and glue.published else source.training.task if source.training else None
    classes = glue.outputs if glue and not glue.published else source.training.classes if source.training else ()
    if inputs.subnetwork:
        name = (source.adapter or source.base).name
        recovered = Recovered(name, hashes.start, inputs.subnetwork.name, inputs.subnetwork.widths)
    return TrainingRecord(
        base=TrainedBase(inputs.source.base.name, inputs.source.base.revision, hashes.base),
        search_space=inputs.source.space.hash if inputs.source.space.groups else None,
        recovered=recovered,
        teacher=TeacherModel(inputs.teacher.name, hashes.teacher) if inputs.teacher else None,
        data=tuple(
            TrainedData(file.path.name, digest, file.kind, file.weight, len(tokens.files[index]), tokens.dropped(file, index))
            for index, (file, digest) in enumerate(zip(inputs.data.files, hashes.data, strict=True))
        ),
        task=task,
        classes=classes,
        prompt=tokens.prompting.template if tokens.prompting else None,
        chat_template=tokens.prompting.chat if tokens.prompting else None,
        options=json.loads(json.dumps(asdict(options))),
        stages=tuple(asdict(stage) for stage in job.schedule.stages),
        warmup_steps=job.schedule.warmup_steps,
        steps=state.global_step,
        device=torch.cuda.get_device_name() if device_of(options) == "cuda" else "cpu",
        precision=options.dtype,
        losses=tuple(_read_log(entry) for entry in state.log_history if "loss" in entry),
        versions=versions(_PACKAGES),
        tokens=state.num_input_tokens_seen or None,
        eval_data=_eval_data(inputs.eval_data, hashes, tokens, state),
        pipeline=inputs.data.kind.pipeline_tag,
        pooling=pooling.description if pooling else None,
        reordered=bool(trained.order),
        int8_layers=trained.int8_layers,
        resumed_from_step=resumed_from,
        processes=job.state.num_processes,
        seconds=round(seconds, 1),
    )


def _eval_data(data: Task | None, hashes: Hashes, tokens: Tokenized, state: TrainerState) -> EvalData | None:
    if data is None:
        return None
    losses = {entry["step"]: entry[EVAL_LOSS] for entry in state.log_history if EVAL_LOSS in entry}
    finite = tuple(EvalLoss(step, loss) for step, loss in losses.items() if math.isfinite(loss))
    return EvalData(data.path.name, hashes.eval_data[0], len(tokens.held_out), tokens.also_trained, finite)


def _read_log(entry: dict[str, Any]) -> Logged:
    """Keep the finite values of a log entry: fp16 skips steps whose gradients are not finite, and JSON has no Infinity."""
    names = ("loss", "learning_rate", "grad_norm")
    return Logged(entry["step"], **{name: entry[name] for name in names if name in entry and math.isfinite(entry[name])})


def write_super_adapter(folder: Path, job: Job, trained: Trained, output: Path, record: TrainingRecord) -> None:
    """Write adapter, channel order, record and model card; the adapter returns to the base's own channel order.

    The pooling that an embedding model was trained with is written, too, where it is not that of the base.
    """
    base, pooling, model, order = job.inputs.source.base, job.inputs.data.pooling, trained.network.model, trained.order
    order.inverse().apply_to_model(model, lambda name: ".lora_" in name)
    config = next(iter(model.peft_config.values()))
    config.base_model_name_or_path, config.revision = _reference(base, output), base.revision
    if not isinstance(config.target_modules, str):  # a set, which PEFT would write in any order
        config.target_modules = sorted(config.target_modules)
    model.save_pretrained(folder, save_embedding_layers=False)
    if order:
        order.save(folder)
    known = read_pooling(base.folder) if pooling else None
    if pooling and known and known.max_length is None:
        pooling = replace(pooling, max_length=None)  # the tokenizer's
    if pooling and pooling.stated and pooling != known:
        pooling.write(folder, model.config.hidden_size)
    record.write(folder / TRAINING)
    (folder / "README.md").write_text(_card(record), encoding="utf-8")


def _reference(base: Located, output: Path) -> str:
    """Return a hub id, or the relative path to a local directory, so that both can be moved together; with slashes."""
    if base.revision is not None:
        return base.name
    folder, final = base.folder.absolute(), output.absolute().parent.resolve() / output.name
    try:
        return os.path.relpath(folder, final).replace(os.sep, "/")
    except ValueError:  # on another drive
        return folder.as_posix()


def _card(record: TrainingRecord) -> str:
    """Write the model card, Markdown with the metadata block that model hubs read."""
    base, options, recovered, prompt = record.base, record.options, record.recovered, record.prompt
    lonas, stored = record.search_space is not None, options.get("weight_format")
    title, started = "LoNAS super-adapter" if lonas else "LoRA adapter", ""
    if recovered:
        started = f"Training started from `{recovered.super_adapter}`."
    if recovered and lonas:
        title = f"LoNAS adapter of one sub-network ({recovered.subnetwork})"
        started += " lonas-edge loads this sub-network; parts of others are unchanged."
    data = ", ".join(f"`{file.name}` ({file.examples} examples)" for file in record.data)
    learned = f"GLUE's {record.task}" if record.task else f"pooling: {record.pooling}" if record.pooling else "without labels"
    learned = f"classes: {', '.join(record.classes)}" if record.classes else learned
    learned = f"prompt `{prompt.name}`" if prompt else learned
    last = f", last loss {record.losses[-1].loss:.3f}" if record.losses else ""
    paragraphs = [
        f"# {title} for {base.name}",
        f"Trained by lonas-edge: rank {options['rank']}, alpha {options['alpha']:g}, {record.steps} steps of "
        f"{options['batch_size']} examples of {data}, {learned}{last}. `training.json` has the complete record.",
        started,
    ]
    if record.teacher:
        paragraphs.append(f"The loss is the distance of the outputs from those of the frozen teacher `{record.teacher.name}`.")
    if stored:
        paragraphs.append(
            f"It was trained for `{stored}` (quantization-aware training). Export it so; calibrate only an INT4 head."
        )
    if record.reordered:
        paragraphs.append(_SORTED)
    export = "lonas-edge export THIS_DIRECTORY --output DIR" + (" --subnet heuristic" if lonas and not recovered else "")
    paragraphs.append(f"```\n{export}{f' --weight-format {stored}' if stored else ''}\n```")
    if prompt:
        paragraphs.append(f"Its prompt:\n\n```\n{prompt.without_input + prompt.response}\n```")
    head = ["---", "library_name: peft", *([f"base_model: {base.name}"] if base.revision else [])]
    head += [f"tags: [{'lonas, ' if lonas else ''}lora, {record.pipeline}]", f"pipeline_tag: {record.pipeline}", "---", ""]
    return "\n".join(head) + "\n\n".join(filter(None, paragraphs)) + "\n"
