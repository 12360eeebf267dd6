"""What the damage tables of finished searches foretell, and whether another cost chooses other networks.

    python benchmarks/search_tables.py DIR=SUPER_ADAPTER … --output benchmarks/results/search_tables.json

DIR is what `lonas-edge search --cost tpot` (by KL, one weight format) left, SUPER_ADAPTER what it searched; nothing is
computed with weights. Two questions:

- How near are the table's sums to the KL of whole networks? Over all evaluations but the maximal network's: correlation, and
  the error of a sum as a share of the measured KL; narrow networks (sums above --narrow nats) apart.
- Is the front by TPOT another one than that by MACs, or by TTFT? At each rung of a ladder of MACs the knapsack's network is
  compared with the knapsack's network by TPOT that takes as long, by the sums of the table, and by what differs.
"""

import argparse
import json
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lonas_edge.network.source import Source, open_source
from lonas_edge.search import LATENCY
from lonas_edge.search.cost import cost_function
from lonas_edge.search.damage import DamageTable
from lonas_edge.search.dimensions import Dimensions, find_dimensions
from lonas_edge.search.latency_table import LatencyTable
from lonas_edge.search.picks import Pick
from lonas_edge.search.record import SearchRecord
from lonas_edge.search.seeds import seeds
from lonas_edge.search.timing_settings import CostSettings

RUNGS = (0.95, 0.9, 0.85, 0.8, 0.75)  # of the maximal network's MACs
COSTS = ("macs", "tpot", "ttft")
Cost = Callable[[Sequence[int], str], float]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("searches", nargs="+", metavar="DIR=SUPER_ADAPTER")
    parser.add_argument("--narrow", type=float, default=0.8, help="nats")
    parser.add_argument("--output", type=Path)
    return parser.parse_args()


def sums(record: SearchRecord, source: Source, table: DamageTable, narrow: float) -> dict[str, Any]:
    """The table's sums beside the measured KL."""
    places = [{width: level for level, width in enumerate(group.widths)} for group in source.space.groups]
    pairs = []
    for one in record.evaluations:
        levels = [row[width] for row, width in zip(places, one.widths, strict=True)]
        if total := table.predicted(levels):
            pairs.append((total, one.quality))
    told: dict[str, Any] = {"networks": len(pairs), "correlation": float(np.corrcoef(np.array(pairs).T)[0, 1])}
    for name, chosen in (("narrow", [p for p in pairs if p[0] > narrow]), ("others", [p for p in pairs if p[0] <= narrow])):
        errors = [total / kl - 1 for total, kl in chosen]
        if errors:
            told[name] = {
                "networks": len(errors),
                "lowest": min(errors),
                "median": statistics.median(errors),
                "highest": max(errors),
            }
    return told


def solved(dimensions: Dimensions, table: DamageTable, cost: Cost, bound: float, weight_format: str) -> tuple[int, ...]:
    """The network of least damage within a bound, by the table's sums."""
    pick = Pick("bound", "cost", bound)
    found = seeds(dimensions, 2, table, cost, {pick: cost})
    named = {origin: network for network, origin in found.items()}
    return next(network[0] for origin, network in named.items() if origin == "seed:pick:bound")


def fronts(record: SearchRecord, source: Source, table: DamageTable, latency: LatencyTable) -> list[dict[str, Any]]:
    """At each rung: what the network by MACs costs, and what the one by another cost saves in damage at the same price."""
    (weight_format,) = record.settings["weight_formats"]
    settings = CostSettings(weight_formats=(weight_format,))
    costs = {name: cost_function(name, source, settings, table=latency) for name in COSTS}
    dimensions = find_dimensions(source, [weight_format])
    whole = {name: cost(source.elasticity.maximal, weight_format) for name, cost in costs.items()}
    rows = []
    for rung in RUNGS:
        by_macs = solved(dimensions, table, costs["macs"], rung * whole["macs"], weight_format)
        row: dict[str, Any] = {"macs": rung, "damage_by_macs": damage(dimensions, table, by_macs)}
        row["kept_by_macs"] = kept(source, by_macs)
        for name in COSTS[1:]:
            price = costs[name](by_macs, weight_format)
            other = solved(dimensions, table, costs[name], price, weight_format)
            row[name] = {
                "price": price / whole[name],
                "damage": damage(dimensions, table, other),
                "macs": costs["macs"](other, weight_format) / whole["macs"],
                "groups_that_differ": sum(a != b for a, b in zip(by_macs, other, strict=True)),
                "kept": kept(source, other),
            }
        rows.append(row)
    return rows


def damage(dimensions: Dimensions, table: DamageTable, widths: Sequence[int]) -> float:
    """The table's sum."""
    levels = dict(zip(dimensions.searched, dimensions.levels(widths), strict=True))
    return table.predicted([levels.get(index, 0) for index in range(len(dimensions.space.groups))])


def kept(source: Source, widths: Sequence[int]) -> dict[str, float]:
    """Blocks that are left out, and the share of MLP channels that is kept."""
    groups = list(zip(source.space.groups, widths, strict=True))
    mlps = [(width, group.widths[0]) for group, width in groups if group.kind == "width" and ".mlp." in group.modules[0]]
    return {
        "blocks_left_out": sum(width == 0 for group, width in groups if group.kind == "block"),
        "mlp_channels": sum(width for width, _ in mlps) / max(1, sum(widest for _, widest in mlps)),
    }


def main() -> None:
    arguments = parse()
    found: dict[str, dict[str, Any]] = {}
    for pair in arguments.searches:
        folder, _, adapter = pair.partition("=")
        record, source = SearchRecord.read(Path(folder) / "search.json"), open_source(adapter, weights=False)
        assert record.table, f"{folder}: a search without its damage table"
        table, latency = DamageTable(record.table.damage), LatencyTable.read(Path(folder) / LATENCY)
        name = f"{Path(folder).name} of {Path(adapter).name}"
        found[name] = {
            "conditions": record.conditions,
            "sums": sums(record, source, table, arguments.narrow),
            "fronts": fronts(record, source, table, latency),
        }
        print(f"{name}: {found[name]['sums']}")
        for row in found[name]["fronts"]:
            print(f"  {row['macs']:.2f} of the MACs: sum {row['damage_by_macs']:.3f} {row['kept_by_macs']}")
            for cost in COSTS[1:]:
                other = row[cost]
                print(
                    f"    at its {cost} ({other['price']:.3f}): {other['damage']:.3f} by {cost}, {other['groups_that_differ']} "
                    f"groups differ, {other['macs']:.3f} of the MACs {other['kept']}"
                )
    if arguments.output:
        arguments.output.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
