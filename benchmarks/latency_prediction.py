"""Does the latency table foretell what a network of unequal widths takes? Ten random ones, predicted and measured.

    python benchmarks/latency_prediction.py models/smollm2-135m models/synthetic-adapter nncf_config/smollm2_135m.json \\
        --work models/bench --output benchmarks/results/latency_prediction.json

The networks of equal widths that the table is made of, and the random ones, whose mean widths are spread over the whole
range, are measured in one interleaved run a weight format; with `--apart` in two, one after the other, as a search does it.
Each is to be foretold within 5 %, half of them within 3 %. IRs are kept in --work; a format that was measured before is
replaced in --output. A format takes about five minutes on two cores, and its exports three the first time.
"""

import argparse
import json
import math
import os
import random
import statistics
from dataclasses import asdict
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from lonas_edge.bench import machine
from lonas_edge.network.source import Source, open_source
from lonas_edge.search.latency_table import format_table
from lonas_edge.search.timed import kept_ir, stock_properties, time_irs, used_versions
from lonas_edge.search.timing_settings import CostSettings
from lonas_edge.search.uniform import find_kinds, uniform_networks

EACH, MEDIAN = 0.05, 0.03  # what is asked of the errors
TILT = 1.2  # how much likelier a width is than the next one in the narrowest and the widest of the networks
Widths = tuple[int, ...]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("base", type=Path)
    parser.add_argument("adapter", type=Path)
    parser.add_argument("space", type=Path)
    parser.add_argument("--work", type=Path, required=True, help="scratch directory; IRs made for it are kept there")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--weight-format", default="int8,int4")
    parser.add_argument("--networks", type=int, default=10)
    parser.add_argument("--prompt-len", type=int, default=256)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--starts", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--apart", action="store_true", help="measure the table first, and the random networks after it")
    return parser.parse_args()


def unequal(source: Source, count: int, seed: int) -> list[Widths]:
    """Random networks, from mostly narrow to mostly wide."""
    draw, found = random.Random(seed), []
    for number in range(count):
        tilt = TILT * (2 * number / max(count - 1, 1) - 1)
        groups = source.space.groups
        odds = [[math.exp(-tilt * place) for place in range(len(group.widths))] for group in groups]
        pairs = zip(groups, odds, strict=True)
        found.append(tuple(draw.choices(group.widths, weights)[0] for group, weights in pairs))
    return found


def measured(
    source: Source, networks: list[Widths], weight_format: str, settings: CostSettings, work: Path
) -> dict[Widths, Any]:
    """Latency of networks, in one run."""
    irs = []
    for number, widths in enumerate(networks, 1):
        print(f"{weight_format}: exporting {number} of {len(networks)}", flush=True)
        irs.append((kept_ir(source, widths, weight_format, work), weight_format))
    shown: list[str] = []

    def told(what: str, done: float | None) -> None:
        line = f"{weight_format}: {what.split(',')[0]} {100 * (done or 0):.0f} %"
        if done is not None and line not in shown:
            shown.append(line)
            print(line, flush=True)

    return dict(zip(networks, time_irs(irs, settings, told), strict=True))


def compared(source: Source, arguments: argparse.Namespace, weight_format: str, settings: CostSettings) -> dict[str, Any]:
    """Predicted and measured latency of every random network."""
    kinds = find_kinds(source)
    uniform = list(dict.fromkeys(uniform_networks(source, kinds).values()))
    networks = unequal(source, arguments.networks, arguments.seed)
    runs = [uniform, networks] if arguments.apart else [uniform + networks]
    found: dict[Widths, Any] = {}
    for run in runs:
        found |= measured(source, run, weight_format, settings, arguments.work)
    table = format_table(source, kinds, found, stock_properties(weight_format, settings))
    rows = []
    for widths in networks:
        row: dict[str, Any] = {"widths": widths, "linear_weights": source.sizes(source.subnetwork(widths)).linear_weights}
        for metric in ("ttft", "tpot"):
            predicted, real = table.predict(metric, kinds, widths), 1e3 * getattr(found[widths], metric)
            row[metric] = {"predicted_ms": predicted, "measured_ms": real, "error": predicted / real - 1}
        rows.append(row)
    errors = {metric: [abs(row[metric]["error"]) for row in rows] for metric in ("ttft", "tpot")}
    summary = {metric: {"largest": max(each), "median": statistics.median(each)} for metric, each in errors.items()}
    return {"table": asdict(table), "networks": rows, "errors": summary, "apart": arguments.apart}


def main() -> None:
    arguments = parse()
    source = open_source(str(arguments.adapter), str(arguments.base), arguments.space)
    arguments.work.mkdir(parents=True, exist_ok=True)
    lengths = {name: getattr(arguments, name) for name in ("prompt_len", "new_tokens", "rounds", "starts")}
    settings = CostSettings(**lengths)
    place = machine.placement(None)
    before = json.loads(arguments.output.read_text()) if arguments.output.exists() else {}
    formats = dict(before.get("formats", {}))
    for name in arguments.weight_format.split(","):
        start = machine.CpuTimes.now([])
        formats[name] = compared(source, arguments, name, settings)
        end = machine.CpuTimes.now([])
        told = machine.describe("CPU") | {"threads": place.threads, **lengths, "seed": arguments.seed}
        formats[name]["conditions"] = told | {
            "versions": used_versions(),
            "stolen": machine.others_share(start, end, os.cpu_count() or 1)["stolen"],
        }
        arguments.output.write_text(json.dumps({"formats": formats}, indent=1) + "\n")
        for metric, errors in formats[name]["errors"].items():
            held = "held" if errors["largest"] <= EACH and errors["median"] <= MEDIAN else "NOT HELD"
            print(f"{name} {metric}: largest error {errors['largest']:.1%}, median {errors['median']:.1%}: {held}", flush=True)


if __name__ == "__main__":
    main()
