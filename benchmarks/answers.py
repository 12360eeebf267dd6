"""The adapter cards' table at the scale that runs here: what cutting and compressing cost in answers, on whole test sets.

    python benchmarks/answers.py SUPER_ADAPTER LORA_ADAPTER --datasets DIR --work DIR \\
        --output benchmarks/results/answers_smollm2_135m

SUPER_ADAPTER and LORA_ADAPTER are `lonas-edge train`'s, on one base. Exports LoRA, the heuristic sub-network as fp32, INT8 and
INT4 and the minimal one as INT8, and runs `lonas-edge eval` on them by `option-text`, then once more with the fp32 sub-network
first: what compressing costs, from the same answers. A run that was stopped goes on.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path

BIN = Path(sys.executable).parent
TASKS = "ARC-Easy,ARC-Challenge,openbookqa,boolq"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("super_adapter", type=Path)
    parser.add_argument("lora", type=Path)
    parser.add_argument("--base", type=Path, help="evaluated zero-shot, too")
    parser.add_argument("--datasets", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True, help="scratch directory; exports and answers are kept there")
    parser.add_argument("--output", type=Path, required=True, help="directory; the second report is OUTPUT_compression")
    parser.add_argument("--limit", type=int, help="samples of each task; all by default")
    return parser.parse_args()


def lonas_edge(*command: object) -> None:
    subprocess.run([BIN / "lonas-edge", *map(str, command)], check=True)


def main() -> None:
    arguments = parse()
    os.environ["XDG_CACHE_HOME"] = str(arguments.work.resolve() / "cache")
    wanted = {
        "LoRA-fp32": (arguments.lora, "maximal", "fp32"),
        "LoRA-int8": (arguments.lora, "maximal", "int8"),
        "heuristic-fp32": (arguments.super_adapter, "heuristic", "fp32"),
        "heuristic-int8": (arguments.super_adapter, "heuristic", "int8"),
        "heuristic-int4": (arguments.super_adapter, "heuristic", "int4"),
        "minimal-int8": (arguments.super_adapter, "minimal", "int8"),
    }
    if arguments.base:
        wanted["zero-shot-fp32"] = (arguments.base, "maximal", "fp32")
    folders = {name: arguments.work / name for name in wanted}
    for name, (source, subnet, weight_format) in wanted.items():
        if not folders[name].exists():
            lonas_edge("export", source, "--subnet", subnet, "--weight-format", weight_format, "--output", folders[name])
    options: list[object] = ["--tasks", TASKS, "--datasets", arguments.datasets, "--protocol", "option-text", "--overwrite"]
    options += ["--limit", arguments.limit] if arguments.limit else []
    lonas_edge("eval", *folders.values(), *options, "--output", arguments.output)
    formats = [folders[f"heuristic-{weight_format}"] for weight_format in ("fp32", "int8", "int4")]
    lonas_edge("eval", *formats, *options, "--output", arguments.output.with_name(f"{arguments.output.name}_compression"))
    for report in (arguments.output, arguments.output.with_name(f"{arguments.output.name}_compression")):
        for log in (report / "samples").rglob("*.jsonl"):  # the data sets' own licences: samples are not published
            log.unlink()
        for folder in sorted((report / "samples").rglob("*"), reverse=True):
            folder.rmdir()
        (report / "samples").rmdir()


if __name__ == "__main__":
    main()
