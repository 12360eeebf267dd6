"""Time and memory of `lonas-edge export`, compared with `optimum-cli export openvino` (INT8, the same sub-network).

    python benchmarks/export_cost.py --work models/bench                       SmolLM2-135M
    python benchmarks/export_cost.py --work models/bench --shape llama-7b      LLaMA-7B shape, random weights, 60 GB of disk

Both commands run alternately, `--rounds` times. Memory is the peak of the process tree, sampled ten times a second: PSS counts
a page that processes share once, RSS once per process; both include memory-mapped file pages. optimum-cli gets a sub-network
that is sliced and merged already (`--stage checkpoint`, timed separately). lonas-edge gets base, adapter and search space, and
slices, merges and verifies within its time.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
from random_models import random_source
from study import conditions

ROOT = Path(__file__).parent.parent
BIN = Path(sys.executable).parent


def run(command: list[str | Path], every: float = 0.1) -> dict[str, Any]:
    """Run a command; return its seconds and the peak PSS and RSS of its process tree in bytes, sampled `every` seconds."""
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
    """The arguments that name SmolLM2-135M with the synthetic adapter."""
    base, adapter = work / "smollm2-135m", work / "smollm2-synthetic-adapter"
    subprocess.run([sys.executable, ROOT / "scripts/smollm2.py", base], check=True)
    if not adapter.exists():
        subprocess.run([sys.executable, ROOT / "benchmarks/synthetic_adapter.py", base, adapter], check=True)
    return [adapter, "--model", base, "--nncf-config", ROOT / "nncf_config/smollm2_135m.json"]


def measure(source: list[str | Path], work: Path, rounds: int, verify: bool) -> dict[str, Any]:
    """Slice and merge once for optimum-cli, then run both commands alternately."""
    checkpoint, ours, stock = work / "checkpoint", work / "lonas-edge-int8", work / "optimum-int8"
    flags = [] if verify else ["--no-verify"]
    for folder in (checkpoint, ours, stock):
        shutil.rmtree(folder, ignore_errors=True)
    lonas = BIN / "lonas-edge"
    materialize = run([lonas, "export", *source, "--stage", "checkpoint", "--output", checkpoint, "--no-verify"])
    runs: dict[str, list[dict[str, Any]]] = {"lonas-edge": [], "optimum-cli": []}
    steps: list[dict[str, Any]] = []
    for _ in range(rounds):
        for folder in (ours, stock):
            shutil.rmtree(folder, ignore_errors=True)
        runs["lonas-edge"].append(run([lonas, "export", *source, "--weight-format", "int8", "--output", ours, *flags]))
        steps.append(json.loads((ours / "lonas_edge.json").read_text())["steps"])
        task = ["--task", "text-generation-with-past", "--weight-format", "int8"]
        runs["optimum-cli"].append(run([BIN / "optimum-cli", "export", "openvino", "--model", checkpoint, *task, stock]))
    sizes = {name: (folder / "openvino_model.bin").stat().st_size for name, folder in (("ours", ours), ("stock", stock))}
    return {"materialize": materialize, "runs": runs, "steps": steps, "bin_bytes": sizes, "verified": verify}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="directory for the models, which are kept")
    parser.add_argument("--shape", choices=["smollm2-135m", "llama-7b"], default="smollm2-135m")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--no-verify", action="store_true", help="export without verification")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    smollm = arguments.shape == "smollm2-135m"
    source = smollm2(arguments.work) if smollm else random_source(arguments.shape, arguments.work)
    result = {"shape": arguments.shape, "conditions": conditions()}
    result |= measure(source, arguments.work, arguments.rounds, not arguments.no_verify)
    materialize = result["materialize"]
    print(f"materialize (--stage checkpoint): {materialize['seconds']:.1f} s, {materialize['peak_pss'] / 1e9:.2f} GB")
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
