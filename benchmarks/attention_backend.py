"""Latency of openvino_genai's two attention backends, SDPA and PagedAttention, interleaved in one process.

python benchmarks/attention_backend.py DIR --output benchmarks/results/attention_backend.json
"""

import argparse
import json
import statistics
from pathlib import Path

import numpy as np
import openvino as ov
import openvino_genai as genai
from study import conditions

WARMUP = 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="an exported directory")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--prompt-len", type=int, default=256)
    parser.add_argument("--new-tokens", type=int, default=64)
    arguments = parser.parse_args()
    scheduler = genai.SchedulerConfig()
    scheduler.enable_prefix_caching = False  # it would answer equal prompts without computing them
    pipelines = {
        "SDPA": genai.LLMPipeline(arguments.model, "CPU", ATTENTION_BACKEND="SDPA"),
        "PA": genai.LLMPipeline(arguments.model, "CPU", scheduler_config=scheduler),
    }
    tokenizer = pipelines["SDPA"].get_tokenizer()
    config = genai.GenerationConfig(max_new_tokens=arguments.new_tokens, ignore_eos=True, do_sample=False)
    text = "The sun is a star. Water boils at a hundred degrees. " * arguments.prompt_len
    ids = tokenizer.encode(text).input_ids.data[:, : arguments.prompt_len]
    inputs = genai.TokenizedInputs(ov.Tensor(ids), ov.Tensor(np.ones_like(ids)))
    times: dict[str, dict[str, list[float]]] = {name: {"ttft_ms": [], "tpot_ms": []} for name in pipelines}
    for number in range(WARMUP + arguments.rounds):
        for name, pipeline in pipelines.items():
            metrics = pipeline.generate(inputs, config).perf_metrics
            if number >= WARMUP:
                times[name]["ttft_ms"].append(metrics.get_ttft().mean)
                times[name]["tpot_ms"].append(metrics.get_tpot().mean)
    medians = {
        name: {metric: round(statistics.median(values), 2) for metric, values in each.items()} for name, each in times.items()
    }
    for name, each in medians.items():
        print(name, each)
    arguments.output.write_text(json.dumps({"conditions": conditions(), "medians": medians, "times": times}, indent=1) + "\n")


if __name__ == "__main__":
    main()
