"""What does a sub-network of a classifier cost in GLUE's metrics, and what does it give in time?

    python scripts/minilm.py models/minilm-l6
    python benchmarks/glue_study.py models/minilm-l6 --glue DIR --work DIR --output benchmarks/results/glue_study.json

For each task (RTE, MRPC, SST-2; of SST-2 a seeded choice of its training file) plain LoRA and a super-adapter are trained,
of equal compute where --lora-steps says so, and a search by KL on held-out training texts finds a network at 0.6 of the maximal
one's MACs. LoRA, the heuristic, the minimal and the found network are exported as fp32 and INT8 IRs and answer the whole
development sets; differences from LoRA's fp32 IR are paired. Then all are timed in turn in one run of `bench`, at each length
and batch: LoRA unmerged in PyTorch as PEFT runs it, and the IRs by OpenVINO. Finished steps are kept in --work.
"""

import argparse
import json
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from lonas_edge.bench.machine import describe, placement
from lonas_edge.versions import versions

TASKS = ("RTE", "MRPC", "SST-2")
HELD_OUT = 400  # training texts that the search alone sees
PACKAGES = ("lonas-edge", "torch", "transformers", "peft", "openvino", "nncf", "optimum-intel")
NETWORKS = ("lora", "heuristic", "minimal", "searched")
FORMATS = ("fp32", "int8")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("base", type=Path)
    parser.add_argument("--glue", type=Path, required=True, help="directory with TASK/train.tsv and TASK/dev.tsv")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--space", type=Path, default=Path(__file__).parent.parent / "nncf_config/minilm_l6.json")
    parser.add_argument("--tasks", default=",".join(TASKS))
    parser.add_argument("--examples", type=int, default=8000, help="training texts of a task at most")
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--lora-steps", type=int, default=600)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--evals", type=int, default=120)
    parser.add_argument("--limit", type=int, help="texts of each development set; all when not given")
    parser.add_argument("--lengths", default="32,128")
    parser.add_argument("--batches", default="1,8")
    parser.add_argument("--rounds", type=int, default=24)
    return parser.parse_args()


