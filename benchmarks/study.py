"""Steps that the studies share: data, the command line, accuracy by example, latency, paired differences.

Every step keeps its output in a working directory and is skipped when the output exists, so a stopped study continues.
"""

import json
import math
import os
import random
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lonas_edge.bench.machine import describe
from lonas_edge.evaluate.protocols import PROMPT_PROTOCOLS
from lonas_edge.versions import versions

TASKS = ("ARC-Easy", "ARC-Challenge", "openbookqa", "boolq")
TRAINING_EXAMPLES = {"ARC-Easy": None, "ARC-Challenge": None, "openbookqa": 1500, "boolq": 1500}  # None: all
HELD_OUT = 100  # training examples of each task that a search uses instead
PACKAGES = ("lonas-edge", "torch", "transformers", "openvino", "openvino-genai", "optimum-intel", "nncf", "optuna")
Z_95 = 1.959964

Accuracy = dict[str, list[float]]  # by task: 100 for each correct example and 0 for each wrong one


def lonas_edge(*command: object, environment: dict[str, str] | None = None) -> None:
    """Run the command line."""
    line = [sys.executable, "-m", "lonas_edge", *map(str, command)]
    subprocess.run(line, check=True, stdout=subprocess.DEVNULL, env={**os.environ, **(environment or {})})


def split_data(datasets: Path, work: Path) -> tuple[Path, Path]:
    """Write the training data, whose answers are the texts of the options, and held-out examples of it."""
    train, held_out = work / "train.json", work / "held_out.json"
    if not held_out.exists():
        kept: list[dict[str, str]] = []
        held: list[dict[str, str]] = []
        for task, count in TRAINING_EXAMPLES.items():
            samples = json.loads((datasets / task / "train.json").read_text())
            examples = [_example(row) for row in PROMPT_PROTOCOLS["option-text"].documents(samples, task, "question")]
            random.Random(f"held out/{task}").shuffle(examples)
            held += examples[:HELD_OUT]
            kept += examples[HELD_OUT:][:count]
        train.write_text(json.dumps(kept))
        held_out.write_text(json.dumps(held))
    return train, held_out


def _example(document: dict[str, Any]) -> dict[str, str]:
    question = document["prompt"].removeprefix("Question: ").removesuffix("\nAnswer:")
    return {"instruction": question, "input": "", "output": document["choices"][document["label"]]}


def trained(output: Path, *options: object) -> Path:
    """Train an adapter, or resume its training."""
    if not output.exists():
        output.parent.mkdir(parents=True, exist_ok=True)
        resumed = ["--resume"] if output.with_name(f"{output.name}.partial").exists() else []
        lonas_edge("train", *options, "--output", output, *resumed)
    return output


def exported(output: Path, source: Path, *options: object) -> Path:
    """Export a network."""
    if not output.exists():
        output.parent.mkdir(parents=True, exist_ok=True)
        lonas_edge("export", source, *options, "--output", output)
    return output


def evaluated(networks: dict[str, Path], output: Path, datasets: Path, limit: int | None) -> dict[str, Accuracy]:
    """Evaluate exported networks by `option-text`; accuracies in the order of the examples."""
    if not output.exists():
        options = ["--tasks", ",".join(TASKS), "--datasets", datasets, "--protocol", "option-text"]
        options += ["--limit", limit] if limit else []
        lonas_edge("eval", *networks.values(), *options, "--output", output)
    report = json.loads((output / "eval.json").read_text())
    accuracy: dict[str, Accuracy] = {}
    for name, target in zip(networks, report["targets"], strict=True):
        accuracy[name] = {}
        for task in target["tasks"]:
            log = output / "samples" / target["name"] / f"samples_{task['task']}.jsonl"
            rows = sorted(map(json.loads, log.read_text().splitlines()), key=lambda row: row["doc_id"])
            accuracy[name][task["task"]] = [100.0 * row[task["metric"]] for row in rows]
    return accuracy


def timed(networks: dict[str, Path], output: Path, rounds: int = 12, prompt_len: int = 256) -> dict[str, dict[str, Any]]:
    """Measure TTFT and TPOT of exported networks, interleaved in one run; ratios are subject / other.

    The subject is the first network that lonas-edge wrote; `bench` opens no other one as its EXPORTED.
    """
    subject = next(name for name, folder in networks.items() if (folder / "lonas_edge.json").exists())
    names = [subject, *(name for name in networks if name != subject)]
    if not output.exists():
        output.parent.mkdir(parents=True, exist_ok=True)
        settings = ["--rounds", rounds, "--prompt-len", prompt_len, "--output", output]
        lonas_edge(
            "bench",
            networks[subject],
            "--variants",
            ",".join(["subnet", *(str(networks[name]) for name in names[1:])]),
            *settings,
        )
    report = json.loads((output / "bench.json").read_text())
    ratios: dict[str, dict[str, Any]] = {}
    for comparison in report["comparisons"]:
        interval = [comparison["ratio"][name] for name in ("value", "low", "high")]
        ratios.setdefault(comparison["baseline"], {})[f"ratio_{comparison['metric']}"] = interval
    return {
        name: {"ttft_ms": row["ttft"]["p50"], "tpot_ms": row["tpot"]["p50"], **ratios.get(row["variant"], {})}
        for name, row in zip(names, report["rows"], strict=True)
    }


def average(accuracy: Accuracy) -> float:
    """Mean over the tasks, percent."""
    return statistics.mean(map(statistics.mean, accuracy.values()))


def over_seeds(seeds: Sequence[Accuracy]) -> Accuracy:
    """Mean over the seeds for each example."""
    return {task: [statistics.mean(values) for values in zip(*(seed[task] for seed in seeds), strict=True)] for task in TASKS}


def difference(first: Accuracy, second: Accuracy) -> dict[str, float]:
    """first - second in points, paired by example, mean over the tasks; and half of the 95 % interval."""
    mean, variance = 0.0, 0.0
    for task, values in first.items():
        differences = [a - b for a, b in zip(values, second[task], strict=True)]
        mean += statistics.mean(differences) / len(first)
        variance += statistics.variance(differences) / len(differences) / len(first) ** 2
    return {"points": mean, "half_width_95": Z_95 * math.sqrt(variance)}


def conditions() -> dict[str, Any]:
    """Machine and versions."""
    return {**describe("CPU"), "versions": versions(PACKAGES)}
