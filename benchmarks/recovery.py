"""Study: a fully trained LoRA, and networks with attention blocks removed from it, recovered, in INT8 and INT4.

    python benchmarks/recovery.py models/smollm2-135m --datasets DIR --work DIR --output benchmarks/results/recovery.json
    python benchmarks/recovery.py --plot benchmarks/results/recovery.json docs/images/recovery.png
    python benchmarks/recovery.py --plot-losses benchmarks/results/recovery_long.json docs/images/recovery_losses.png

For each seed, LoRA is trained for several numbers of steps. The one with the lowest held-out loss is the baseline and the
teacher; `optimum-cli` stores it in INT8 and INT4. A search removes attention blocks from it, one after the other. Each network
is recovered for INT8, and by another training, quantization-aware, for INT4. All answer the same questions
by `option-text`. Differences from optimum's INT8 are paired by question and averaged over the seeds. The networks of the first
seed are measured in one interleaved run. A stopped study continues from its --work; `--only` stops after the trainings.
"""

import argparse
import json
from functools import cached_property
from pathlib import Path
from typing import Any

from plane import optimum_ir
from study import (
    Accuracy,
    average,
    conditions,
    difference,
    evaluated,
    exported,
    lonas_edge,
    over_seeds,
    split_data,
    timed,
    trained,
)

BASELINE = "optimum-int8"
FORMATS = {"int8": "int8_sym", "int4": "int4_sym"}


class Study:
    """The trainings, the search and the exports of one seed."""

    def __init__(self, arguments: argparse.Namespace, seed: int):
        self.arguments, self.seed, self.work = arguments, seed, arguments.work / f"seed-{seed}"
        self.data, self.held_out = split_data(arguments.datasets, arguments.work)
        self.options = ["--data", self.data, "--eval-data", self.held_out, "--seed", seed, "--dtype", arguments.dtype]

    @cached_property
    def loras(self) -> dict[int, Path]:
        """LoRA by its number of steps."""
        command = [
            "--model",
            self.arguments.base,
            "--no-elastic",
            "--template",
            "question",
            *self.options,
            "--lr",
            self.arguments.lr,
        ]
        return {steps: trained(self.work / f"lora-{steps}", *command, "--steps", steps) for steps in self.arguments.lora_steps}

    @cached_property
    def lora(self) -> Path:
        """The LoRA with the lowest held-out loss."""
        return min(self.loras.values(), key=held_out_loss)

    @cached_property
    def space(self) -> Path:
        """The attention blocks that may be removed."""
        path = self.work / "space.json"
        if not path.exists():
            lonas_edge("space", "--adapter", self.lora, "--output", path)
        return path

    @cached_property
    def subnetworks(self) -> dict[int, Path]:
        """The best network found for each number of removed blocks."""
        output = self.work / "search"
        if not output.exists():
            command = ["search", self.lora, "--nncf-config", self.space, "--data", self.held_out, "--output", output]
            lonas_edge(*command, "--cost", "weights", "--evals", self.arguments.evals, "--seed", self.seed)
        found = {}
        for path in sorted((output / "subnetworks").glob("*.json")):
            widths = json.loads(path.read_text())["widths"]
            found[sum(width == 0 for name, width in widths.items() if name.endswith("self_attn"))] = path
        return found

    def recovered(self, removed: int, name: str) -> Path:
        """A network, recovered for a format; the LoRA itself where nothing is to be recovered."""
        if not removed and name == "int8":
            return self.lora
        command = ["--from", self.lora, "--teacher", self.lora, *self.options, "--steps", self.arguments.steps]
        command += ["--lr", self.arguments.recovery_lr or self.arguments.lr]
        command += ["--data", self.arguments.general] if self.arguments.general else []
        command += ["--nncf-config", self.space, "--subnet", self.subnetworks[removed]] if removed else []
        command += ["--weight-format", FORMATS[name]] if name == "int4" else []
        return trained(self.work / f"recovered-{removed}-{name}", *command)

    def networks(self) -> dict[str, Path]:
        """All IRs by name."""
        options = ["--subnet", "maximal", "--stage", "checkpoint", "--dtype", "fp32"]
        merged = exported(self.work / "merged", self.lora, *options)
        irs = {f"optimum-{name}": optimum_ir(name, merged, self.data, self.work) for name in self.arguments.optimum}
        for removed in self.arguments.removed:
            for name in self.arguments.formats:
                output = self.work / f"ir-{removed}-{name}"
                irs[f"{removed} removed, {name}"] = exported(
                    output, self.recovered(removed, name), "--weight-format", FORMATS[name]
                )
        return irs

    def trainings(self) -> dict[str, Any]:
        """Compute and held-out loss of every training."""
        recovered = [self.recovered(removed, name) for removed in self.arguments.removed for name in self.arguments.formats]
        return {folder.name: summary(folder) for folder in dict.fromkeys([*self.loras.values(), *recovered])}


