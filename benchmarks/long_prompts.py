"""Study: latency and memory of exported networks after long prompts, and the TTFT that a cached prefix leaves.

    python benchmarks/long_prompts.py INT8 INT4 PRUNED … --prompt-lens 256 2048 4096 8128 --work DIR --output FILE.json

Each length is one run of `bench`, interleaved, with 64 new tokens; ratios are the last network's to each other one. Prefix: one
prompt of the length is answered, then others that share all but their last 64 tokens with it. A stopped study continues.
"""

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import openvino_genai
from study import conditions, timed

OWN_TOKENS = 64  # tokens of a prompt behind the shared prefix
REPEATS = 6


def main() -> None:
    """Measure all networks at all lengths."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", type=Path, nargs="+", help="exported directories; the last one is compared with the others")
    parser.add_argument("--prompt-lens", type=int, nargs="+", default=[256, 2048, 4096, 8128])
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    networks = {folder.name: folder for folder in reversed(arguments.networks)}
    rows = []
    for length in arguments.prompt_lens:
        bench = arguments.work / f"bench-{length}"
        times = timed(networks, bench, arguments.rounds, length)
        memory = {each["name"]: each["facts"] for each in json.loads((bench / "bench.json").read_text())["variants"]}
        for (name, row), facts in zip(times.items(), memory.values(), strict=True):
            prefix = cached_prefix(networks[name], length, arguments.work / f"prefix-{length}-{name}.json")
            known = {"peak_memory_bytes": facts["peak_memory_bytes"], "kv_precision": facts["kv_precision"]}
            rows.append({"network": name, "prompt_len": length, **row, **known, "prefix_ttft_ms": prefix})
            print(rows[-1], flush=True)
    arguments.output.write_text(json.dumps({"conditions": conditions(), "rows": rows}, indent=1) + "\n")


def cached_prefix(folder: Path, length: int, saved: Path) -> dict[str, float]:
    """TTFT in ms of the first prompt, and the median of prompts with the same prefix."""
    if not saved.exists():
        scheduler = openvino_genai.SchedulerConfig()
        scheduler.enable_prefix_caching = True
        pipeline = openvino_genai.LLMPipeline(folder, "CPU", scheduler_config=scheduler)
        config = openvino_genai.GenerationConfig(max_new_tokens=2, ignore_eos=True)
        config.apply_chat_template = False
        random = np.random.default_rng(0)
        prompt = random.integers(1_000, 40_000, (1, length)).astype(np.int64)
        other = random.integers(1_000, 40_000, (1, length)).astype(np.int64)
        times: list[float] = []
        for ids in (other, *([prompt] * (REPEATS + 1))):  # the first one warms up
            ids[:, -OWN_TOKENS:] = random.integers(1_000, 40_000, (1, OWN_TOKENS))
            inputs = openvino_genai.TokenizedInputs(ov.Tensor(ids.copy()), ov.Tensor(np.ones_like(ids)))
            times.append(pipeline.generate(inputs, config).perf_metrics.get_ttft().mean)
        saved.write_text(json.dumps({"first": times[1], "cached": statistics.median(times[2:])}))
    measured: dict[str, Any] = json.loads(saved.read_text())
    return measured


if __name__ == "__main__":
    main()
