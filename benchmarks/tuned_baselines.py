"""Study: latency of stock files as they are and with an activation group in the IR, next to a compressed network.

    python benchmarks/tuned_baselines.py COMPRESSED --work DIR --output benchmarks/results/tuned_baselines.json \\
        optimum-int8=192 optimum-int4=64 optimum-int4-gptq=64

COMPRESSED was exported by lonas-edge. Each stock directory is measured twice: as written, and as a copy whose IR holds
`DYNAMIC_QUANTIZATION_GROUP_SIZE`, which every client reads. All are measured in one interleaved run for each prompt length.
Ratios are those of COMPRESSED to the others, paired, with 95 % intervals.
"""

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import openvino as ov
from study import conditions, timed

IR = "openvino_model.xml"


def with_group(folder: Path, size: int, output: Path) -> Path:
    """Copy an exported directory, with a group size of the activations in its IR."""
    if not (output / IR).exists():
        shutil.rmtree(output, ignore_errors=True)
        shutil.copytree(folder, output, ignore=shutil.ignore_patterns("openvino_model.*"))
        model = ov.Core().read_model(folder / IR)
        model.set_rt_info(str(size), ["runtime_options", "DYNAMIC_QUANTIZATION_GROUP_SIZE"])
        ov.save_model(model, output / IR, compress_to_fp16=False)
    return output


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("compressed", type=Path)
    parser.add_argument("stock", nargs="+", help="DIR=GROUP")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--prompt-len", type=lambda text: [int(part) for part in text.split(",")], default=[256, 1024])
    parser.add_argument("--rounds", type=int, default=18)
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    networks: dict[str, Path] = {"compressed": arguments.compressed}
    for stock in arguments.stock:
        folder, _, size = stock.rpartition("=")
        name = Path(folder).name
        networks[name] = Path(folder)
        networks[f"{name}, group {size}"] = with_group(Path(folder), int(size), arguments.work / f"{name}-{size}")
    report: dict[str, Any] = {"conditions": conditions(), "rounds": arguments.rounds, "prompt_len": {}}
    for length in arguments.prompt_len:
        rows = timed(networks, arguments.work / f"bench-{length}", arguments.rounds, length)
        report["prompt_len"][str(length)] = rows
        for name, row in rows.items():
            print(length, name, row)
    arguments.output.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