def held_out_loss(adapter: Path) -> float:
    return float(summary(adapter)["held_out_loss"][-1][1])


def summary(adapter: Path) -> dict[str, Any]:
    """Steps, seconds, tokens, and the held-out loss: [step, nats per token]."""
    record = json.loads((adapter / "training.json").read_text())
    losses = [[entry["step"], round(entry["loss"], 4)] for entry in record["eval_data"]["losses"]]
    return {**{name: record[name] for name in ("steps", "seconds", "tokens")}, "held_out_loss": losses}


def measured(arguments: argparse.Namespace, studies: dict[int, Study]) -> dict[str, dict[str, Any]]:
    """Accuracy, difference from the baseline and latency of every network."""
    first = next(iter(studies.values()))
    irs = {seed: study.networks() for seed, study in studies.items()}
    seeds = [evaluated(irs[seed], study.work / "eval", arguments.datasets, arguments.limit) for seed, study in studies.items()]
    folder = first.work / "bench"
    lengths = arguments.prompt_len if arguments.rounds else []
    times = {length: timed(irs[first.seed], folder / str(length), arguments.rounds, length) for length in lengths}
    means = {name: over_seeds([accuracy[name] for accuracy in seeds]) for name in seeds[0]}
    rows: dict[str, dict[str, Any]] = {}
    for name, mean in means.items():
        points = difference(mean, means[BASELINE])
        rows[name] = {
            "accuracy": [round(average(accuracy[name]), 2) for accuracy in seeds],
            "difference": [round(points["points"], 2), round(points["half_width_95"], 2)],
            "differences_by_task": {task: by_task(mean, means[BASELINE], task) for task in mean},
            "latency": {length: of_baseline(rows[name], rows[BASELINE]) for length, rows in times.items()},
        }
        shown = f"{points['points']:+.2f} ± {points['half_width_95']:.2f}"
        ratios = [
            f"{length} tokens: TPOT {row['tpot_ratio']:.2f}x, TTFT {row['ttft_ratio']:.2f}x"
            for length, row in rows[name]["latency"].items()
        ]
        print(f"{name:20} {shown:16} {'; '.join(ratios)}")
    return rows


def by_task(mean: Accuracy, baseline: Accuracy, task: str) -> list[float]:
    """Difference from the baseline in one task, in points, and half of its 95 % interval."""
    points = difference({task: mean[task]}, {task: baseline[task]})
    return [round(points["points"], 2), round(points["half_width_95"], 2)]


def of_baseline(times: dict[str, Any], baseline: dict[str, Any]) -> dict[str, Any]:
    """Add the ratios of the medians to the baseline's."""
    return {**times, **{f"{name}_ratio": round(times[f"{name}_ms"] / baseline[f"{name}_ms"], 3) for name in ("tpot", "ttft")}}


def plot_losses(result: dict[str, Any], image: Path) -> None:
    """Plot the held-out loss of the recoveries over their training tokens, next to that of the LoRA."""
    figure, axes = figure_of(result)
    for (seed, trainings), color in zip(result["trainings"].items(), ("tab:blue", "tab:orange", "tab:green"), strict=False):
        recovered = {name: training for name, training in trainings.items() if name.startswith("recovered")}
        lora = min(training["held_out_loss"][-1][1] for name, training in trainings.items() if name.startswith("lora"))
        axes.axhline(lora, color=color, linewidth=0.9, linestyle="--", label=f"LoRA, seed {seed}")
        for name, training in recovered.items():
            tokens = [step * training["tokens"] / training["steps"] / 1000 for step, _ in training["held_out_loss"]]
            _, removed, form = name.split("-")
            label = f"{removed} removed, {form.upper()}, seed {seed}"
            axes.plot(tokens, [loss for _, loss in training["held_out_loss"]], "o-", color=color, markersize=3, label=label)
    axes.set_xlabel("training tokens of the recovery, thousands")
    axes.set_ylabel("held-out loss, nats per token")
    axes.legend(frameon=False, fontsize="small")
    figure.savefig(image, dpi=120)


