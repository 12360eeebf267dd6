"""Compare two versions of the package in one run: export, evaluation, training, bench and `--help`.

    git worktree add ../before COMMIT
    python benchmarks/before_after.py ../before . --base models/smollm2-135m --adapter models/synthetic-adapter \\
        --space nncf_config/smollm2_135m.json --datasets DIR --output benchmarks/results/FILE.json

Both trees run from source in the same environment, interleaved; the order is reversed from round to round. Measured are an INT8
export (wall time, peak PSS of its process tree), `eval` of the exported directory (seconds per prompt without loading), a
training step, `bench` of the exported directory (TTFT, TPOT) and `--help`. Ratios are after / before, of the medians.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from lonas_edge.bench.machine import describe
from lonas_edge.versions import versions

Figures = dict[str, float]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--adapter", type=Path, required=True)
    parser.add_argument("--space", type=Path, required=True)
    parser.add_argument("--datasets", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", help="commands, comma-separated; default: all")
    parser.add_argument("--output", type=Path)
    return parser.parse_args()


class Tree:
    """A source tree to run."""

    def __init__(self, folder: Path, work: Path, arguments: argparse.Namespace):
        self.folder, self.work, self.arguments = folder.resolve(), work, arguments
        work.mkdir()

    def run(self, *command: object, memory: bool = False) -> tuple[str, float, int]:
        """Run `lonas-edge`; return its output, its seconds and, with `memory`, the peak PSS of its process tree in bytes.

        Sampling the memory walks all page tables and slows the command, so latency is measured without it.
        """
        environment = {**os.environ, "PYTHONPATH": str(self.folder), "HF_HUB_OFFLINE": "1"}
        environment["XDG_CACHE_HOME"] = tempfile.mkdtemp(dir=self.work)  # nothing is reused
        line = [sys.executable, "-m", "lonas_edge", *map(str, command)]
        start, peak = time.perf_counter(), 0
        with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
            process = psutil.Popen(line, stdout=out, stderr=err, env=environment, cwd=self.work)
            while memory and process.poll() is None:
                try:
                    family = [process, *process.children(recursive=True)]
                    peak = max(peak, sum(member.memory_full_info().pss for member in family))
                except psutil.Error:
                    pass
                time.sleep(0.1)
            process.wait()
            seconds = time.perf_counter() - start
            out.seek(0), err.seek(0)
            if process.returncode:
                raise SystemExit(f"{' '.join(line)} failed:\n{err.read()[-3000:]}")
            return out.read(), seconds, peak

    def source(self) -> list[object]:
        """The arguments that name the super-adapter."""
        given = self.arguments
        return [given.adapter.resolve(), "--model", given.base.resolve(), "--nncf-config", given.space.resolve()]

    def export(self) -> Figures:
        _, seconds, peak = self.run("export", *self.source(), "--output", self.work / "int8", "--overwrite", memory=True)
        return {"export, s": seconds, "export, peak GB": peak / 1e9}

    def eval(self) -> Figures:
        options = ["--tasks", "ARC-Easy", "--protocol", "option-text", "--limit", "400", "--json"]
        printed, _, _ = self.run("eval", self.work / "int8", "--datasets", self.arguments.datasets.resolve(), *options)
        (target,) = json.loads(printed)["targets"]
        return {"eval, s per prompt": target["seconds"] / target["asked"]}

    def train(self) -> Figures:
        given = self.arguments
        data = given.datasets.resolve() / "ARC-Easy/train.json"
        command = ["--model", given.base.resolve(), "--data", data, "--nncf-config", given.space.resolve(), "--no-reorder"]
        command += ["--steps", "8", "--batch-size", "8", "--output", self.work / "adapter", "--overwrite", "--json"]
        printed, _, _ = self.run("train", *command)
        record = json.loads(printed)
        return {"train, s per step": record["seconds"] / record["steps"]}

    def bench(self) -> Figures:
        if not (self.work / "int8").exists():
            self.export()
        settings = ["--arms", "subnet", "--rounds", "12", "--starts", "4", "--json"]
        (row,) = json.loads(self.run("bench", self.work / "int8", *settings)[0])["rows"]
        return {"bench, TTFT ms": row["ttft"]["p50"], "bench, TPOT ms": row["tpot"]["p50"]}

    def help(self) -> Figures:
        start = time.perf_counter()
        environment = {**os.environ, "PYTHONPATH": str(self.folder)}
        subprocess.run([sys.executable, "-m", "lonas_edge", "--help"], check=True, capture_output=True, env=environment)
        return {"--help, s": time.perf_counter() - start}


STEPS: tuple[Callable[[Tree], Figures], ...] = (Tree.export, Tree.eval, Tree.train, Tree.bench, Tree.help)


def main() -> None:
    arguments = parse()
    samples: dict[str, dict[str, list[float]]] = {"before": {}, "after": {}}
    steps = [step for step in STEPS if step.__name__ in (arguments.only or step.__name__).split(",")]
    with tempfile.TemporaryDirectory() as folder:
        trees = {name: Tree(getattr(arguments, name), Path(folder) / name, arguments) for name in samples}
        for number in range(arguments.rounds):
            for step in steps:
                for name in list(samples) if number % 2 == 0 else reversed(list(samples)):
                    for figure, value in step(trees[name]).items():
                        samples[name].setdefault(figure, []).append(value)
                        print(f"round {number + 1}, {name}: {figure} {value:.3f}", flush=True)
    report: dict[str, Any] = {"rounds": arguments.rounds, "machine": describe("CPU"), "figures": {}}
    for figure, before in samples["before"].items():
        after = samples["after"][figure]
        pair = {"before": statistics.median(before), "after": statistics.median(after)}
        report["figures"][figure] = {**pair, "ratio": pair["after"] / pair["before"], "samples": [before, after]}
        print(f"{figure}: {pair['before']:.3f} before, {pair['after']:.3f} after, {report['figures'][figure]['ratio']:.3f} x")
    report["versions"] = versions(("lonas-edge", "torch", "transformers", "openvino", "nncf", "peft"))
    if arguments.output:
        arguments.output.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
