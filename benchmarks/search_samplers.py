"""What seeds and refinement give: hypervolume of the front at equal work, of three ways to search, three seeds each.

    python benchmarks/search_samplers.py SUPER_ADAPTER --data HELD_OUT.json --work DIR \\
        --output benchmarks/results/search_samplers.json

KL over MACs. `lonas-edge search` as it is; NSGA-II alone (`--no-seeds --no-refine`); random networks. The damage table is work,
too: each of its figures is half an evaluation on average, so the other two are given as many evaluations more as the table took
seconds. All know maximal, heuristic and minimal. Finished searches are kept in --work.
"""

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from accuracy_study import lonas_edge

from lonas_edge.bench.machine import describe
from lonas_edge.versions import versions

WAYS = {
    "lonas-edge search": [],
    "NSGA-II alone": ["--no-seeds", "--no-refine"],
    "random": ["--no-seeds", "--no-refine", "--sampler", "random"],
}
PACKAGES = ("lonas-edge", "torch", "transformers", "optuna")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("super_adapter", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--evals", type=int, default=100)
    parser.add_argument("--torch-dtype", default="fp32")
    parser.add_argument("--seeds", default="1,2,3")
    return parser.parse_args()


def search(arguments: argparse.Namespace, way: str, seed: int, evals: int) -> dict[str, Any]:
    """The record of one search."""
    output = arguments.work / f"{way.replace(' ', '-')}-{seed}"
    if not (output / "search.json").exists() or not json.loads((output / "search.json").read_text())["finished"]:
        settings = [
            "--val-set-size",
            arguments.prompts,
            "--evals",
            evals,
            "--torch-dtype",
            arguments.torch_dtype,
            "--seed",
            seed,
        ]
        lonas_edge("search", arguments.super_adapter, "--data", arguments.data, "--output", output, *settings, *WAYS[way])
    record: dict[str, Any] = json.loads((output / "search.json").read_text())
    return record


def main() -> None:
    arguments = parse()
    arguments.work.mkdir(parents=True, exist_ok=True)
    found: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
    for seed in map(int, arguments.seeds.split(",")):
        extra = 0
        for way in WAYS:
            record = search(arguments, way, seed, arguments.evals + extra)
            seconds = record["seconds"]
            if "damage table" in seconds:
                extra = round(seconds["damage table"] / statistics.median(one["seconds"] for one in record["evaluations"]))
            volume, equal = record["hypervolume"], arguments.evals
            figures = {"seed": seed, "at_equal_evaluations": volume[equal - 1], "at_equal_work": volume[-1]}
            found[way].append({**figures, "evaluations": len(volume), "hypervolume": volume, "seconds": seconds})
            print(
                f"seed {seed}, {way}: {volume[equal - 1]:.4f} at {equal} evaluations, {volume[-1]:.4f} at {len(volume)}",
                flush=True,
            )
    for way, rows in found.items():
        shown = [statistics.mean(row[key] for row in rows) for key in ("at_equal_evaluations", "at_equal_work")]
        print(f"{way:18} {shown[0]:.4f} at equal evaluations, {shown[1]:.4f} at equal work")
    if arguments.output:
        settings = {name: getattr(arguments, name) for name in ("prompts", "evals", "torch_dtype", "seeds")}
        conditions = {**describe("CPU"), "versions": versions(PACKAGES)}
        report = {"conditions": conditions, "settings": settings, "ways": found}
        arguments.output.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
