"""The latency tables of the README: a sub-network beside LoRA in PyTorch, the unpruned IR and llama.cpp, in one run a shape.

    python benchmarks/latency.py --work models/bench --shape smollm2-135m --output OUTPUT
    python benchmarks/latency.py --work models/bench --shape llama-1.1b …    random weights, 9 GB of disk
    python benchmarks/latency.py --work models/bench --shape llama-7b …      random weights, 45 GB of disk, 24 GB of memory
    python benchmarks/latency.py --work models/bench --shape bloom-1b …      random weights, 6 GB of disk

Makes what is missing (base, adapter, the heuristic sub-network as INT8 IR, the unpruned merged model as Q8_0 GGUF) and
runs `lonas-edge bench`, whose report it leaves in --output. With `--tune` the exported directory is tuned first; every IR then
has the properties that were chosen.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path

from export_cost import smollm2
from random_models import random_source

from lonas_edge.bench.making import ARMS as ARM_KINDS
from lonas_edge.bench.report import Report

BIN = Path(sys.executable).parent

# Per shape: options of `lonas-edge bench`, and the dtype of PyTorch. Fewer tokens and rounds where a round takes a minute.
SETTINGS = {
    "smollm2-135m": ("--prompt-len 64,256,512 --new-tokens 64 --rounds 16 --warmup 1 --starts 8", "fp32"),
    "llama-1.1b": ("--prompt-len 256 --new-tokens 32 --rounds 8 --warmup 1 --starts 2", "bf16"),
    "llama-7b": ("--prompt-len 256 --new-tokens 16 --rounds 6 --warmup 1 --starts 1", "bf16"),
    "bloom-1b": ("--prompt-len 256 --new-tokens 32 --rounds 8 --warmup 1 --starts 2", "bf16"),
}
TUNING = {
    "llama-1.1b": ["--new-tokens", "32", "--rounds", "8"],
    "llama-7b": ["--new-tokens", "8", "--rounds", "6", "--starts", "1"],
}
ARMS = {
    "smollm2-135m": "subnet,lora,lora-merged,unpruned,gguf",
    "llama-1.1b": "subnet,lora,lora-merged,unpruned,gguf",
    "llama-7b": "subnet,lora,unpruned",
    "bloom-1b": "subnet,lora,unpruned",
}


def lonas_edge(*command: object) -> None:
    """Run the command line, its progress and tables shown."""
    subprocess.run([BIN / "lonas-edge", *map(str, command)], check=True)


def exported(source: list[str | Path], folder: Path) -> Path:
    """The heuristic sub-network as INT8 IR; answers of random weights need no verification."""
    if not folder.exists():
        lonas_edge("export", *source, "--subnet", "heuristic", "--output", folder, "--no-verify")
    return folder


def q8_0(source: list[str | Path], work: Path, shape: str) -> Path:
    """The unpruned merged model as GGUF, Q8_0."""
    folder = work / f"{shape}-merged-gguf"
    if not folder.exists():
        lonas_edge("export", *source, "--subnet", "maximal", "--stage", "gguf", "--output", folder, "--no-verify")
    return folder / "model.Q8_0.gguf"


def made_from(source: list[str | Path], arms: str, work: Path, shape: str, dtype: str) -> list[str | Path]:
    """Options of `lonas-edge bench` that the arms need; one that would do nothing is wrong usage."""
    adapter, model, base = source[:3]
    known = [ARM_KINDS[name] for name in arms.split(",") if name in ARM_KINDS]
    options: list[str | Path] = ["--adapter", adapter, model, base] if any(arm.needs_source for arm in known) else []
    options += ["--torch-dtype", dtype] if any(arm.kind == "torch" for arm in known) else []
    return options + (["--gguf", q8_0(source, work, shape)] if any(arm.kind == "gguf" for arm in known) else [])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="scratch directory; models made for it are kept there")
    parser.add_argument("--shape", choices=SETTINGS, default="smollm2-135m")
    parser.add_argument("--arms", help="as of `lonas-edge bench`; all that there are by default")
    parser.add_argument("--output", type=Path, required=True, help="directory for the report")
    parser.add_argument("--tune", action="store_true", help="tune the exported directory first")
    parser.add_argument("options", nargs="*", help="further options of `lonas-edge bench`, after --")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    os.environ["XDG_CACHE_HOME"] = str(arguments.work.resolve() / "cache")
    shape, arms = arguments.shape, arguments.arms or ARMS[arguments.shape]
    source = smollm2(arguments.work) if shape == "smollm2-135m" else random_source(shape, arguments.work)
    folder = exported(source, arguments.work / f"{shape}-heuristic-int8{'-tuned' if arguments.tune else ''}")
    if arguments.tune and not (folder / "lonas_edge_runtime.json").exists():
        lonas_edge("bench", folder, "--tune", "--prompt-len", "256", *TUNING.get(shape, []))
    settings, dtype = SETTINGS[shape]
    options = [*settings.split(), *made_from(source, arms, arguments.work, shape, dtype), *arguments.options]
    lonas_edge("bench", folder, "--arms", arms, "--output", arguments.output, "--overwrite", *options)
    report = Report.read(arguments.output / "bench.json")
    size = {arm.name: arm.facts.weight_bytes_per_token for arm in report.arms if arm.facts}
    for found in report.comparisons:
        if found.arm == "unpruned" and found.metric != "generate_duration":
            share = found.speedup.ratio / (size["unpruned"] / size["subnet"])
            print(f"{found.case.prompt_len} tokens, {found.metric}: {share:.1%} of the ratio of bytes")


if __name__ == "__main__":
    main()
