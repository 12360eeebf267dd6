"""Write the directory of a super-adapter; any PEFT client loads it on the base."""

import json
import os
from pathlib import Path

from peft import PeftModel

from lonas_edge.data.pooling import Pooling, read_pooling
from lonas_edge.files import read_json
from lonas_edge.network import adapters
from lonas_edge.network.channel_order import ChannelOrder
from lonas_edge.network.source import TRAINING, Located
from lonas_edge.network.training_record import TrainingRecord
from lonas_edge.training.card import super_adapter_card


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
