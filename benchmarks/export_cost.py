"""What an export costs: `lonas-edge export` beside `optimum-cli export openvino`, INT8, on the same merged sub-network.

    python benchmarks/export_cost.py --work models/bench                       SmolLM2-135M
    python benchmarks/export_cost.py --work models/bench --shape llama-7b      LLaMA-7B shape, random weights, 60 GB of disk

Both run as command lines of their own, in turn, `--rounds` times. Wall time is that of the command. Memory is that of its
whole process tree, sampled ten times a second: `pss` counts a page shared by several processes once, `rss` once for each of
them; both count memory-mapped file pages. optimum-cli gets the sub-network sliced and merged already (`--stage checkpoint`,
timed too); lonas-edge gets base, adapter and search space, and slices, merges and verifies within its time.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
from random_models import random_source

ROOT = Path(__file__).parent.parent
BIN = Path(sys.executable).parent


def run(command: list[str | Path], every: float = 0.1) -> dict[str, Any]:
    """Run a command and measure it: seconds, largest PSS and RSS of its process tree in bytes, looked at `every` seconds.

    A look at PSS walks all pages: 14 GB of mapped weights take the system a third of a second.
    """
    start = time.perf_counter()
    process = psutil.Popen([str(part) for part in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    peak = {"pss": 0, "rss": 0}
    while process.poll() is None:
        try:
            infos = [p.memory_full_info() for p in [process, *process.children(recursive=True)]]
            for kind in peak:
                peak[kind] = max(peak[kind], sum(getattr(info, kind) for info in infos))
        except psutil.Error:
            pass
        time.sleep(every)
    output = process.stdout.read()
    if process.returncode:
        raise SystemExit(f"{' '.join(map(str, command))} failed:\n{output[-3000:]}")
    return {"seconds": time.perf_counter() - start, "peak_pss": peak["pss"], "peak_rss": peak["rss"]}


def smollm2(work: Path) -> list[str | Path]:
    """SmolLM2-135M with the synthetic adapter; returns the arguments that name the source."""
    base, adapter = work / "smollm2-135m", work / "smollm2-synthetic-adapter"
    subprocess.run([sys.executable, ROOT / "scripts/smollm2.py", base], check=True)
    if not adapter.exists():
        subprocess.run([sys.executable, ROOT / "benchmarks/synthetic_adapter.py", base, adapter], check=True)
    return [adapter, "--model", base, "--nncf-config", ROOT / "nncf_config/smollm2_135m.json"]


def measure(source: list[str | Path], work: Path, rounds: int, verify: bool) -> dict[str, Any]:
    """Slice and merge once for optimum-cli, then run both commands in turn."""
    checkpoint, ours, stock = work / "checkpoint", work / "lonas-edge-int8", work / "optimum-int8"
    flags = [] if verify else ["--no-verify"]
    for left in (checkpoint, ours, stock):
        shutil.rmtree(left, ignore_errors=True)
    lonas = BIN / "lonas-edge"
    materialize = run([lonas, "export", *source, "--stage", "checkpoint", "--output", checkpoint, "--no-verify"])
    runs: dict[str, list[dict[str, Any]]] = {"lonas-edge": [], "optimum-cli": []}
    steps: list[dict[str, Any]] = []
    for _ in range(rounds):
        for left in (ours, stock):
            shutil.rmtree(left, ignore_errors=True)
        runs["lonas-edge"].append(run([lonas, "export", *source, "--weight-format", "int8", "--output", ours, *flags]))
        steps.append(json.loads((ours / "lonas_edge.json").read_text())["steps"])
        task = ["--task", "text-generation-with-past", "--weight-format", "int8"]
        runs["optimum-cli"].append(run([BIN / "optimum-cli", "export", "openvino", "--model", checkpoint, *task, stock]))
    sizes = {name: (folder / "openvino_model.bin").stat().st_size for name, folder in (("ours", ours), ("stock", stock))}
    return {"materialize": materialize, "runs": runs, "steps": steps, "bin_bytes": sizes, "verified": verify}


def conditions() -> dict[str, Any]:
    """What the figures depend on."""
    names = ("torch", "transformers", "optimum-intel", "nncf", "openvino", "peft")
    cpu = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line), ""
    )
    return {
        "processor": cpu,
        "cores": os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "python": platform.python_version(),
        "date": time.strftime("%Y-%m-%d"),
        "versions": {name: importlib.metadata.version(name) for name in names},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="scratch directory; models made for it are kept there")
    parser.add_argument("--shape", choices=["smollm2-135m", "llama-7b"], default="smollm2-135m")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--no-verify", action="store_true", help="without our verification")
    parser.add_argument("--output", type=Path, help="write the result as JSON")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    smollm = arguments.shape == "smollm2-135m"
    source = smollm2(arguments.work) if smollm else random_source(arguments.shape, arguments.work)
    result = {"shape": arguments.shape, "conditions": conditions()}
    result |= measure(source, arguments.work, arguments.rounds, not arguments.no_verify)
    once = result["materialize"]
    print(f"materialize (--stage checkpoint): {once['seconds']:.1f} s, {once['peak_pss'] / 1e9:.2f} GB")
    medians = {}
    for name, runs in result["runs"].items():
        medians[name] = {key: statistics.median(r[key] for r in runs) for key in runs[0]}
        seconds = ", ".join(f"{r['seconds']:.1f}" for r in runs)
        m = medians[name]
        memory = f"{m['peak_pss'] / 1e9:.2f} GB PSS, {m['peak_rss'] / 1e9:.2f} GB RSS"
        print(f"{name}: {m['seconds']:.1f} s (of {seconds}), peak {memory}")
    result["ratio"] = {key: medians["lonas-edge"][key] / medians["optimum-cli"][key] for key in medians["optimum-cli"]}
    print("ratio:", ", ".join(f"{key} {value:.2f}" for key, value in result["ratio"].items()))
    print("steps of the last run:", ", ".join(f"{k} {v['seconds']:.1f} s" for k, v in result["steps"][-1].items()))
    if arguments.output:
        arguments.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
