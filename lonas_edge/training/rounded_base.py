"""The base of a quantization-aware recovery: weights rounded by GPTQ, from where training starts.

GPTQ changes all weights, which no adapter can hold. So the changed base is stored with the adapter, as a checkpoint of its own.
"""

import shutil
from collections.abc import Collection
from pathlib import Path
from random import Random

import torch

from lonas_edge.data.pooling import read_pooling
from lonas_edge.exporting.exported import link_files
from lonas_edge.formats import FORMATS
from lonas_edge.network.channel_order import ChannelOrder
from lonas_edge.network.checkpoints import open_base
from lonas_edge.network.gptq import round_base
from lonas_edge.network.shards import write_shards
from lonas_edge.network.source import BASE
from lonas_edge.network.stored import StoredWeights, plain
from lonas_edge.network.super_network import SuperNetwork
from lonas_edge.space.architecture import Architecture
from lonas_edge.training.inputs import Inputs
from lonas_edge.training.options import TrainOptions
from lonas_edge.training.schedule import Schedule
from lonas_edge.training.tokens import Tokenized
from lonas_edge.training.training_data import Encoded

_PER_COLUMN = 8  # tokens to calibrate on, for each column of the widest matrix
_TOKENS = 128  # of an example at most, and at most twice the mean: padding costs time
_COPIED = {".json", ".txt", ".model", ".jinja"}


def rounds_base(schedule: Schedule, options: TrainOptions) -> bool:
    """Whether one network is trained for fewer than 8 bits."""
    return schedule.fixed is not None and options.weight_format is not None and FORMATS[options.weight_format].bits < 8


def write_rounded_base(
    network: SuperNetwork,
    inputs: Inputs,
    tokens: Tokenized,
    schedule: Schedule,
    options: TrainOptions,
    int8_layers: Collection[str],
    order: ChannelOrder,
    device: torch.device,
    working: Path,
) -> None:
    """Round the base of a live network on training examples, and write it to `BASE` in the working directory."""
    assert schedule.fixed is not None and options.weight_format
    batch = inputs.data.collator(tokens.tokenizer)(_calibration(inputs, tokens, options.seed))
    network.model.to(device)
    weights = StoredWeights(network, options.weight_format, options.head_format, int8_layers)
    changed = round_base(network, schedule.fixed, {name: value.to(device) for name, value in batch.items()}, weights)
    new = working / f"{BASE}.incomplete"
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir()
    _write(network, inputs, {f"{name}.weight" for name in changed}, order.inverse(), new)
    new.replace(working / BASE)


def calibration_tokens(architecture: Architecture) -> int:
    """Number of tokens to calibrate on."""
    return _PER_COLUMN * max(linear.in_features for linear in architecture.linears.values())


def _calibration(inputs: Inputs, tokens: Tokenized, seed: int) -> list[Encoded]:
    """Training examples, shortened."""
    examples, wanted = tokens.examples, calibration_tokens(inputs.architecture)
    mean = sum(len(example["input_ids"]) for example in examples) / len(examples)
    chosen: list[Encoded] = []
    for example in Random(seed).sample(examples, len(examples)):
        chosen.append(inputs.data.shortened(example, min(_TOKENS, round(2 * mean))))
        wanted -= len(chosen[-1]["input_ids"])
        if wanted <= 0:
            break
    return chosen


def _write(network: SuperNetwork, inputs: Inputs, changed: Collection[str], order: ChannelOrder, folder: Path) -> None:
    """Write the base with the changed weights of a live network; `order` leads back to the base's own."""
    source = inputs.base.folder
    for path in source.iterdir():
        if path.is_file() and (path.suffix in _COPIED or path.name.startswith("LICENSE")) and ".index." not in path.name:
            shutil.copyfile(path, folder / path.name)
    if pooling := read_pooling(source):
        pooling.write(folder, inputs.architecture.config.hidden_size)
    tensors = open_base(source, inputs.architecture, inputs.architecture.head)
    shapes = {name: shape for name, shape in tensors.shapes.items() if name in inputs.architecture.shapes}
    dtypes = {name: getattr(torch, tensors.dtypes[name]) for name in shapes}

    def read(name: str) -> torch.Tensor:
        if name not in changed:
            return tensors.read(name)
        live = plain(network.base.get_submodule(name.removesuffix(".weight"))).weight.detach().cpu()
        return order.apply(name, live).to(dtypes[name])

    write_shards(folder, shapes, dtypes, read)


def load_rounded_base(network: SuperNetwork, working: Path, order: ChannelOrder) -> None:
    """Give a live network the layers' weights of `BASE` in a working directory, as they are stored."""
    tensors = open_base(working / BASE, network.elasticity.architecture, network.elasticity.architecture.head)
    for module in network.elasticity.architecture.linears:
        name = f"{module}.weight"
        if network.elasticity.architecture.split(module)[0] and name in tensors.shapes:
            plain(network.base.get_submodule(module)).weight.data.copy_(order.apply(name, tensors.read(name)))


def publish_rounded_base(working: Path, folder: Path) -> None:
    """Link or copy `BASE` from the working directory into the output."""
    link_files(working / BASE, folder / BASE)
