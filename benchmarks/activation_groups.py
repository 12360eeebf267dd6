"""Study: latency and effect of the activation group size (DYNAMIC_QUANTIZATION_GROUP_SIZE) of compressed IRs.

    python benchmarks/activation_groups.py IR [IR …] --data DATA.json --output benchmarks/results/activation_groups.json

Every IR runs with every group size and precision in one process, in random order. KL and loss are of the answers of --data
(instructions, prompt `question`), compared with the same IR in fp32 without quantized activations.
"""

import argparse
import json
import random
from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy as np
import openvino as ov
import openvino_genai
import torch
from study import conditions
from transformers import AutoTokenizer

from lonas_edge.ir.core import inputs_of

GROUP, PRECISION = "DYNAMIC_QUANTIZATION_GROUP_SIZE", "INFERENCE_PRECISION_HINT"
EXACT = {GROUP: "0", PRECISION: "f32", "KV_CACHE_PRECISION": "f32"}
Answer = tuple[torch.Tensor, list[int]]  # log-probabilities [tokens, vocabulary], and the tokens


def latencies(
    irs: list[Path], settings: dict[str, dict[str, str]], length: int, rounds: int
) -> dict[tuple[str, str], tuple[float, float]]:
    """Median TTFT and TPOT in ms of each IR and setting."""
    pipelines = {
        (ir.name, name): openvino_genai.LLMPipeline(ir, "CPU", **properties)
        for ir in irs
        for name, properties in settings.items()
    }
    config = openvino_genai.GenerationConfig(max_new_tokens=32, ignore_eos=True)
    rng, times = random.Random(0), {key: list[tuple[float, float]]() for key in pipelines}
    for turn in range(rounds + 1):  # the first warms up
        keys, ids = list(pipelines), np.array([[rng.randrange(300, 10_000) for _ in range(length)]])
        rng.shuffle(keys)
        for key in keys:
            inputs = openvino_genai.TokenizedInputs(ov.Tensor(ids), ov.Tensor(np.ones_like(ids)))
            metrics = pipelines[key].generate(inputs, config).perf_metrics
            if turn:
                times[key].append((metrics.get_ttft().mean, metrics.get_tpot().mean))
    return {key: (median(ttft for ttft, _ in each), median(tpot for _, tpot in each)) for key, each in times.items()}


def answers(ir: Path, properties: dict[str, str], examples: list[dict[str, str]]) -> list[Answer]:
    request = ov.Core().compile_model(ir / "openvino_model.xml", "CPU", properties).create_infer_request()
    tokenizer, found = AutoTokenizer.from_pretrained(ir), []
    for example in examples:
        prompt = f"Question: {example['instruction']}\nAnswer:"
        start, ids = len(tokenizer(prompt).input_ids), tokenizer(f"{prompt} {example['output']}").input_ids
        request.reset_state()
        logits = torch.tensor(request.infer(inputs_of(np.array([ids])))["logits"][0, start - 1 : -1])
        found.append((logits.log_softmax(-1), ids[start:]))
    return found


def effect(exact: list[Answer], other: list[Answer]) -> dict[str, float]:
    """KL from the exact IR and loss, nats per answer token, mean over the examples."""
    kl = fmean(float((p.exp() * (p - q)).sum(-1).mean()) for (p, _), (q, _) in zip(exact, other, strict=True))
    loss = -fmean(float(q[range(len(ids)), ids].mean()) for q, ids in other)
    return {"kl": round(kl, 5), "loss": round(loss, 4)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("irs", type=Path, nargs="+")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--groups", default="32,64,96,192,288,576")
    parser.add_argument("--precisions", default="bf16,f32")
    parser.add_argument("--prompt-len", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--examples", type=int, default=60)
    arguments = parser.parse_args()
    settings = {
        f"{precision}, {group}": {PRECISION: precision, GROUP: group}
        for precision in arguments.precisions.split(",")
        for group in arguments.groups.split(",")
    }
    times = latencies(arguments.irs, settings, arguments.prompt_len, arguments.rounds)
    examples, rows = json.loads(arguments.data.read_text())[: arguments.examples], list[dict[str, Any]]()
    for ir in arguments.irs:
        exact = answers(ir, EXACT, examples)
        for name, properties in settings.items():
            ttft, tpot = times[ir.name, name]
            row = {"ir": ir.name, "setting": name, "ttft_ms": round(ttft, 1), "tpot_ms": round(tpot, 2)}
            rows.append({**row, **effect(exact, answers(ir, properties, examples))})
            print(rows[-1], flush=True)
    if arguments.output:
        chosen = {name: getattr(arguments, name) for name in ("prompt_len", "rounds", "examples")}
        arguments.output.write_text(json.dumps({"conditions": conditions(), "settings": chosen, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
