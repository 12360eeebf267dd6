"""Study: exact match of exported models on a structured task, such as the orders of scripts/orders.py.

    python scripts/orders.py test.jsonl --examples 500 --seed 1
    python benchmarks/extraction.py test.jsonl BASELINE DIR … --output benchmarks/results/FILE.json

Each directory answers the user's first message greedily, by openvino_genai with continuous batching. An answer counts if it is
the JSON object of the reference. Differences from BASELINE are paired by example, with 95 % intervals.
"""

import argparse
import json
import math
import statistics
from pathlib import Path
from typing import Any

from study import Z_95, conditions


def answers(folder: Path, prompts: list[str], new_tokens: int) -> list[str]:
    """Greedy answers to user messages, in the model's chat template."""
    import openvino_genai

    scheduler = openvino_genai.SchedulerConfig()
    scheduler.max_num_batched_tokens = 1024
    pipeline = openvino_genai.ContinuousBatchingPipeline(folder, scheduler, "CPU", {})
    tokenizer = pipeline.get_tokenizer()
    config = pipeline.get_config()
    config.max_new_tokens, config.do_sample, config.apply_chat_template = new_tokens, False, False
    texts = [tokenizer.apply_chat_template([{"role": "user", "content": prompt}], True) for prompt in prompts]
    results = pipeline.generate(texts, [config] * len(texts))
    return [str(result.m_generation_ids[0]) for result in results]


def same(answer: str, reference: str) -> bool:
    """Whether two texts are the same JSON object."""
    try:
        return bool(json.loads(answer) == json.loads(reference))
    except ValueError:
        return False


def difference(first: list[bool], second: list[bool]) -> dict[str, float]:
    """second - first in points, paired; and half of the 95 % interval."""
    values = [100.0 * (b - a) for a, b in zip(first, second, strict=True)]
    return {"points": statistics.mean(values), "half_width_95": Z_95 * statistics.stdev(values) / math.sqrt(len(values))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="conversations, one per line")
    parser.add_argument("folders", type=Path, nargs="+", help="exported directories; the first is the baseline")
    parser.add_argument("--new-tokens", type=int, default=96)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    rows = [json.loads(line)["messages"] for line in arguments.data.read_text().splitlines()]
    prompts, references = [row[0]["content"] for row in rows], [row[1]["content"] for row in rows]
    right: list[list[bool]] = []
    report: dict[str, Any] = {"conditions": conditions(), "examples": len(rows), "networks": []}
    for folder in arguments.folders:
        right.append([same(*pair) for pair in zip(answers(folder, prompts, arguments.new_tokens), references, strict=True)])
        row = {"name": folder.name, "exact_match": 100 * statistics.mean(right[-1]), **difference(right[0], right[-1])}
        report["networks"].append(row)
        print(f"{row['name']:24} {row['exact_match']:.1f} %, {row['points']:+.1f} ± {row['half_width_95']:.1f} points")
    if arguments.output:
        arguments.output.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
