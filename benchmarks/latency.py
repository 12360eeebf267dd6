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


@dataclass(frozen=True)
class Settings:
    """Options of `bench` for one shape: fewer tokens and rounds where a round takes a minute."""

    bench: str
    dtype: str
    arms: str = "subnet,lora,unpruned"


SHAPES = {
    "smollm2-135m": Settings("--prompt-len 64,256,512 --new-tokens 64 --rounds 24", "fp32", "subnet,lora,lora-merged,unpruned"),
    "llama-1.1b": Settings(
        "--prompt-len 256 --new-tokens 32 --rounds 8",
        "bf16",
        "subnet,lora,lora-merged,unpruned",
    ),
    "llama-7b": Settings("--prompt-len 256 --new-tokens 16 --rounds 6", "bf16"),
    "bloom-1b": Settings("--prompt-len 256 --new-tokens 32 --rounds 8", "bf16"),
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
    parser.add_argument("options", nargs="*", help="more options of `lonas-edge bench`, after --")
    arguments = parser.parse_args()
    work, shape, settings = arguments.work, arguments.shape, SHAPES[arguments.shape]
    work.mkdir(parents=True, exist_ok=True)
    os.environ["XDG_CACHE_HOME"] = str(work.resolve() / "cache")
    source = smollm2(work) if shape == "smollm2-135m" else random_source(shape, work)
    folder = work / f"{shape}-heuristic-int8"
    if not folder.exists():  # with random weights there are no answers to verify
        lonas_edge("export", *source, "--subnet", "heuristic", "--output", folder, "--no-verify")
    arms = (arguments.arms or settings.arms).split(",")
    options: list[object] = []
    if {"lora", "lora-merged", "unpruned"} & {*arms}:
        adapter, model, base = source[:3]
        options += ["--adapter", adapter, model, base]
    if {"lora", "lora-merged"} & {*arms}:
        options += ["--torch-dtype", settings.dtype]
    options += [*settings.bench.split(), *arguments.options]
    lonas_edge("bench", folder, "--arms", ",".join(arms), "--output", arguments.output, "--overwrite", *options)


if __name__ == "__main__":
    main()
