"""Samples a second: `lonas-edge eval` beside the reference's loop, and beside lm-evaluation-harness's own backends.

    python benchmarks/eval_throughput.py EXPORTED_DIR CHECKPOINT_DIR --datasets DIR \\
        --output benchmarks/results/eval_throughput.json

EXPORTED_DIR is an INT8 IR, CHECKPOINT_DIR the same sub-network as a checkpoint (`export --stage checkpoint`) for what runs in
PyTorch. All arms answer the same seeded samples, in turn, round by round; models are loaded before. The loop is the
reference's: one prompt at a time, `generate` of transformers, bf16. It answers the first few samples of each round only.
"""

import argparse
import json
import logging
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from export_cost import conditions
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.models.optimum_lm import OptimumLM
from transformers import AutoTokenizer

from lonas_edge import load_checkpoint
from lonas_edge.evaluate.openvino_lm import OpenVinoLM
from lonas_edge.evaluate.protocols import PROTOCOLS
from lonas_edge.evaluate.torch_lm import TorchLM

TASKS = ("ARC-Easy", "ARC-Challenge", "openbookqa", "boolq")
LOOP_SAMPLES = 4  # of each round; the loop takes seconds a sample


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("exported", type=Path)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--datasets", type=Path, required=True)
    parser.add_argument("--prompt", default="lonas")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--samples", type=int, default=64, help="of a round")
    parser.add_argument("--output", type=Path)
    return parser.parse_args()


def loop(model: Any, tokenizer: Any, num_beams: int) -> Callable[[list[dict[str, Any]]], int]:
    """The reference's evaluation: one prompt at a time."""

    def answer(asked: list[dict[str, Any]]) -> int:
        for document in asked[:LOOP_SAMPLES]:
            ids = tokenizer(document["prompt"], return_tensors="pt")
            model.generate(**ids, max_new_tokens=32, num_beams=num_beams, do_sample=False, pad_token_id=tokenizer.eos_token_id)
        return min(LOOP_SAMPLES, len(asked))

    return answer


def generating(model: Any, num_beams: int) -> Callable[[list[dict[str, Any]]], int]:
    options = {"until": [], "do_sample": False, "num_beams": num_beams, "max_gen_toks": 32}

    def answer(asked: list[dict[str, Any]]) -> int:
        requests = [Instance("generate_until", {}, (d["prompt"], options), 0, ("t", i, 1)) for i, d in enumerate(asked)]
        model.generate_until(requests, disable_tqdm=True)
        return len(asked)

    return answer


def ranking(model: Any) -> Callable[[list[dict[str, Any]]], int]:
    def answer(asked: list[dict[str, Any]]) -> int:
        requests = [
            Instance("loglikelihood", {}, (d["prompt"], f" {choice}"), place, ("t", i, 1))
            for i, d in enumerate(asked)
            for place, choice in enumerate(d["choices"])
        ]
        model.loglikelihood(requests, disable_tqdm=True)
        return len(asked)

    return answer


def measure(
    arms: dict[str, Callable[[list[dict[str, Any]]], int]], asked: list[dict[str, Any]], rounds: int, samples: int
) -> dict[str, list[float]]:
    """Seconds a sample by arm and round; the first round warms up and is dropped."""
    found: dict[str, list[float]] = {name: [] for name in arms}
    for number in range(rounds + 1):
        part = asked[number * samples : (number + 1) * samples]
        names = list(arms)
        random.Random(number).shuffle(names)
        for name in names:
            start = time.perf_counter()
            count = arms[name](part)
            found[name].append((time.perf_counter() - start) / count)
        print(f"round {number}: " + ", ".join(f"{name} {values[-1]:.3f} s" for name, values in found.items()), flush=True)
    return {name: values[1:] for name, values in found.items()}


def summary(found: dict[str, list[float]], ours: str) -> dict[str, Any]:
    return {
        name: {
            "samples_per_second": 1 / statistics.median(values),
            "ours_over_it": statistics.median(v / o for v, o in zip(values, found[ours], strict=True)),
            "ours_over_it_by_round": [v / o for v, o in zip(values, found[ours], strict=True)],
        }
        for name, values in found.items()
    }


def main() -> None:
    arguments = parse()
    for name in ("lm_eval", "transformers"):
        logging.getLogger(name).setLevel(logging.ERROR)
    tokenizer = AutoTokenizer.from_pretrained(arguments.exported)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    ranks, generates = PROTOCOLS["option-text"], PROTOCOLS["generate"]
    samples = {task: ranks.read(arguments.datasets, task) for task in TASKS}
    prompts = [d for task in TASKS for d in generates.documents(samples[task], task, arguments.prompt)]
    questions = [d for task in TASKS for d in ranks.documents(samples[task], task, arguments.prompt)]
    for asked in (prompts, questions):
        random.Random(0).shuffle(asked)
    bf16 = load_checkpoint(arguments.checkpoint, torch.bfloat16)
    results = {}
    for num_beams in (4, 1):
        ours = OpenVinoLM(arguments.exported, tokenizer, 2048)
        arms = {"lonas-edge": generating(ours, num_beams), "loop": loop(bf16, tokenizer, num_beams)}
        print(f"{num_beams} beams", flush=True)
        results[f"generate, {num_beams} beams"] = summary(
            measure(arms, prompts, arguments.rounds, arguments.samples), "lonas-edge"
        )
    del bf16
    hf = {"pretrained": load_checkpoint(arguments.checkpoint, torch.float32), "tokenizer": tokenizer}
    ranked = {
        "lonas-edge": ranking(ours),
        "lm_eval openvino, batch 1": ranking(OptimumLM(pretrained=str(arguments.exported), device="cpu", batch_size=1)),
        "lm_eval openvino, batch 16": ranking(OptimumLM(pretrained=str(arguments.exported), device="cpu", batch_size=16)),
        "lonas-edge in PyTorch, fp32": ranking(TorchLM(**hf, batch_size=16)),
        "lm_eval hf, fp32, batch 16": ranking(HFLM(**hf, batch_size=16)),
    }
    print("ranking", flush=True)
    results["option-text"] = summary(measure(ranked, questions, arguments.rounds, arguments.samples), "lonas-edge")
    for name, arms in results.items():
        for arm, values in arms.items():
            print(f"{name:20} {arm:30} {values['samples_per_second']:7.2f} a second, ours {values['ours_over_it']:.2f} x")
    settings = {name: getattr(arguments, name) for name in ("prompt", "rounds", "samples")}
    told = {
        "exported": arguments.exported.name,
        "conditions": conditions(),
        "settings": settings,
        "ours": "INT8 IR",
        "loop": "PyTorch bf16, merged",
        "results": results,
    }
    if arguments.output:
        arguments.output.write_text(json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    main()
