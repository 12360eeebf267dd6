"""Latency of a sub-network compared with LoRA in PyTorch and the unpruned IR, interleaved in one run.

    python benchmarks/latency.py --work models/bench --shape smollm2-135m --output OUTPUT
    python benchmarks/latency.py --work models/bench --shape llama-1.1b …    random weights, 9 GB of disk
    python benchmarks/latency.py --work models/bench --shape llama-7b …      random weights, 45 GB of disk, 24 GB of memory
    python benchmarks/latency.py --work models/bench --shape bloom-1b …      random weights, 6 GB of disk

Makes what is missing (base, adapter, the heuristic sub-network as INT8 IR) and runs
`lonas-edge bench`, which writes its report to --output.
"""

import argparse
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from export_cost import smollm2
from random_models import random_source

from lonas_edge.bench.measure import Schedule
from lonas_edge.bench.options import BenchOptions
from lonas_edge.bench.report import write
from lonas_edge.bench.run import bench
from lonas_edge.bench.variants import Case
from lonas_edge.exporting.exported import open_exported


@dataclass(frozen=True)
class Settings:
    """A benchmark of one shape: fewer tokens and rounds where a round takes a minute."""

    prompt_lens: tuple[int, ...]
    new_tokens: int
    rounds: int
    dtype: str
    arms: str = "subnet,lora,unpruned"


SHAPES = {
    "smollm2-135m": Settings((64, 256, 512), 64, 24, "fp32", "subnet,lora,lora-merged,unpruned"),
    "llama-1.1b": Settings((256,), 32, 8, "bf16", "subnet,lora,lora-merged,unpruned"),
    "llama-7b": Settings((256,), 16, 6, "bf16"),
    "bloom-1b": Settings((256,), 32, 8, "bf16"),
}


def lonas_edge(*command: object) -> None:
    """Run the command line and show its output."""
    subprocess.run([sys.executable, "-m", "lonas_edge", *map(str, command)], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="directory for the models, which are kept")
    parser.add_argument("--shape", choices=SHAPES, default="smollm2-135m")
    parser.add_argument("--arms", help="variants, as of `lonas-edge bench`; default: those of the shape")
    parser.add_argument("--output", type=Path, required=True, help="directory of the report")
    arguments = parser.parse_args()
    work, shape, settings = arguments.work, arguments.shape, SHAPES[arguments.shape]
    work.mkdir(parents=True, exist_ok=True)
    os.environ["XDG_CACHE_HOME"] = str(work.resolve() / "cache")
    source = smollm2(work) if shape == "smollm2-135m" else random_source(shape, work)
    folder = work / f"{shape}-heuristic-int8"
    if not folder.exists():  # with random weights there are no answers to verify
        lonas_edge("export", *source, "--subnet", "heuristic", "--output", folder, "--no-verify")
    arms = (arguments.arms or settings.arms).split(",")
    adapter, _, base = source[:3]
    options = BenchOptions(
        variants=tuple(arms),
        cases=tuple(Case(length, settings.new_tokens) for length in settings.prompt_lens),
        schedule=Schedule.of(settings.rounds),
        torch_dtype=settings.dtype,
        adapter=str(adapter),
        model=str(base),
    )
    record = bench(open_exported(folder), options)
    arguments.output.mkdir(parents=True, exist_ok=True)
    write(record, arguments.output)


if __name__ == "__main__":
    main()
