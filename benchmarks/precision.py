"""Study: TTFT and TPOT of language models in bf16, the default of processors with AMX, and in f32.

    python benchmarks/precision.py int8 int4 --output benchmarks/results/precision.json

Every round has other random prompts, so that no prefix is cached, and all precisions in a random order, in one process.
"""

import argparse
import json
import random
import statistics
from pathlib import Path

import numpy as np
import openvino as ov
import openvino_genai

from lonas_edge.bench.machine import describe
from lonas_edge.versions import versions

HINT = "INFERENCE_PRECISION_HINT"
NEW_TOKENS = 33


def measure(folder: Path, prompt_len: int, rounds: int) -> dict[str, dict[str, float]]:
    """Medians in ms by precision; the first round warms up."""
    pipelines = {name: openvino_genai.LLMPipeline(folder, "CPU", **{HINT: name}) for name in ("bf16", "f32")}
    config = openvino_genai.GenerationConfig(max_new_tokens=NEW_TOKENS, ignore_eos=True)
    config.apply_chat_template = False
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in pipelines}
    for number in range(rounds + 1):
        ids = np.random.default_rng(number).integers(1_000, 40_000, (1, prompt_len)).astype(np.int64)
        inputs = openvino_genai.TokenizedInputs(ov.Tensor(ids), ov.Tensor(np.ones_like(ids)))
        for name in random.Random(number).sample(list(pipelines), len(pipelines)):
            metrics = pipelines[name].generate(inputs, config).perf_metrics
            times[name] += [(metrics.get_ttft().mean, metrics.get_tpot().mean)] * bool(number)
    return {
        name: {"ttft": statistics.median(first for first, _ in each), "tpot": statistics.median(other for _, other in each)}
        for name, each in times.items()
    }


def main() -> None:
    """Measure all models at all lengths."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path, nargs="+")
    parser.add_argument("--prompt-lens", type=int, nargs="+", default=[256, 1024])
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    rows = [
        {"model": model.name, "prompt_len": length, "new_tokens": NEW_TOKENS, "ms": measure(model, length, arguments.rounds)}
        for model in arguments.models
        for length in arguments.prompt_lens
    ]
    record = {"conditions": {**describe("CPU"), "versions": versions(("openvino", "openvino-genai"))}, "rows": rows}
    arguments.output.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
