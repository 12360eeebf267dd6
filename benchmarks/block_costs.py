"""What a block costs on this machine: milliseconds of a token and of a prompt, of attention and of an MLP at each width.

    python benchmarks/block_costs.py models/smollm2-135m --work models/bench --output benchmarks/results/block_costs.json
    python benchmarks/block_costs.py llama-7b --layers 4 --work models/bench --output benchmarks/results/block_costs.json

A model is a directory, or a shape of `random_models.py`, whose weights are random: time does not depend on them. One network
is measured for each kind of block and width, with all the groups of that kind at it, beside the whole network, in turn in one
run a weight format and prompt length; a block's cost is its share of the difference. It does not depend on how many layers
there are, so a few of a large shape do (--layers), if their weights do not stay in the processor's caches. IRs are kept in
--work. What was measured before is kept in --output, by model, format and length.
"""

import argparse
import json
import os
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from random_models import SHAPES, random_base

from lonas_edge.bench import machine
from lonas_edge.network.source import Source, open_source
from lonas_edge.search.latency_table import format_table
from lonas_edge.search.timed import kept_ir, stock_properties, time_irs, used_versions
from lonas_edge.search.timing_settings import CostSettings
from lonas_edge.search.uniform import find_kinds, uniform_networks
from lonas_edge.space.generate import generate_space


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help=f"a directory, or one of {', '.join(SHAPES)}")
    parser.add_argument("--ratios", default="1,.75,.5,.25", help="widths of an MLP")
    parser.add_argument("--heads", action="store_true", help="attention with fewer heads, too")
    parser.add_argument("--layers", type=int, help="decoder layers of a shape; its own number when not given")
    parser.add_argument("--work", type=Path, required=True, help="scratch directory; models and IRs are kept there")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--weight-format", default="int8_sym,int4_sym")
    parser.add_argument("--prompt-len", default="256,1024")
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--starts", type=int, default=4)
    parser.add_argument("--only", choices=["export"], help="stop after this step")
    return parser.parse_args()


def opened(arguments: argparse.Namespace) -> Source:
    """The base alone, with a space in which every block but the first layer's may be left out."""
    shape = arguments.model in SHAPES
    base = random_base(arguments.model, arguments.work, arguments.layers) if shape else Path(arguments.model)
    architecture = open_source(str(base), weights=False).architecture
    first = architecture.family.layer(0) + "."
    blocks = [path for path in architecture.blocks if not path.startswith(first)]
    ratios = tuple(map(float, arguments.ratios.split(",")))
    content = generate_space(architecture, ratios, (1,), blocks=blocks, heads=arguments.heads)
    space = arguments.work / f"{base.name}-blocks{'-heads' * arguments.heads}.json"
    space.write_text(json.dumps(content))
    return open_source(str(base), None, space)


def exported(source: Source, weight_format: str, work: Path) -> list[tuple[Path, str]]:
    """IRs of all networks that are measured."""
    irs = []
    for number, widths in enumerate(dict.fromkeys(uniform_networks(source, find_kinds(source)).values()), 1):
        print(f"{weight_format}: exporting {number}", flush=True)
        irs.append((kept_ir(source, widths, weight_format, work), weight_format))
    return irs


def measured(source: Source, weight_format: str, settings: CostSettings, work: Path) -> dict[str, Any]:
    """Cost of a block of each kind and width, as milliseconds saved by one of them."""
    kinds = find_kinds(source)
    networks = uniform_networks(source, kinds)
    irs = exported(source, weight_format, work)
    found = dict(zip(dict.fromkeys(networks.values()), time_irs(irs, settings, lambda *_: None), strict=True))
    table = format_table(source, kinds, found, stock_properties(weight_format, settings))
    rows: dict[str, Any] = {}
    for kind in kinds:
        curve, count = table.curves[kind.name], sum(kind.layers.values())
        rows[kind.name] = {
            "blocks": count,
            "saved_ms_by_width": {
                str(width): {"ttft": (curve.ttft[0] - ttft) / count, "tpot": (curve.tpot[0] - tpot) / count}
                for width, ttft, tpot in zip(curve.widths[1:], curve.ttft[1:], curve.tpot[1:], strict=True)
            },
        }
    whole = table.curves[kinds[0].name]
    return {"whole_ms": {"ttft": whole.ttft[0], "tpot": whole.tpot[0]}, "kinds": rows}


def main() -> None:
    arguments = parse()
    arguments.work.mkdir(parents=True, exist_ok=True)
    source = opened(arguments)
    results = json.loads(arguments.output.read_text()) if arguments.output.exists() else {}
    for name in arguments.weight_format.split(","):
        if arguments.only:
            exported(source, name, arguments.work)
            continue
        for length in map(int, arguments.prompt_len.split(",")):
            settings = CostSettings(
                prompt_len=length, new_tokens=arguments.new_tokens, rounds=arguments.rounds, starts=arguments.starts
            )
            start = machine.CpuTimes.now([])
            found = measured(source, name, settings, arguments.work)
            stolen = machine.others_share(start, machine.CpuTimes.now([]), os.cpu_count() or 1)["stolen"]
            found["conditions"] = {**machine.describe("CPU"), "versions": used_versions(), "stolen": stolen}
            found["conditions"] |= {"rounds": arguments.rounds, "starts": arguments.starts, "new_tokens": arguments.new_tokens}
            results[f"{source.base.folder.name}/{name}/{length}"] = found
            arguments.output.write_text(json.dumps(results, indent=1) + "\n")
            print(f"{arguments.model} {name}, {length} tokens: {found['whole_ms']}")
            for kind, row in found["kinds"].items():
                for width, saved in row["saved_ms_by_width"].items():
                    print(f"  {kind} at {width}: prompt {saved['ttft']:.3f} ms, token {saved['tpot']:.4f} ms", flush=True)


if __name__ == "__main__":
    main()
