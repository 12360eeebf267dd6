"""Would a few prompts do to sort out networks first? KL by fewer prompts, and by the damage table's sums, against KL by all.

    python benchmarks/fewer_prompts.py SUPER_ADAPTER SEARCH_DIR --data HELD_OUT.json \\
        --output benchmarks/results/fewer_prompts.json

SEARCH_DIR is a finished search by KL on prompts of HELD_OUT. Of its networks every n-th by cost is scored again on the first
--prompts of the same prompts. Shown: rank correlation with the search's own figure, and of pairs of networks whose costs
differ by 3 % at most, among which a search has to choose, the share that is put in the same order.
"""

import argparse
import itertools
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from scipy.stats import spearmanr

from lonas_edge.bench.machine import describe
from lonas_edge.network.heldout import read_held_out
from lonas_edge.network.source import open_source
from lonas_edge.network.super_network import load_super_network
from lonas_edge.network.tokenizer import load_tokenizer
from lonas_edge.space.search_space import SearchSpace
from lonas_edge.versions import versions

PACKAGES = ("lonas-edge", "torch", "transformers", "peft")
NEAR = 0.03


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source")
    parser.add_argument("found", type=Path)
    parser.add_argument("--model")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--prompts", default="5,10,20,40")
    parser.add_argument("--networks", type=int, default=20)
    parser.add_argument("--output", type=Path)
    return parser.parse_args()


def compared(guessed: Sequence[float], exact: Sequence[float], costs: Sequence[float]) -> dict[str, float]:
    """How well one figure puts networks in the order of another."""
    near = [
        (first, second)
        for first, second in itertools.combinations(range(len(exact)), 2)
        if abs(costs[first] - costs[second]) <= NEAR * max(costs)
    ]
    alike = [(guessed[first] < guessed[second]) == (exact[first] < exact[second]) for first, second in near]
    return {
        "rank_correlation": float(spearmanr(guessed, exact).statistic),
        "near_pairs": len(near),
        "near_pairs_in_order": sum(alike) / len(near),
    }


def table_sums(record: dict[str, Any], space: SearchSpace, chosen: Sequence[dict[str, Any]]) -> list[float]:
    """What the damage table says of networks: the sum over their groups, 0 for those that are not in it."""
    rows = record["table"]["damage"]
    return [
        sum(row[group.widths.index(width)] for row, group, width in zip(rows, space.groups, one["widths"], strict=True) if row)
        for one in chosen
    ]


def main() -> None:
    arguments = parse()
    record = json.loads((arguments.found / "search.json").read_text())
    by_cost = sorted(record["evaluations"], key=lambda one: one["cost"])
    chosen = by_cost[:: max(1, len(by_cost) // arguments.networks)]
    exact, costs = ([one[key] for one in chosen] for key in ("quality", "cost"))
    source = open_source(arguments.source, arguments.model)
    tokenizer = load_tokenizer(source.base.folder)
    network = load_super_network(source, torch.bfloat16)
    rows: dict[str, Any] = {"table": compared(table_sums(record, source.space, chosen), exact, costs)}
    for prompts in map(int, arguments.prompts.split(",")):
        batches = read_held_out(source, arguments.data, prompts, record["settings"]["seed"]).batches(tokenizer)
        reference = network.reference(batches)
        start = time.perf_counter()
        guessed = network.kl([one["widths"] for one in chosen], batches, reference)
        seconds = (time.perf_counter() - start) / len(chosen)
        rows[str(prompts)] = {**compared(guessed, exact, costs), "seconds_a_network": round(seconds, 2)}
        print(prompts, rows[str(prompts)], flush=True)
    print("table", rows["table"])
    report = {"conditions": {**describe("CPU"), "versions": versions(PACKAGES)}, "networks": len(chosen), "prompts": rows}
    report["of_all"] = record["data"]["prompts"]
    if arguments.output:
        arguments.output.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
