"""Compare two versions of the package in one run: export, evaluation, training, bench and `--help`.

    git worktree add ../before COMMIT
    python benchmarks/before_after.py ../before . --base models/smollm2-135m --adapter models/synthetic-adapter \\
        --space nncf_config/smollm2_135m.json --datasets DIR --output benchmarks/results/FILE.json

Both trees run from source in the same environment, interleaved; the order is reversed from round to round. Only options that
both versions have are used. Measured are an INT8 export (wall time, peak memory of its largest process), `eval` of the exported
directory (seconds per prompt without loading), a training step in fp32, `bench` of the exported directory (TTFT, TPOT) and
`--help`; for each command also its processor time, which other programs affect less. Ratios are after / before, of the medians;
each round's ratio shows the spread.
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
    parser.add_argument("--prompts", type=int, default=300, help="prompts of an evaluation")
    parser.add_argument("--steps", type=int, default=8, help="steps of a training")
    parser.add_argument("--only", help="commands, comma-separated; default: all")
    parser.add_argument("--output", type=Path)
    return parser.parse_args()


class Tree:
    """A source tree to run."""

    def __init__(self, folder: Path, work: Path, arguments: argparse.Namespace):
        self.folder, self.work, self.arguments = folder.resolve(), work, arguments
        work.mkdir()

    def run(self, *command: object) -> tuple[str, Figures]:
        """Run `lonas-edge`; return its output, and its seconds, processor time and the peak memory of its largest process."""
        environment = {**os.environ, "PYTHONPATH": str(self.folder), "HF_HUB_OFFLINE": "1"}
        environment["XDG_CACHE_HOME"] = tempfile.mkdtemp(dir=self.work)  # nothing is reused
        line = [sys.executable, "-m", "lonas_edge", *map(str, command)]
        with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
            start = time.perf_counter()
            process = subprocess.Popen(line, stdout=out, stderr=err, env=environment, cwd=self.work)  # not in another tree
            _, status, usage = os.wait4(process.pid, 0)
            seconds = time.perf_counter() - start
            process.returncode = os.waitstatus_to_exitcode(status)
            out.seek(0), err.seek(0)
            if process.returncode:
                raise SystemExit(f"{' '.join(line)} failed:\n{err.read()[-3000:]}")
            cpu = usage.ru_utime + usage.ru_stime
            return out.read(), {"s": seconds, "CPU s": cpu, "peak GB": usage.ru_maxrss * 1024 / 1e9}

    def source(self) -> list[object]:
        """The arguments that name the super-adapter."""
        given = self.arguments
        return [given.adapter.resolve(), "--model", given.base.resolve(), "--nncf-config", given.space.resolve()]

    def export(self) -> Figures:
        _, figures = self.run("export", *self.source(), "--output", self.work / "int8", "--overwrite")
        return {f"export, {name}": value for name, value in figures.items()}

    def eval(self) -> Figures:
        options = ["--tasks", "ARC-Easy", "--protocol", "option-text", "--limit", self.arguments.prompts, "--json"]
        printed, figures = self.run("eval", self.work / "int8", "--datasets", self.arguments.datasets.resolve(), *options)
        (target,) = json.loads(printed)["targets"]
        prompts = target.get("answered") or target["asked"]  # its name in older versions
        return {"eval, s per prompt": target["seconds"] / prompts, "eval, CPU s": figures["CPU s"]}

    def train(self) -> Figures:
        given = self.arguments
        data = given.datasets.resolve() / "ARC-Easy/train.json"
        command = ["--model", given.base.resolve(), "--data", data, "--nncf-config", given.space.resolve(), "--no-reorder"]
        command += ["--steps", given.steps, "--batch-size", 8, "--max-length", 256, "--lr", "3e-4", "--precision", "fp32"]
        command += ["--prompt", "alpaca", "--seed", 0, "--output", self.work / "adapter", "--overwrite", "--json"]
        printed, figures = self.run("train", *command)
        record = json.loads(printed)
        return {"train, s per step": record["seconds"] / record["steps"], "train, CPU s": figures["CPU s"]}

    def bench(self) -> Figures:
        if not (self.work / "int8").exists():
            self.export()
        settings = ["--arms", "subnet", "--rounds", "12", "--json"]
        (row,) = json.loads(self.run("bench", self.work / "int8", *settings)[0])["rows"]
        return {"bench, TTFT ms": row["ttft"]["p50"], "bench, TPOT ms": row["tpot"]["p50"]}

    def help(self) -> Figures:
        runs = [self.run("--help")[1] for _ in range(5)]
        return {f"--help, {name}": statistics.median(run[name] for run in runs) for name in ("s", "CPU s")}


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
        ratio, ratios = pair["after"] / pair["before"], [second / first for first, second in zip(before, after, strict=True)]
        report["figures"][figure] = {**pair, "ratio": ratio, "samples": [before, after]}
        rounds = f"rounds {min(ratios):.3f} to {max(ratios):.3f}"
        print(f"{figure}: {pair['before']:.3f} before, {pair['after']:.3f} after, {ratio:.3f} x ({rounds})")
    report["versions"] = versions(("lonas-edge", "torch", "transformers", "openvino", "nncf", "peft"))
    if arguments.output:
        arguments.output.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
