"""The layers that quantization-aware training keeps in INT8: those that lose most by rounding, for their size."""

from random import Random

import torch

from lonas_edge.formats import FORMATS
from lonas_edge.network.rounding import attention_inputs, most_sensitive, rounding_costs
from lonas_edge.network.stored import storage
from lonas_edge.network.super_network import SuperNetwork
from lonas_edge.training.inputs import Inputs
from lonas_edge.training.options import TrainOptions
from lonas_edge.training.schedule import Schedule
from lonas_edge.training.tokens import Tokenized

FILE = "int8_layers.json"  # in the working directory: a resumed training keeps the choice
_EXAMPLES, _TOKENS, _BATCH = 32, 128, 8  # examples measured, tokens of each, examples at once


def is_mixed(options: TrainOptions) -> bool:
    """Whether some layers stay INT8."""
    return options.weight_format is not None and FORMATS[options.weight_format].outer is not None and options.ratio < 1


def choose_int8_layers(
    network: SuperNetwork, inputs: Inputs, tokens: Tokenized, schedule: Schedule, options: TrainOptions, device: torch.device
) -> tuple[str, ...]:
    """Measure the costs of rounding on training examples: of the trained sub-network, or of the maximal one.

    Returns:
        Module paths of layers with at most a share of 1 - `options.ratio` of the layers' weights.
    """
    widths = inputs.elasticity.maximal if schedule.fixed is None else schedule.fixed
    drawn = Random(options.seed).sample(tokens.examples, min(_EXAMPLES, len(tokens.examples)))
    shortened = [inputs.data.shorten(example, _TOKENS) for example in drawn]
    examples = sorted(shortened, key=lambda example: len(example["input_ids"]))
    collate = inputs.data.collator(tokens.tokenizer)
    network.model.to(device)
    batch = min(_BATCH, options.micro_batch_size or _BATCH)
    batches = [
        {name: tensor.to(device) for name, tensor in collate(examples[start : start + batch]).items()}
        for start in range(0, len(examples), batch)
    ]
    assert options.weight_format
    costs = rounding_costs(network, widths, batches, options.weight_format)
    layers = {name: how.widths for name, how in storage(network, widths, FORMATS[options.weight_format]).items()}
    given = inputs.architecture.eight_bits  # INT8 in any case
    sizes = {name: part.out_features * part.in_features for name, part in layers.items() if f"{name}.weight" not in given}
    return most_sensitive(costs, sizes, 1 - options.ratio, attention_inputs(inputs.architecture))