def figure_of(result: dict[str, Any]) -> tuple[Any, Any]:
    """Return an empty figure with the result's title."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(result["title"], fontsize="medium")
    return figure, axes


def plot(result: dict[str, Any], image: Path) -> None:
    """Plot the difference in accuracy over TPOT: a curve over the removed blocks for each format, and optimum's files."""
    figure, axes = figure_of(result)
    curves = {"lonas-edge INT8": (", int8", "o-", "tab:blue"), "lonas-edge INT4": (", int4", "s-", "tab:green")}
    curves |= {"optimum-cli INT8": ("optimum-int8", "D", "dimgray"), "optimum-cli INT4": ("optimum-int4", "^", "dimgray")}
    curves |= {"optimum-intel INT4, GPTQ": ("optimum-int4-gptq", "v", "dimgray")}
    for label, (end, style, color) in curves.items():
        rows = {name: row for name, row in result["networks"].items() if name.endswith(end)}
        if not rows:
            continue
        x = [next(iter(row["latency"].values()))["tpot_ms"] for row in rows.values()]
        y = [row["difference"][0] for row in rows.values()]
        half = [row["difference"][1] for row in rows.values()]
        axes.errorbar(x, y, yerr=half, fmt=style, color=color, elinewidth=0.6, capsize=2, label=label)
        for name, *place in zip(rows, x, y, strict=True):
            if "removed" in name:
                offset = {"textcoords": "offset points", "xytext": (-5, 4), "ha": "right"}
                axes.annotate(name.split()[0], place, **offset, fontsize="small", color=color)
    axes.set_xlabel("TPOT, ms (lower is better); numbers: removed attention blocks of 30")
    axes.set_ylabel("accuracy, points from optimum-cli INT8")
    axes.axhline(0, color="dimgray", linewidth=0.6)
    axes.legend(frameon=False, fontsize="small")
    figure.savefig(image, dpi=120)


def numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def names(text: str) -> list[str]:
    return text.split(",")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", type=Path, nargs="?")
    parser.add_argument("--datasets", type=Path, help="TASK/train.json and TASK/test.json")
    parser.add_argument("--work", type=Path)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--seeds", type=numbers, default=[1, 2])
    parser.add_argument("--lora-steps", type=numbers, default=[386, 540])
    parser.add_argument("--removed", type=numbers, default=[0, 6, 10, 14, 18], help="numbers of removed attention blocks")
    parser.add_argument("--formats", type=names, default=list(FORMATS), help="of the recovered networks")
    parser.add_argument("--optimum", type=names, default=list(FORMATS), help="formats of optimum's files, as of plane.py")
    parser.add_argument("--evals", type=int, default=100, help="evaluations of the search")
    parser.add_argument("--steps", type=int, default=240, help="steps of a recovery")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--recovery-lr", type=float, help="of a recovery; default: --lr")
    parser.add_argument("--general", help="FILE:WEIGHT, more data for the recoveries")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--limit", type=int, help="questions of each test set; default: all")
    parser.add_argument("--prompt-len", type=numbers, default=[256], help="prompt tokens of the latencies")
    parser.add_argument("--rounds", type=int, default=18, help="of the latencies; 0 for accuracies alone")
    parser.add_argument("--only", choices=["lora", "networks"], help="stop after these trainings")
    parser.add_argument("--plot", type=Path, nargs=2, metavar=("RESULT", "IMAGE"), help="plot accuracy over TPOT and stop")
    parser.add_argument("--plot-losses", type=Path, nargs=2, metavar=("RESULT", "IMAGE"), help="plot held-out losses and stop")
    arguments = parser.parse_args()
    plots = arguments.plot or arguments.plot_losses
    if not plots and not all((arguments.base, arguments.datasets, arguments.work)):
        parser.error("BASE, --datasets and --work are required")
    return arguments


def main() -> None:
    arguments = parse()
    if arguments.plot or arguments.plot_losses:
        for function, paths in ((plot, arguments.plot), (plot_losses, arguments.plot_losses)):
            if paths:
                function(json.loads(paths[0].read_text()), paths[1])
        return
    arguments.work.mkdir(parents=True, exist_ok=True)
    studies = {seed: Study(arguments, seed) for seed in arguments.seeds}
    for study in studies.values():
        for steps, adapter in study.loras.items():
            print(f"seed {study.seed}: LoRA, {steps} steps: held-out loss {held_out_loss(adapter):.3f}")
        if arguments.only != "lora":
            for name, training in study.trainings().items():
                print(f"seed {study.seed}: {name}: held-out loss {training['held_out_loss'][-1][1]:.3f}")
    if arguments.only:
        return
    networks, machine = measured(arguments, studies), conditions()
    paths = ("base", "datasets", "work", "output", "plot", "plot_losses", "only")
    report = {
        "title": f"{arguments.base.name} on {machine['processors']} cores of an {machine['processor']}",
        "conditions": machine,
        "settings": {name: str(value) for name, value in vars(arguments).items() if name not in paths},
        "trainings": {seed: study.trainings() for seed, study in studies.items()},
        "networks": networks,
    }
    if arguments.output:
        arguments.output.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
