"""What solving gives back of a cut, by sub-network, number of prompts and shrinkage; seconds and memory.

    python benchmarks/solving_study.py SUPER_ADAPTER --model BASE --data TRAIN.json --held-out HELD_OUT.json \\
        --output benchmarks/results/solving_study.json

Mean KL from the maximal network on prompts of HELD_OUT, none of which is in TRAIN, without and with the correction that
`export --solve` makes. Each case of `--cases` is SUBNET:PROMPTS:SHRINKAGE; SUBNET as on the command line, or a file.

    python benchmarks/solving_study.py llama-7b --layers 4 --work DIR --data TRAIN.json --held-out HELD_OUT.json \
        --held-out-prompts 16 --prompt-tokens 64 --cases heuristic:128:0.1 --output benchmarks/results/solving_llama_7b.json

What it costs at a shape of `random_models.py` (random weights, whose KL says nothing). Layers are walked one by one, so seconds
grow evenly with their number, and memory by the adapter's: a few numbers of layers (`--layers 2,4`) give the whole model's.
Memory is the process's largest so far, so that of a later case may be an earlier one's.
"""

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from random_models import SHAPES, random_source

from lonas_edge.bench.machine import describe
from lonas_edge.network.heldout import read_held_out
from lonas_edge.network.materialize import MaterializedModel
from lonas_edge.network.solving import solve
from lonas_edge.network.source import Source, open_source
from lonas_edge.network.tokenizer import load_tokenizer
from lonas_edge.processes import peak_memory
from lonas_edge.versions import versions

CASES = "heuristic:128:0.1,heuristic:512:0.03,heuristic:512:0.1,heuristic:512:0.3,heuristic:2048:0.1,minimal:512:0.1"
HELD_OUT = 128
FRAME = len("Question: \nAnswer:")
PACKAGES = ("lonas-edge", "torch", "transformers", "peft")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", help=f"a super-adapter, or one of {', '.join(SHAPES)}")
    parser.add_argument("--layers", default="", help="of a shape, several separated by commas; its own number when not given")
    parser.add_argument("--work", type=Path, help="where models of a shape are kept")
    parser.add_argument("--prompt-tokens", type=int, help="of a shape's prompts, whose tokenizer has a token a byte")
    parser.add_argument("--model")
    parser.add_argument("--nncf-config", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--held-out", type=Path, required=True)
    parser.add_argument("--held-out-prompts", type=int, default=HELD_OUT)
    parser.add_argument("--cases", default=CASES)
    parser.add_argument("--output", type=Path)
    return parser.parse_args()


def cut_short(file: Path, work: Path, tokens: int | None) -> Path:
    """The same examples, cut to so many bytes a prompt."""
    if tokens is None:
        return file
    rows = [
        {**row, "instruction": row["instruction"][: max(1, tokens - FRAME)], "output": "."}
        for row in json.loads(file.read_text())
    ]
    short = work / f"{tokens}-{file.name}"
    short.write_text(json.dumps(rows))
    return short


def solved(arguments: argparse.Namespace, source: Source) -> Iterator[dict[str, Any]]:
    """A row a case."""
    tokenizer = load_tokenizer(source.base.folder)
    work, tokens = arguments.work, arguments.prompt_tokens
    data, held = (cut_short(file, work, tokens) for file in (arguments.data, arguments.held_out))
    template = "question" if tokens else None
    held_out = read_held_out(source, held, arguments.held_out_prompts, 0, template).batches(tokenizer)
    for case in arguments.cases.split(","):
        subnet, prompts, shrinkage = case.rsplit(":", 2)
        model = MaterializedModel(source, source.select(subnet))
        batches = read_held_out(source, data, int(prompts), 0, template).batches(tokenizer)
        start = time.perf_counter()
        with TemporaryDirectory(dir=arguments.work) as scratch:
            found = solve(model, batches, held_out, Path(scratch), float(shrinkage))
        yield {
            "layers": source.architecture.config.num_hidden_layers,
            "subnetwork": model.subnetwork.name,
            "prompts": int(prompts),
            "tokens": found.tokens,
            "shrinkage": float(shrinkage),
            "kl_before": found.before,
            "kl_after": found.after,
            "seconds": round(time.perf_counter() - start, 1),
            "peak_rss_bytes": peak_memory(),
        }


def sources(arguments: argparse.Namespace) -> Iterator[Source]:
    """What is solved: the super-adapter, or a shape with each number of layers."""
    if arguments.source not in SHAPES:
        yield open_source(arguments.source, arguments.model, arguments.nncf_config)
        return
    for layers in arguments.layers.split(","):
        adapter, _, base, _, space = random_source(arguments.source, arguments.work, int(layers) if layers else None)
        yield open_source(str(adapter), str(base), Path(space))


def main() -> None:
    arguments = parse()
    rows = []
    for source in sources(arguments):
        for row in solved(arguments, source):
            rows.append(row)
            print(row, flush=True)
    conditions = {**describe("CPU"), "versions": versions(PACKAGES)}
    report = {"conditions": conditions, "held_out": arguments.held_out_prompts, "cases": rows}
    if arguments.output:
        arguments.output.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
