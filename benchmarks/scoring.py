"""What scoring a sub-network costs: in one super-network that is loaded once, against loading it for each, as before.

    python benchmarks/synthetic_adapter.py models/smollm2-135m models/synthetic-adapter
    python benchmarks/scoring.py models/smollm2-135m models/synthetic-adapter nncf_config/smollm2_135m.json \\
        --data DIR/ARC-Easy/train.json --output benchmarks/results/scoring.json

Mean KL from the maximal network at the answers' positions of 64 prompts. Both ways give the same figures; the adapter is not
trained, so they mean nothing.
"""

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from lonas_edge.bench.machine import describe
from lonas_edge.data.encoding import Collator, encode
from lonas_edge.data.instructions import read_examples
from lonas_edge.data.templates import TEMPLATES
from lonas_edge.network.source import open_source
from lonas_edge.network.super_network import load_super_network
from lonas_edge.network.tokenizer import load_tokenizer
from lonas_edge.versions import versions


def batches(base: Path, data: Path, prompts: int, size: int = 16) -> list[dict[str, torch.Tensor]]:
    """The first prompts of a file, those of like length together."""
    tokenizer = load_tokenizer(base)
    encoded = encode(read_examples(data)[:prompts], TEMPLATES["alpaca"], tokenizer, 256)
    encoded.sort(key=lambda example: len(example["input_ids"]))
    collate = Collator(tokenizer.pad_token_id)
    return [collate(encoded[start : start + size]) for start in range(0, len(encoded), size)]


def loading_each(source: Any, chosen: list[tuple[int, ...]], prompts: list[dict[str, torch.Tensor]]) -> list[float]:
    """Seconds of each sub-network where the super-network is loaded for it."""
    taken = []
    for widths in chosen:
        start = time.perf_counter()
        load_super_network(source).kl([widths], prompts)
        taken.append(time.perf_counter() - start)
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("base", type=Path)
    parser.add_argument("adapter", type=Path)
    parser.add_argument("space", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--subnetworks", type=int, default=50)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    source = open_source(str(arguments.adapter), str(arguments.base), arguments.space)
    prompts = batches(arguments.base, arguments.data, arguments.prompts)
    chosen = [source.select(f"random:{seed}").widths for seed in range(arguments.subnetworks)]
    before = loading_each(source, chosen[:3], prompts)
    start = time.perf_counter()
    network = load_super_network(source)
    loaded = time.perf_counter() - start
    start = time.perf_counter()
    kl = network.kl(chosen, prompts)
    once = (time.perf_counter() - start) / len(chosen)
    found = {
        "prompts": len([row for batch in prompts for row in batch["input_ids"]]),
        "positions": sum(int((batch["labels"] >= 0).sum()) for batch in prompts),
        "tokens": sum(int(batch["attention_mask"].sum()) for batch in prompts),
        "subnetworks": len(chosen),
        "seconds_loading": loaded,
        "seconds_a_subnetwork": once,
        "seconds_a_subnetwork_loading_each": statistics.median(before),
        "ratio": once / statistics.median(before),
        "kl": {"lowest": min(kl), "median": statistics.median(kl), "highest": max(kl)},
        "machine": describe("CPU"),
        "threads": torch.get_num_threads(),
        "versions": versions(("lonas-edge", "torch", "transformers", "peft")),
    }
    print(json.dumps(found, indent=1))
    if arguments.output:
        arguments.output.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
