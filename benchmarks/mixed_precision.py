"""Held-out loss of a model in INT4 without training, with a share of the weights in INT8: which matrices should stay INT8?

    python benchmarks/mixed_precision.py LORA --base models/smollm2-135m --data train.json --held-out held_out.json
    python benchmarks/mixed_precision.py MODEL --data train.jsonl --held-out held_out.jsonl

Criteria: the costs of rounding that `train --weight-format` measures, for each matrix or with q, k and v together, and the
scores of NNCF without data (its option `ratio`).
"""

import argparse
import random
import time
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from nncf.quantization.algorithms.weight_compression.mixed_precision import DataFreeCriterion
from nncf.tensor import Tensor

from lonas_edge.data.task import Batch
from lonas_edge.formats import FORMATS
from lonas_edge.network.rounding import attention_inputs, most_sensitive, rounding_costs
from lonas_edge.network.source import open_source
from lonas_edge.network.stored import StoredWeights, layer_storage, merge_layer
from lonas_edge.network.super_network import load_super_network
from lonas_edge.network.tokenizer import load_tokenizer
from lonas_edge.training.defaults import with_defaults
from lonas_edge.training.inputs import open_inputs, open_recovery
from lonas_edge.training.options import TrainOptions
from lonas_edge.training.tokens import tokenize

FORMAT = "int4_sym"
SHARES = (0.05, 0.1, 0.15, 0.2, 0.3)


def score_matrix(matrix: Any) -> float:
    """Score a matrix [rows, columns] as `DataFreeCriterion` does, which reads it from a model."""
    criterion = DataFreeCriterion(1.0)
    criterion._backend_entity = SimpleNamespace(get_weight=lambda *_: Tensor(matrix))
    params = SimpleNamespace(node_with_weight=None, weight_port_id=None, reduction_axes=(1,))
    return float(criterion._calc_weight_sensitivity(params, None, None))


def all_tokens(arguments: argparse.Namespace, examples: int) -> list[Batch]:
    """Batches of training examples, at most 128 tokens each; all positions count."""
    if open_source(arguments.source, arguments.base).adapter:
        inputs = open_recovery(arguments.source, arguments.data, None, arguments.base)
    else:
        inputs = open_inputs(arguments.source, arguments.data, None, elastic=False)
    tokens = tokenize(inputs, with_defaults(inputs, TrainOptions()).max_length or 0)
    chosen = random.Random(1).sample(tokens.examples, examples)
    chosen = sorted((inputs.data.shorten(each, 128) for each in chosen), key=lambda each: len(each["input_ids"]))
    collate = inputs.data.collator(tokens.tokenizer)
    return [collate(chosen[start : start + 8]) for start in range(0, len(chosen), 8)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="a LoRA adapter or a model")
    parser.add_argument("--base", help="the adapter's base")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--held-out", type=Path, required=True)
    parser.add_argument("--examples", type=int, default=32)
    arguments = parser.parse_args()
    source = open_source(arguments.source, arguments.base)
    network, widths = load_super_network(source), list(source.select("maximal").widths)
    held = source.open_data(arguments.held_out).batches(load_tokenizer(source.base.folder), 400, 0)
    layers = {name: how.widths for name, how in layer_storage(network, widths, FORMATS[FORMAT]).items()}
    sizes = {name: part.out_features * part.in_features for name, part in layers.items()}
    start = time.perf_counter()
    costs = rounding_costs(network, widths, all_tokens(arguments, arguments.examples), FORMAT)
    print(f"costs of {len(costs)} matrices: {time.perf_counter() - start:.0f} s")
    with torch.no_grad():
        scores = {
            name: score_matrix(merge_layer(network.base.get_submodule(name), part).numpy()) for name, part in layers.items()
        }
    together = attention_inputs(source.architecture)
    scores = {name: score * sizes[name] for name, score in scores.items()}  # NNCF ranks by score, not by score per weight

    def loss(kept: tuple[str, ...]) -> float:
        with StoredWeights(network, FORMAT, None, kept).active(widths):
            return network.losses([widths], held)[0]

    criteria: dict[str, tuple[Mapping[str, float], list[tuple[str, ...]]]] = {
        "each matrix": (costs, []),
        "q, k and v together": (costs, together),
        "NNCF, no data": (scores, []),
    }
    print(f"fp32 {network.losses([widths], held)[0]:.3f}, INT4 {loss(()):.3f}")
    for name, (values, products) in criteria.items():
        losses = [loss(most_sensitive(values, sizes, share, products)) for share in SHARES]
        print(f"{name}: " + ", ".join(f"{share:.0%} {value:.3f}" for share, value in zip(SHARES, losses, strict=True)))


if __name__ == "__main__":
    main()
