"""Does a sub-network keep its answers? LoRA, the heuristic network, and the found one: plain, solved, trained further.

    python benchmarks/answers_study.py models/smollm2-135m --datasets DIR --work DIR \\
        --output benchmarks/results/answers_study.json

With each seed plain LoRA and a super-adapter are trained, and the super-adapter is searched by TPOT: --draw all trains its
sub-networks at LoRA's compute, --draw maximal the maximal one alone (LoRA that can be cut). Each
network that the search picks (at --shares of the maximal network's TPOT) is exported as it is found, and trained further with
the finished LoRA as its teacher (`train --from --teacher`); --arms has what else may be done to it. All are IRs of
--weight-format, answer the whole test sets by `option-text`, and are measured in turn in one run (the first seed's).
Differences from LoRA are paired by question and averaged over the seeds; what each arm computed is told in seconds on this
machine, over LoRA's training. Finished steps are kept in --work.
"""

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from accuracy_study import TASKS, lonas_edge
from search_study import (
    LORA_STEPS,
    PACKAGES,
    STEPS,
    against,
    answer,
    over_seeds,
    picked,
    search,
    time_networks,
    write_data,
)

from lonas_edge.bench.machine import describe
from lonas_edge.versions import versions

LORA, HEURISTIC, MAXIMAL = "LoRA", "heuristic", "maximal"
SOLVE, SPECIALIZE, TEACH = "solved", "specialized", "taught"
ARMS = {  # what is done to a found network
    "found": (),
    "found + solved": (SOLVE,),
    "found + specialized": (SPECIALIZE,),
    "found + specialized, taught": (SPECIALIZE, TEACH),
    "found + solved + specialized": (SOLVE, SPECIALIZE),
    "found + solved + specialized, taught": (SOLVE, SPECIALIZE, TEACH),
}
DEFAULT_ARMS = ("found", "found + specialized, taught")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("base", type=Path)
    parser.add_argument("--datasets", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--output", type=Path)
    parser.add_argument(
        "--space", type=Path, help="the search space; one of MLP widths and attention blocks is written when not given"
    )
    parser.add_argument("--seeds", default="1,2")
    parser.add_argument("--draw", choices=["all", "maximal"], default="all", help="what a super-adapter's training draws")
    parser.add_argument("--shares", default="0.85,0.78", help="of the maximal network's TPOT")
    parser.add_argument("--arms", default=";".join(DEFAULT_ARMS), help=f"separated by semicolons, of: {'; '.join(ARMS)}")
    parser.add_argument("--steps", type=int, help=f"of a super-adapter. Default: {STEPS}, with --draw maximal {LORA_STEPS}")
    parser.add_argument("--lr", type=float, default=3e-4, help="of LoRA and the super-adapter")
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--special-steps", type=int, default=180, help="of the training of one network")
    parser.add_argument("--special-lr", type=float, default=2e-4)
    parser.add_argument("--weight-format", default="int8_sym")
    parser.add_argument("--distill", type=float, default=0.5)
    parser.add_argument("--solve-prompts", type=int, default=512)
    parser.add_argument("--quality", default="kl")
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--evals", type=int, default=60)
    parser.add_argument("--torch-dtype", default="bf16")
    parser.add_argument("--limit", type=int, help="questions of each task; all when not given")
    parser.add_argument("--only", choices=["train", "search", "export", "answers"], help="stop after this step")
    return parser.parse_args()


def space(arguments: argparse.Namespace, held_out: Path) -> Path:
    """MLP widths down to a quarter, and attention that may be left out where that is not dear."""
    file: Path = arguments.work / "space.json"
    if not file.exists():
        options = ["--ratios", "1,.75,.5,.25", "--ranks", 32, "--depth", "attention"]
        options += ["--data", held_out, "--prompt", "question"]
        lonas_edge("space", "--model", arguments.base, "--output", file, *options)
    return file


def exported(arguments: argparse.Namespace, folder: Path, source: Path, *options: object) -> Path:
    """An IR."""
    if not folder.exists():
        lonas_edge("export", source, *options, "--weight-format", arguments.weight_format, "--output", folder)
    return folder


def train_lora(arguments: argparse.Namespace, seed: int, data: Path) -> Path:
    """Plain LoRA at equal compute."""
    output: Path = arguments.work / f"lora-{seed}"
    if not output.exists():
        command = ["train", "--model", arguments.base, "--data", data, "--output", output, "--no-elastic", "--seed", seed]
        command += ["--steps", LORA_STEPS, "--prompt", "question", "--lr", arguments.lr, "--precision", arguments.precision]
        lonas_edge(*command)
    return output


def train(arguments: argparse.Namespace, seed: int, data: Path) -> Path:
    """A super-adapter."""
    output = arguments.work / f"super-{seed}"
    if not output.exists():
        command = ["train", "--model", arguments.base, "--data", data, "--output", output, "--nncf-config", arguments.space]
        command += ["--steps", arguments.steps, "--seed", seed, "--prompt", "question"]
        command += ["--lr", arguments.lr, "--precision", arguments.precision]
        command += ["--subnetworks", "maximal"] if arguments.draw == "maximal" else []
        lonas_edge(*command, *(["--resume"] if output.with_name(f"{output.name}.training").exists() else []))
    return output


def specialized(arguments: argparse.Namespace, folder: Path, made: "Made", subnet: Path, done: tuple[str, ...]) -> Path:
    """One network of the super-adapter, trained further."""
    if not folder.exists():
        command = ["train", "--from", made.super_adapter, "--subnet", subnet, "--data", made.data, "--output", folder]
        command += [
            "--steps",
            arguments.special_steps,
            "--lr",
            arguments.special_lr,
            "--seed",
            made.seed,
            "--precision",
            arguments.precision,
        ]
        command += ["--solve", made.data, "--solve-prompts", arguments.solve_prompts] if SOLVE in done else []
        command += ["--teacher", made.lora, "--distill", arguments.distill] if TEACH in done else []
        lonas_edge(*command, *(["--resume"] if folder.with_name(f"{folder.name}.training").exists() else []))
    return folder


class Made:
    """What one seed made: adapters, the search, IRs by arm, and seconds by step."""

    def __init__(self, arguments: argparse.Namespace, seed: int, data: tuple[Path, Path]):
        self.arguments, self.seed, (self.data, self.held_out) = arguments, seed, data
        self.lora = train_lora(arguments, seed, self.data)
        self.super_adapter = train(arguments, seed, self.data)
        self.folders: dict[str, Path] = {}
        self.seconds: dict[str, float] = {}

    def search(self) -> dict[str, Path]:
        """The networks that are picked, by what they were picked for."""
        picks = [f"tpot<={float(share):.2f}x" for share in self.arguments.shares.split(",")]
        found = search(self.arguments, self.seed, self.super_adapter, self.held_out, picks)
        record = json.loads((found / "search.json").read_text())
        self.seconds["search"] = sum(record["seconds"].values())
        known = {picked(pick): found / "subnetworks" / f"{pick['file']}.json" for pick in record["picks"]}
        return {pick: known[pick] for pick in picks}

    def export(self, networks: dict[str, Path]) -> None:
        """All arms as IRs."""
        work = self.arguments.work / f"ir-{self.seed}"
        work.mkdir(exist_ok=True)
        self.folders[LORA] = exported(self.arguments, work / "lora", self.lora)
        for name in (MAXIMAL, HEURISTIC):
            self.folders[name] = exported(self.arguments, work / name, self.super_adapter, "--subnet", name)
        for place, (picked_for, subnet) in enumerate(networks.items()):
            for arm in self.arguments.arms.split(";"):
                self._arm(work, f"{arm.strip()}, {picked_for}", place, subnet, ARMS[arm.strip()])

    def _arm(self, work: Path, name: str, place: int, subnet: Path, done: tuple[str, ...]) -> None:
        folder = work / "-".join([f"found{place}", *done])
        if SPECIALIZE in done:
            adapter = self.arguments.work / f"special-{self.seed}" / folder.name
            adapter.parent.mkdir(exist_ok=True)
            self.folders[name] = exported(self.arguments, folder, specialized(self.arguments, adapter, self, subnet, done))
            self.seconds[name] = trained_seconds(adapter)
        else:
            solve = ["--solve", self.data, "--solve-prompts", self.arguments.solve_prompts] if SOLVE in done else []
            self.folders[name] = exported(self.arguments, folder, self.super_adapter, "--subnet", subnet, *solve)
            steps = json.loads((folder / "lonas_edge.json").read_text())["steps"]
            self.seconds[name] = steps["solve"]["seconds"] if SOLVE in done else 0.0

    def compute(self, name: str) -> dict[str, float]:
        """Seconds of everything that an arm is made of, and their ratio to LoRA's training."""
        lora = trained_seconds(self.lora)
        parts = {"training": lora if name == LORA else trained_seconds(self.super_adapter)}
        if name in self.seconds:
            parts |= {"search": self.seconds["search"], "solving and specializing": self.seconds[name]}
        return {**parts, "over_lora": sum(parts.values()) / lora}


def trained_seconds(adapter: Path) -> float:
    """Those of the run that finished it: a resumed one's are counted by the steps that it had."""
    record = json.loads((adapter / "training.json").read_text())
    run: int = record["steps"] - (record["resumed_from_step"] or 0)
    seconds: float = record["seconds"]
    return seconds * record["steps"] / max(1, run)


def study(arguments: argparse.Namespace, seed: int, data: tuple[Path, Path], timed: bool) -> dict[str, Any]:
    """One seed, from the trainings to the answers, and the latency if it is asked for."""
    made = Made(arguments, seed, data)
    if arguments.only == "train":
        return {}
    networks = made.search()
    if arguments.only == "search":
        return {}
    made.export(networks)
    if arguments.only == "export":
        return {}
    answers = answer(arguments, made.folders, arguments.work / f"answers-{seed}")
    if arguments.only == "answers":
        return {}
    times = time_networks(made.folders, arguments.work / f"bench-{seed}") if timed else {}
    rows = {}
    for name, folder in made.folders.items():
        manifest = json.loads((folder / "lonas_edge.json").read_text())
        rows[name] = {
            "average": statistics.mean(map(statistics.mean, answers[name].values())),
            **beside_lora(times, name),
            "linear_weights": manifest["sizes"]["subnetwork"]["linear_weights"],
            "solved": manifest["solved"] and {key: manifest["solved"][key] for key in ("before", "after", "kept")},
            "seconds": made.compute(name),
        }
    return {"answers": answers, "networks": rows}


def beside_lora(times: dict[str, dict[str, float]], name: str) -> dict[str, float]:
    """A network's times, and their ratios to LoRA's, where they were measured."""
    own = times.get(name, {})
    return {**own, **{f"{key.removesuffix('_ms')}_over_lora": value / times[LORA][key] for key, value in own.items()}}


def told(names: list[str], seeds: list[dict[str, Any]], differences: dict[str, dict[str, float]]) -> None:
    """A line an arm."""

    def mean(name: str, key: str) -> float:
        return statistics.mean(one["networks"][name][key] for one in seeds)

    for name in names:
        first = seeds[0]["networks"][name]
        shares = f"TTFT {first['ttft_over_lora']:.2f}x  TPOT {first['tpot_over_lora']:.2f}x"
        figures = f"{mean(name, 'average'):.1f} %  {shares}"
        compute = statistics.mean(one["networks"][name]["seconds"]["over_lora"] for one in seeds)
        less = differences.get(name)
        shown = f"  {less['difference']:+.1f} ± {less['half_width_95']:.1f}" if less else ""
        print(f"{name:60} {figures}  compute {compute:.2f}x{shown}")


def main() -> None:
    arguments = parse()
    unknown = [arm.strip() for arm in arguments.arms.split(";") if arm.strip() not in ARMS]
    if unknown:
        raise SystemExit(f"--arms: {', '.join(unknown)}: expected of: {'; '.join(ARMS)}")
    arguments.steps = arguments.steps or (LORA_STEPS if arguments.draw == "maximal" else STEPS)
    arguments.work.mkdir(parents=True, exist_ok=True)
    data = write_data(arguments)
    arguments.space = arguments.space or space(arguments, data[1])
    first, *others = map(int, arguments.seeds.split(","))
    seeds = {first: study(arguments, first, data, True)} | {seed: study(arguments, seed, data, False) for seed in others}
    if arguments.only:
        return
    names = list(next(iter(seeds.values()))["networks"])
    answers = {name: over_seeds([one["answers"][name] for one in seeds.values()]) for name in names}
    differences = {name: against(answers[name], answers[LORA]) for name in names if name != LORA}
    kept = [
        "draw",
        "steps",
        "special_steps",
        "special_lr",
        "distill",
        "solve_prompts",
        "quality",
        "prompts",
        "evals",
        "torch_dtype",
        "weight_format",
    ]
    report = {
        "conditions": {**describe("CPU"), "versions": versions(PACKAGES)},
        "settings": {
            **{name: getattr(arguments, name) for name in (*kept, "limit", "shares")},
            "base": arguments.base.name,
            "tasks": list(TASKS),
            "lora_steps": LORA_STEPS,
        },
        "seeds": {str(seed): one["networks"] for seed, one in seeds.items()},
        "less_lora": differences,
    }
    told(names, list(seeds.values()), differences)
    if arguments.output:
        arguments.output.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
