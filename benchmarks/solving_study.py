"""What solving gives back of a cut, by sub-network, number of prompts and shrinkage; seconds and memory.

    python benchmarks/solving_study.py SUPER_ADAPTER --model BASE --data TRAIN.json --held-out HELD_OUT.json \\
        --output benchmarks/results/solving_study.json

Mean KL from the maximal network on prompts of HELD_OUT, none of which is in TRAIN, without and with the correction that
`export --solve` makes. Each case of `--cases` is SUBNET:PROMPTS:SHRINKAGE; SUBNET as on the command line, or a file.
"""

import argparse
import json
import time
from pathlib import Path

from lonas_edge.bench.machine import describe
from lonas_edge.exporting.steps import peak_memory
from lonas_edge.network.heldout import read_held_out
from lonas_edge.network.materialize import MaterializedModel
from lonas_edge.network.solving import solve
from lonas_edge.network.source import open_source
from lonas_edge.network.tokenizer import load_tokenizer
from lonas_edge.space.subnetwork import select
from lonas_edge.versions import versions

CASES = "heuristic:128:0.1,heuristic:512:0.03,heuristic:512:0.1,heuristic:512:0.3,heuristic:2048:0.1,minimal:512:0.1"
HELD_OUT = 128
PACKAGES = ("lonas-edge", "torch", "transformers", "peft")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source")
    parser.add_argument("--model")
    parser.add_argument("--nncf-config", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--held-out", type=Path, required=True)
    parser.add_argument("--cases", default=CASES)
    parser.add_argument("--output", type=Path)
    return parser.parse_args()


def main() -> None:
    arguments = parse()
    source = open_source(arguments.source, arguments.model, arguments.nncf_config)
    tokenizer = load_tokenizer(source.base.folder)
    held_out = read_held_out(source, arguments.held_out, HELD_OUT, 0).batches(tokenizer)
    rows = []
    for case in arguments.cases.split(","):
        subnet, prompts, shrinkage = case.rsplit(":", 2)
        model = MaterializedModel(source, select(source.space, subnet))
        batches = read_held_out(source, arguments.data, int(prompts), 0).batches(tokenizer)
        start = time.perf_counter()
        found = solve(model, batches, held_out, float(shrinkage))
        rows.append(
            {
                "subnetwork": model.subnetwork.name,
                "prompts": int(prompts),
                "tokens": found.tokens,
                "shrinkage": float(shrinkage),
                "kl_before": found.before,
                "kl_after": found.after,
                "seconds": round(time.perf_counter() - start, 1),
                "peak_rss_bytes": peak_memory(),
            }
        )
        print(rows[-1], flush=True)
    report = {"conditions": {**describe("CPU"), "versions": versions(PACKAGES)}, "held_out": HELD_OUT, "cases": rows}
    if arguments.output:
        arguments.output.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
