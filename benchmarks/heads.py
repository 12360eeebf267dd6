"""Study: what the format of the output head costs, on held-out examples.

    python benchmarks/heads.py REFERENCE NETWORK … --held-out held_out.json --output heads.json

REFERENCE and each NETWORK are exported directories with one tokenizer. For every network: the loss of the answers, and
KL(reference ‖ network) over all tokens, in nats per token, computed in fp32. Prompts are those of `--prompt question`.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from study import conditions
from transformers import AutoTokenizer

from lonas_edge.exporting.verify import FP32
from lonas_edge.ir import MODEL
from lonas_edge.ir.core import inputs_of, openvino_core

Example = tuple[list[int], int]  # token ids, and the index of the answer's first token


def read_examples(path: Path, tokenizer: Any) -> list[Example]:
    """Tokenize questions with their answers and the end of the text."""
    examples = []
    for row in json.loads(path.read_text()):
        prompt = tokenizer(f"Question: {row['instruction']}\nAnswer:")["input_ids"]
        examples.append(([*prompt, *tokenizer(f" {row['output']}")["input_ids"], tokenizer.eos_token_id], len(prompt)))
    return examples


def log_probabilities(folder: Path, examples: list[Example]) -> list[torch.Tensor]:
    """Log-probabilities of every example, [tokens, vocabulary], by an IR in fp32."""
    compiled = openvino_core().compile_model(folder / MODEL, "CPU", FP32)
    request, names = compiled.create_infer_request(), {name for port in compiled.inputs for name in port.get_names()}
    answers = []
    for ids, _ in examples:
        request.reset_state()  # the KV cache of the last example
        inputs = inputs_of(np.array([ids]))
        logits = request.infer({name: value for name, value in inputs.items() if name in names})["logits"]
        answers.append(torch.from_numpy(logits[0].copy()).log_softmax(-1))
    return answers


def compared(reference: list[torch.Tensor], own: list[torch.Tensor], examples: list[Example]) -> dict[str, float]:
    """Loss of the answers and KL from the reference, means over tokens."""
    losses = [
        -values[start - 1 : -1].gather(1, torch.tensor(ids[start:])[:, None])[:, 0]
        for values, (ids, start) in zip(own, examples, strict=True)
    ]
    divergences = [(p.exp() * (p - q)).sum(-1) for p, q in zip(reference, own, strict=True)]
    return {"loss": round(torch.cat(losses).mean().item(), 4), "kl": round(torch.cat(divergences).mean().item(), 4)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("reference", type=Path)
    parser.add_argument("networks", type=Path, nargs="+")
    parser.add_argument("--held-out", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    examples = read_examples(arguments.held_out, AutoTokenizer.from_pretrained(arguments.reference))
    reference = log_probabilities(arguments.reference, examples)
    results = {arguments.reference.name: compared(reference, reference, examples)}
    for folder in arguments.networks:
        results[folder.name] = compared(reference, log_probabilities(folder, examples), examples)
        print(folder.name, results[folder.name], flush=True)
    arguments.output.write_text(json.dumps({"conditions": conditions(), "networks": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