def lonas_edge(*command: object, as_json: bool = False) -> Any:
    """Run the command line; its JSON where it is asked for."""
    told = [*map(str, command), *(["--json"] if as_json else [])]
    ran = subprocess.run([sys.executable, "-m", "lonas_edge", *told], check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(ran.stdout) if as_json else None


def split(arguments: argparse.Namespace, task: str) -> tuple[Path, Path]:
    """A seeded choice of a task's training file, and what is held out of it for the search."""
    folders = [arguments.work / name / task for name in ("train", "held")]
    if not folders[1].exists():
        head, *lines = (arguments.glue / task / "train.tsv").read_text(encoding="utf-8-sig").rstrip("\n").split("\n")
        random.Random(arguments.seed).shuffle(lines)
        held = min(HELD_OUT, len(lines) // 8)
        parts = lines[held : held + arguments.examples], lines[:held]
        for folder, part in zip(folders, parts, strict=True):
            folder.mkdir(parents=True)
            (folder / "train.tsv").write_text("\n".join([head, *part]) + "\n", encoding="utf-8")
    return folders[0] / "train.tsv", folders[1] / "train.tsv"


def trained(arguments: argparse.Namespace, task: str, data: Path, elastic: bool) -> Path:
    """A super-adapter, or plain LoRA."""
    adapter = arguments.work / f"{task}-{'super' if elastic else 'lora'}"
    if not adapter.exists():
        kind = ["--nncf-config", arguments.space] if elastic else ["--no-elastic"]
        steps = arguments.steps if elastic else arguments.lora_steps
        options = ["--rank", 8, "--alpha", 16, "--lr", arguments.lr, "--batch-size", arguments.batch_size, "--steps", steps]
        options += ["--precision", arguments.precision]
        lonas_edge(
            "train", "--model", arguments.base, "--data", data, *kind, *options, "--seed", arguments.seed, "--output", adapter
        )
    return adapter


def searched(arguments: argparse.Namespace, task: str, adapter: Path, held: Path) -> Path:
    """The sub-network that a search picks at 0.6 of the MACs."""
    output = arguments.work / f"{task}-search"
    count = len(held.read_text().splitlines()) - 1
    options = ["--val-set-size", count, "--evals", arguments.evals, "--population", 12, "--pick", "macs<=0.6x"]
    if not (output / "search.json").exists():
        lonas_edge("search", adapter, "--data", held, *options, "--output", output)
    record = json.loads((output / "search.json").read_text())
    return output / "subnetworks" / f"{record['picks'][0]['file']}.json"


def exported(arguments: argparse.Namespace, task: str, name: str, source: list[object], stored: str) -> Path:
    """An IR."""
    folder = arguments.work / f"{task}-{name}-{stored}"
    if not folder.exists():
        lonas_edge("export", *source, "--weight-format", stored, "--output", folder)
    return folder


def study(arguments: argparse.Namespace, task: str) -> dict[str, Any]:
    """One task: answers, sizes, times."""
    data, held = split(arguments, task)
    lora, adapter = (trained(arguments, task, data, elastic) for elastic in (False, True))
    subnets = {"heuristic": "heuristic", "minimal": "minimal", "searched": searched(arguments, task, adapter, held)}
    sources: dict[str, list[object]] = {"lora": [lora]}
    sources |= {name: [adapter, "--subnet", subnet] for name, subnet in subnets.items()}
    folders = {
        (name, stored): exported(arguments, task, name, sources[name], stored) for name in NETWORKS for stored in FORMATS
    }
    limit = ["--limit", arguments.limit] if arguments.limit else []
    answers = lonas_edge("eval", *folders.values(), "--tasks", task, "--datasets", arguments.glue, *limit, as_json=True)
    return {
        "networks": {
            f"{name} {stored}": {
                "metrics": told["tasks"][0]["metrics"],
                "macs": told["sizes"]["macs"],
                "parameters": told["sizes"]["parameters"],
                "bytes": (folder / "openvino_model.bin").stat().st_size,
            }
            for ((name, stored), folder), told in zip(folders.items(), answers["targets"], strict=True)
        },
        "less_lora_fp32": answers["differences"],
        "times": times(arguments, task, adapter, folders),
    }


def times(
    arguments: argparse.Namespace, task: str, adapter: Path, folders: dict[tuple[str, str], Path]
) -> list[dict[str, Any]]:
    """Every arm in turn by `bench`: the IRs, and LoRA unmerged in PyTorch; milliseconds, speed-ups of the heuristic INT8 IR."""
    output = arguments.work / f"{task}-bench"
    first = folders["heuristic", "int8"]
    if not output.exists():
        others = [folder for folder in folders.values() if folder != first]
        settings = ["--prompt-len", arguments.lengths, "--batch-size", arguments.batches, "--rounds", arguments.rounds]
        arms = ",".join(["subnet", "lora", *map(str, others)])
        lonas_edge(
            "bench", first, "--adapter", adapter, "--arms", arms, *settings, "--starts", 6, "--no-memory", "--output", output
        )
    report = json.loads((output / "bench.json").read_text())
    names = {"subnet": "heuristic int8", "lora": "lora PyTorch"}
    names |= {folder.name: " ".join(key) for key, folder in folders.items()}
    gains = {(one["arm"], json.dumps(one["case"])): one["speedup"] for one in report["comparisons"]}
    return [
        {
            "arm": names[row["arm"]],
            "length": row["case"]["prompt_len"],
            "batch": row["case"]["batch_size"],
            "ms": row["generate_duration"]["p50"],
            "texts_a_second": row["throughput"]["p50"],
            "heuristic_int8_faster": gains.get((row["arm"], json.dumps(row["case"]))),
        }
        for row in report["rows"]
    ]


def main() -> None:
    arguments = parse()
    arguments.work.mkdir(parents=True, exist_ok=True)
    tasks = {task: study(arguments, task) for task in arguments.tasks.split(",")}
    settings = {name: value for name, value in vars(arguments).items() if not isinstance(value, Path)}
    conditions = {**describe("CPU"), "threads": placement(None).threads, "date": time.strftime("%Y-%m-%d")}
    result = {"settings": settings, "conditions": conditions, "versions": versions(PACKAGES), "tasks": tasks}
    text = json.dumps(result, indent=1) + "\n"
    if arguments.output:
        arguments.output.write_text(text)
    for task, told in tasks.items():
        for name, one in told["networks"].items():
            values = ", ".join(f"{metric} {100 * v['value']:.1f}" for metric, v in one["metrics"].items())
            print(f"{task:6} {name:16} {values}; {one['bytes'] / 1e6:.1f} MB")
        for one in told["times"]:
            print(f"{task:6} {one['arm']:16} {one['length']:4} x {one['batch']}: {one['ms']:.1f} ms")


if __name__ == "__main__":
    main()
