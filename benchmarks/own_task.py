"""Study: `compress` on a task, compared on a test set that it never sees.

    python benchmarks/own_task.py --data TRAIN.jsonl --test TEST.jsonl --metric exact-match --seed 42 --work DIR \\
        --output benchmarks/results/own_task/NAME-42.json
    python benchmarks/own_task.py --data KNOWLEDGE --test ../shared/datasets …      the four commonsense tasks

One run of `compress` makes a network for each --target. The stock files are made again by the commands of its report. All of
them answer the test set: by `eval --data`, or, where --test is a directory, by `eval --tasks` with the protocol `option-text`.
Differences are from the stock INT8 file, paired. Latencies and times are those of the report. A stopped study continues.
"""

import argparse
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

from study import TASKS, conditions, lonas_edge, split_data

STOCK = {"int8": "INT8 (optimum-cli)", "int4": "INT4 (optimum-intel, GPTQ)"}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path("models/smollm2-135m"))
    parser.add_argument("--data", type=Path, help="training examples; without it the training data of the commonsense tasks")
    parser.add_argument("--test", type=Path, required=True, help="test conversations, or a directory of commonsense tasks")
    parser.add_argument("--metric", default="exact-match")
    parser.add_argument(
        "--target", action="append", help="may be repeated; default: kl<=0.02, and the metric's -1 and -3 points"
    )
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    return parser.parse_args()


def compressed(arguments: argparse.Namespace) -> dict[str, Any]:
    """Run `compress`, or read what a finished run wrote."""
    work, output = arguments.work, arguments.work / "small"
    if not (output / "compress.json").exists():
        data = ["--data", arguments.data]
        if not arguments.data:
            data = ["--data", *split_data(arguments.test, work)]
            data.insert(2, "--eval-data")
        targets = arguments.target or ["kl<=0.02", f"{arguments.metric}>=-1", f"{arguments.metric}>=-3"]
        options = [option for target in targets for option in ("--target", target)]
        options += ["--metric", arguments.metric, "--seed", arguments.seed]
        lonas_edge("compress", arguments.model, *data, *options, "--output", output)
    record: dict[str, Any] = json.loads((output / "compress.json").read_text())
    return record


def stock_files(record: dict[str, Any], output: Path) -> dict[str, Path]:
    """Make the stock files by the commands of the report; a finished run does not keep them."""
    folder = output / "steps/baselines"
    for step in record["steps"]:
        stored = {"baselines": "int8", "gptq": "int4"}.get(step["name"])
        if stored and not (folder / stored).exists():
            shutil.rmtree(folder / "merged", ignore_errors=True)  # each step makes it
            subprocess.run(["bash", "-ec", step["command"]], check=True)
    return {STOCK[name]: folder / name for name in STOCK if (folder / name).exists()}


def evaluated(networks: dict[str, Path], arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Evaluate all networks on the test set; figures by network, the first is the baseline."""
    output = arguments.work / "test"
    if not (output / "eval.json").exists():
        options = ["--data", arguments.test, "--metric", arguments.metric]
        if arguments.test.is_dir():
            options = ["--tasks", ",".join(TASKS), "--datasets", arguments.test, "--protocol", "option-text"]
        lonas_edge("eval", *networks.values(), *options, "--output", output)
    report = json.loads((output / "eval.json").read_text())
    rows = [{"name": name, "metrics": each["metrics"]} for name, each in zip(networks, report["targets"], strict=True)]
    for row, target in zip(rows, report["targets"], strict=True):
        row["differences"] = {each["scope"]: each for each in report["differences"] if each["target"] == target["name"]}
    return rows


def summary(record: dict[str, Any], rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Figures of the test set next to those that the report promised on held-out examples."""
    steps = {step["name"]: step["seconds"] for step in record["steps"]}
    return {
        "conditions": conditions(),
        "options": record["options"],
        "examples": record["examples"],
        "seconds": steps,
        "curves": record["curves"],
        "trials": record["trials"],
        "held_out": [{key: value for key, value in each.items() if key != "removed"} for each in record["networks"]],
        "removed": {each["name"]: each["removed"] for each in record["networks"] if each["target"]},
        "test": rows,
    }


def main() -> None:
    arguments = parse()
    arguments.work.mkdir(parents=True, exist_ok=True)
    record, output = compressed(arguments), arguments.work / "small"
    networks = stock_files(record, output)
    networks |= {each["name"]: output / each["folder"] for each in record["networks"] if each["folder"]}
    rows = evaluated(networks, arguments)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(summary(record, rows), indent=1) + "\n")
    for row in rows:
        print(row["name"], {name: round(each["value"], 2) for name, each in row["metrics"].items()}, row["differences"])


if __name__ == "__main__":
    main()
