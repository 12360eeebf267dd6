"""Compare `lonas-edge eval` with the reference's loop and with the `hf` backend of lm-evaluation-harness.

    python benchmarks/eval_parity.py ADAPTER BASE EXPORTED_DIR --datasets DIR --output benchmarks/results/eval_parity.json

ADAPTER is a trained (super-)adapter on BASE, EXPORTED_DIR its maximal network as fp32 IR. The loop is plain transformers and
PEFT in fp32, one prompt at a time: 4 beams or greedy, 32 new tokens. The IR computes with f32 hints and an f32 KV cache.
"""

import argparse
import json
import logging
import random
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from peft import PeftModel
from study import TASKS, conditions
from transformers import AutoModelForCausalLM, AutoTokenizer

from lonas_edge.evaluate.backends import OpenVinoLM
from lonas_edge.evaluate.protocols import PROMPT_PROTOCOLS

F32 = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32"}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("adapter", type=Path)
    parser.add_argument("base", type=Path)
    parser.add_argument("exported", type=Path)
    parser.add_argument("--datasets", type=Path, required=True)
    parser.add_argument("--template", default="lonas")
    parser.add_argument("--samples", type=int, default=100, help="samples of each task")
    parser.add_argument("--loop", type=Path, help="file that caches the texts of the loop")
    parser.add_argument("--output", type=Path)
    return parser.parse_args()


def generated(model: Any, tokenizer: Any, prompts: list[str], num_beams: int) -> list[list[int]]:
    """New tokens of each prompt, by the reference's loop."""
    generated_ids = []
    for prompt in prompts:
        ids = tokenizer(prompt, return_tensors="pt")
        tokens = model.generate(
            **ids, max_new_tokens=32, num_beams=num_beams, do_sample=False, pad_token_id=tokenizer.eos_token_id
        )
        generated_ids.append(tokens[0, ids["input_ids"].shape[1] :].tolist())
    return generated_ids


def kept(path: Path | None, key: str, make: Callable[[], list[list[int]]]) -> list[list[int]]:
    known = json.loads(path.read_text()) if path and path.exists() else {}
    if key not in known:
        known[key] = make()
        if path:
            path.write_text(json.dumps(known))
    return known[key]


def main() -> None:
    arguments = parse()
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    tokenizer = AutoTokenizer.from_pretrained(arguments.base)
    model = AutoModelForCausalLM.from_pretrained(arguments.base, dtype=torch.float32)
    model = PeftModel.from_pretrained(model, arguments.adapter).eval()
    ours = OpenVinoLM(arguments.exported, tokenizer, 2048, properties=F32)
    results: dict[str, Any] = {}
    ranks, generates = PROMPT_PROTOCOLS["option-text"], PROMPT_PROTOCOLS["generate"]
    for task in TASKS:
        samples = random.Random(0).sample(ranks.read(arguments.datasets, task), arguments.samples)
        results[task] = result = {}
        questions = ranks.documents(samples, task, arguments.template)
        asked = [
            Instance("loglikelihood", {}, (d["prompt"], f" {choice}"), number, (task, index, 1))
            for index, d in enumerate(questions)
            for number, choice in enumerate(d["choices"])
        ]
        reference = HFLM(pretrained=model.get_base_model(), tokenizer=tokenizer, batch_size=8)
        pairs = list(zip(ours.loglikelihood(asked, True), reference.loglikelihood(asked, True), strict=True))
        result["largest_log_likelihood_difference"] = max(abs(ours - theirs) for (ours, _), (theirs, _) in pairs)
        result["choices"] = len(pairs)
        prompts = [d["prompt"] for d in generates.documents(samples, task, arguments.template)]
        for num_beams in (1, 4):
            start = time.perf_counter()
            make = partial(generated, model, tokenizer, prompts, num_beams)
            expected = kept(arguments.loop, f"{task}, {num_beams} beams", make)
            options = {"until": [], "do_sample": False, "num_beams": num_beams, "max_gen_toks": 32}
            requests = [Instance("generate_until", {}, (prompt, options), 0, (task, i, 1)) for i, prompt in enumerate(prompts)]
            looped = [tokenizer.decode(ids, skip_special_tokens=True) for ids in expected]
            different = [(text, loop) for text, loop in zip(ours.generate_until(requests), looped, strict=True) if text != loop]
            result[f"{num_beams}_beams"] = {
                "identical_texts": 1 - len(different) / len(expected),
                "mean_new_tokens": sum(map(len, expected)) / len(expected),
                "different": [{"ours": text, "loop": loop} for text, loop in different],
            }
            row = result[f"{num_beams}_beams"]
            print(f"{task}, {num_beams} beams: texts {row['identical_texts']:.1%}", end="  ")
            print(f"[{time.perf_counter() - start:.0f} s]", flush=True)
        print(f"{task}: log-likelihoods within {result['largest_log_likelihood_difference']:.2e}", flush=True)
    settings = {"prompt": arguments.template, "samples": arguments.samples, "adapter": arguments.adapter.name}
    if arguments.output:
        report = {"conditions": conditions(), "settings": settings, "results": results}
        arguments.output.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
