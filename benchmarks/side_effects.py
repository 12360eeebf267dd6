"""Study: how far a fine-tuning and its compression move a model on texts of another kind.

    python benchmarks/side_effects.py models/smollm2-135m --texts gsm8k/test.json glue/SST-2/dev.tsv --networks DIR …

For every text, KL(base ‖ network) in nats per token, with the base in fp32; and the network's own loss on the text. Networks
are checkpoints or OpenVINO IRs with the base's tokenizer. Intervals are over texts.
"""

import argparse
import csv
import json
import math
import statistics
from collections.abc import Callable
from pathlib import Path

import torch
from study import Z_95
from transformers import AutoModelForCausalLM, AutoTokenizer

Logits = Callable[[torch.Tensor], torch.Tensor]  # of ids [1, tokens]: [tokens, vocabulary]


def read_texts(path: Path, count: int) -> list[str]:
    """The first questions of a JSON file, or first columns of a TSV file."""
    if path.suffix == ".json":
        return [row["instruction"] for row in json.loads(path.read_text())[:count]]
    with path.open(newline="") as file:
        return [row[0] for row in list(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE))[1 : count + 1]]


def load(folder: Path) -> Logits:
    """Open a checkpoint in fp32, or an IR as stored."""
    if not (folder / "openvino_model.xml").exists():
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        return lambda ids: model(input_ids=ids).logits[0]
    from optimum.intel import OVModelForCausalLM

    ir = OVModelForCausalLM.from_pretrained(folder)
    return lambda ids: ir(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0]


def mean(values: list[float]) -> str:
    """Mean and half of its 95 % interval."""
    return f"{statistics.mean(values):.3f} ± {Z_95 * statistics.stdev(values) / math.sqrt(len(values)):.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", type=Path)
    parser.add_argument("--texts", type=Path, nargs="+", required=True)
    parser.add_argument("--networks", type=Path, nargs="+", required=True)
    parser.add_argument("--count", type=int, default=100, help="texts of each file")
    arguments = parser.parse_args()
    tokenizer, base = AutoTokenizer.from_pretrained(arguments.base), load(arguments.base)
    networks = {str(folder): load(folder) for folder in arguments.networks}
    with torch.inference_mode():
        for path in arguments.texts:
            encoded = [torch.tensor([tokenizer(text).input_ids[:128]]) for text in read_texts(path, arguments.count)]
            encoded = [ids for ids in encoded if ids.shape[1] > 1]
            divergences: dict[str, list[float]] = {name: [] for name in networks}
            losses: dict[str, list[float]] = {name: [] for name in ("base", *networks)}
            for ids in encoded:
                expected = base(ids).log_softmax(-1)
                losses["base"].append(-expected[:-1].gather(1, ids[0, 1:, None]).mean().item())
                for name, network in networks.items():
                    found = network(ids).log_softmax(-1)
                    divergences[name].append((expected.exp() * (expected - found)).sum(-1).mean().item())
                    losses[name].append(-found[:-1].gather(1, ids[0, 1:, None]).mean().item())
            print(f"{path}: {len(encoded)} texts; base: loss {mean(losses['base'])}")
            for name in networks:
                print(f"  {name}: KL {mean(divergences[name])}, loss {mean(losses[name])}")


if __name__ == "__main__":
    main()
