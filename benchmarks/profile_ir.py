"""Where the time of an IR goes on a CPU: the plugin's own profile of a prompt and of decoding, by kind of node.

    python benchmarks/profile_ir.py EXPORTED_DIR --output benchmarks/results/profile_NAME.json [--property NAME=VALUE]

The plugin times every node (PERF_COUNT), which costs a little itself; `wall` is the request's own time, profile on.
"""

import argparse
import json
import statistics
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
from export_cost import conditions

from lonas_edge.bench.machine import memory_bandwidth, placement


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("exported", type=Path)
    parser.add_argument("--prompt-len", type=int, default=256)
    parser.add_argument("--new-tokens", type=int, default=12)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--property", action="append", default=[])
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    properties = {"PERF_COUNT": "YES", "PERFORMANCE_HINT": "LATENCY", **dict(p.split("=", 1) for p in arguments.property)}
    vocabulary = json.loads((arguments.exported / "config.json").read_text())["vocab_size"]
    bandwidth = memory_bandwidth(placement(None).threads)
    compiled = ov.Core().compile_model(arguments.exported / "openvino_model.xml", "CPU", properties)
    request, draw = compiled.create_infer_request(), np.random.default_rng(0)
    names = {name for port in compiled.inputs for name in port.get_names()}
    found: dict[str, list[tuple[float, Counter]]] = {"prompt": [], "decode": []}

    def step(ids: Any, seen: int) -> tuple[float, Counter]:
        end = seen + ids.shape[1]
        inputs = {"input_ids": ids, "attention_mask": np.ones((1, end), np.int64), "beam_idx": np.zeros(1, np.int32)}
        inputs["position_ids"] = np.arange(seen, end)[None]
        start = time.perf_counter()
        request.infer({name: value for name, value in inputs.items() if name in names}, share_outputs=True)
        seconds, kinds = time.perf_counter() - start, Counter()
        for node in request.get_profiling_info():
            kinds[node.node_type] += node.real_time.total_seconds()
        sums.append(Counter({kind: mean * len(sums) for kind, mean in kinds.items()}))  # the plugin gives means of all so far
        return seconds, Counter({kind: total - sums[-2][kind] for kind, total in sums[-1].items()})

    sums: list[Counter] = [Counter()]

    for repeat in range(arguments.repeats + 1):
        request.reset_state()
        taken = [step(draw.integers(0, vocabulary, (1, arguments.prompt_len)), 0)]
        for token in range(arguments.new_tokens):
            taken.append(step(draw.integers(0, vocabulary, (1, 1)), arguments.prompt_len + token))
        if repeat:  # the first warms up
            found["prompt"].append(taken[0])
            found["decode"] += taken[2:]  # the first step after a prompt prepares kernels of its shape

    result: dict[str, Any] = {"conditions": conditions(), "model": arguments.exported.name, "properties": properties}
    result |= {"prompt_len": arguments.prompt_len, "bandwidth_bytes_per_second": bandwidth}
    for phase, taken in found.items():
        wall = statistics.median(seconds for seconds, _ in taken)
        total: Counter = sum((kinds for _, kinds in taken), Counter())
        each = {kind: seconds / len(taken) for kind, seconds in total.most_common(7)}
        result[phase] = {"wall_ms": 1e3 * wall, "by_node_type_ms": {kind: 1e3 * seconds for kind, seconds in each.items()}}
        print(f"{phase}: {1e3 * wall:.1f} ms;", ", ".join(f"{kind} {1e3 * seconds:.1f}" for kind, seconds in each.items()))
    if arguments.output:
        arguments.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
