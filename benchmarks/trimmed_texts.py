"""Study: fertility and perplexity of a model and of trimmed versions of it, on texts of several kinds.

    python benchmarks/trimmed_texts.py models/smollm2-135m base-24k base-16k --texts questions.json orders.jsonl \\
        --output benchmarks/results/trimmed_texts.json

Vocabularies split a text into different tokens, so figures are per character: tokens, and nats of the whole text after the
tokenizer's end-of-text token. Besides the files, the texts of `trim`'s column "other texts" are measured. Nothing is trained.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from study import conditions
from transformers import AutoModelForCausalLM, AutoTokenizer

from lonas_edge.vocabulary.model_vocabulary import OTHER_TEXTS

OTHER = "other texts"


def read_texts(path: Path, count: int) -> list[str]:
    """Prompts with answers of the first examples of a JSON or JSON Lines file."""
    lines = path.read_text()
    rows = json.loads(lines) if path.suffix == ".json" else [json.loads(line) for line in lines.splitlines()]
    messages = (row.get("messages") for row in rows[:count])
    return [
        "\n".join(part["content"] for part in each) if each else f"{row['instruction']}\n{row['output']}"
        for row, each in zip(rows[:count], messages, strict=True)
    ]


@torch.inference_mode()
def measured(folder: Path, kinds: dict[str, list[str]]) -> dict[str, dict[str, float]]:
    """Tokens and nats per character, by kind of text."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    found = {}
    for kind, texts in kinds.items():
        tokens = nats = 0.0
        for text in texts:
            ids = tokenizer(text, add_special_tokens=False).input_ids
            logits = model(torch.tensor([[tokenizer.eos_token_id, *ids]])).logits[0, :-1].log_softmax(-1)
            nats -= float(logits[range(len(ids)), ids].sum())
            tokens += len(ids)
        characters = sum(map(len, texts))
        found[kind] = {"tokens": tokens / characters, "nats": nats / characters}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path, nargs="+", help="the whole model first")
    parser.add_argument("--texts", type=Path, nargs="*", default=[])
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    kinds = {path.name: read_texts(path, arguments.count) for path in arguments.texts} | {OTHER: list(OTHER_TEXTS)}
    kinds |= {f"{OTHER} {index}": [text] for index, text in enumerate(OTHER_TEXTS)}
    report: dict[str, Any] = {"conditions": conditions(), "count": arguments.count, "models": {}}
    for folder in arguments.models:
        report["models"][folder.name] = measured(folder, kinds)
    whole = report["models"][arguments.models[0].name]
    for name, figures in report["models"].items():
        for kind, figure in figures.items():
            tokens, nats = (figure[key] / whole[kind][key] for key in ("tokens", "nats"))
            print(f"{name:16} {kind:24} {figure['tokens']:.3f} ({tokens:.2f}x) {figure['nats']:.3f} ({nats:.2f}x)")
    arguments.output.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
