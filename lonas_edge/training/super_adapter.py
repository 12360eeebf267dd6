"""Write the directory of a super-adapter; any PEFT client loads it on the base."""

import json
import os
from pathlib import Path

from peft import PeftModel

from lonas_edge.data.pooling import Pooling, read_pooling
from lonas_edge.families import CAUSAL_LM, CLASSIFICATION
from lonas_edge.files import read_json
from lonas_edge.network import adapters
from lonas_edge.network.channel_order import ChannelOrder
from lonas_edge.network.location import TRAINING, Located
from lonas_edge.network.training_record import TrainingRecord

_ORDER = (
    "lonas-edge sorts the channels of base and adapter by importance on loading (`channel_order.safetensors`). The adapter is "
    "stored in the base's order: plain PEFT loads it as the maximal network."
)


def write_super_adapter(
    folder: Path,
    model: PeftModel,
    base: Located,
    output: Path,
    order: ChannelOrder,
    record: TrainingRecord,
    pooling: Pooling | None = None,
) -> None:
    """Write adapter, channel order, record and model card; the adapter returns to the base's own channel order.

    The `pooling` that an embedding model was trained with is written, too, where it is not that of the base.
    """
    order.inverse().apply_to_model(model, lambda name: ".lora_" in name)
    config = next(iter(model.peft_config.values()))
    config.base_model_name_or_path, config.revision = _reference(base, output), base.revision
    model.save_pretrained(folder, save_embedding_layers=False)
    written = read_json(folder / adapters.CONFIG)
    if isinstance(written["target_modules"], list):  # PEFT writes a set, in any order; otherwise a regular expression
        written["target_modules"].sort()
    (folder / adapters.CONFIG).write_text(json.dumps(written, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    if order:
        order.save(folder)
    if pooling and pooling.stated and pooling != read_pooling(base.folder):
        pooling.write(folder, model.config.hidden_size)
    record.write(folder / TRAINING)
    (folder / "README.md").write_text(super_adapter_card(record), encoding="utf-8")


def _reference(base: Located, output: Path) -> str:
    """Return a hub id, or the relative path to a local directory, so that both can be moved together; with slashes."""
    if base.revision is not None:
        return base.name
    folder, final = base.folder.absolute(), output.absolute().parent.resolve() / output.name
    try:
        return os.path.relpath(folder, final).replace(os.sep, "/")
    except ValueError:  # on another drive
        return folder.as_posix()


def super_adapter_card(record: TrainingRecord) -> str:
    """Write the model card, Markdown with the metadata block that model hubs read."""
    base, options, recovered, prompt = record.base, record.options, record.recovered, record.prompt
    pipeline = record.pipeline or (CLASSIFICATION if record.task else CAUSAL_LM).pipeline_tag
    lonas, stored = record.search_space is not None, options.get("weight_format")
    title, started = "LoRA adapter", ""
    if lonas:
        title = f"LoNAS adapter of one sub-network ({recovered.subnetwork})" if recovered else "LoNAS super-adapter"
    if recovered:
        started = f"Training started from the {'super-' if lonas else 'LoRA '}adapter `{recovered.super_adapter}`."
    if recovered and lonas and not recovered.sha256:
        started = f"It recovers the {recovered.subnetwork} sub-network of the base; lonas-edge loads this one."
    elif recovered and lonas:
        started += f" lonas-edge loads its {recovered.subnetwork} sub-network; parts of other sub-networks are unchanged."
    data = ", ".join(f"`{file.name}` ({file.examples} examples)" for file in record.data)
    learned = f"GLUE's {record.task}" if record.task else f"pooling: {record.pooling}" if record.pooling else "without labels"
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
        paragraphs.append(_ORDER)
    export = "lonas-edge export THIS_DIRECTORY --output DIR" + (" --subnet heuristic" if lonas and not recovered else "")
    paragraphs.append(f"```\n{export}{f' --weight-format {stored}' if stored else ''}\n```")
    if prompt:
        paragraphs.append(f"Its prompt:\n\n```\n{prompt.without_input + prompt.response}\n```")
    head = ["---", "library_name: peft", *([f"base_model: {base.name}"] if base.revision else [])]
    head += [f"tags: [{'lonas, ' if lonas else ''}lora, {pipeline}]", f"pipeline_tag: {pipeline}", "---", ""]
    return "\n".join(head) + "\n\n".join(filter(None, paragraphs)) + "\n"
