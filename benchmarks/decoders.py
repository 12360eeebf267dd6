"""Study: what to remove from a decoder as a classifier or embedding model, at equal latency, after the same short recovery.

    python benchmarks/decoders.py LORA --model BASE --data train.jsonl --eval-data held_out.jsonl --test test.jsonl \\
        --bounds 0.75 0.5 --steps 150 --work DIR --output FILE.json --plot FILE.png

`attention`, `mlp` and `both` are searched by KL and the latency of texts of --prompt-len tokens in INT8; `trailing` removes the
last layers. The network of each kind under each bound is recovered, exported and evaluated on the test set. Differences and
ratios of latencies, timed in one run, are from the INT8 file of `optimum-cli`. A stopped study continues from --work.
"""

import argparse
import json
import subprocess
from pathlib import Path
from statistics import median
from typing import Any

import matplotlib
from study import conditions, exported, lonas_edge, trained

from lonas_edge.bench.statistics import paired_ratio
from lonas_edge.data.pooling import read_pooling
from lonas_edge.network.source import open_source
from lonas_edge.search import LATENCY
from lonas_edge.search.cost import CostSettings
from lonas_edge.search.latency_table import LatencyTable, predicted_cost

matplotlib.use("Agg")
from matplotlib import pyplot

KINDS = {"both": "attention,mlp", "attention": "attention", "mlp": "mlp", "trailing": "attention,mlp"}
LABELS = {"both": "attention and MLP blocks", "attention": "attention blocks", "mlp": "MLP blocks", "trailing": "last layers"}
ENDINGS = ("self_attn", "mlp")
LENGTHS = (32, 128, 512)  # tokens of the texts that are timed


def main() -> None:
    """Search, recover, evaluate and time all networks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lora", type=Path)
    for name in ("--model", "--data", "--eval-data", "--test", "--work", "--output"):
        parser.add_argument(name, type=Path, required=True)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--bounds", nargs="+", type=lambda text: f"{float(text):g}", default=["0.75", "0.5"])
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), help="`trailing` needs `both` before it")
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--prompts", type=int, default=64, help="of a search")
    parser.add_argument("--prompt-len", type=int, choices=LENGTHS, default=32, help="tokens of the latency that is bounded")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seed", type=int, default=42)
    arguments = parser.parse_args()
    work, model = arguments.work, ["--model", arguments.model]
    work.mkdir(parents=True, exist_ok=True)
    int8 = ["--weight-format", "int8_sym", "--no-verify"]
    networks = {"stock": stock(arguments), "unpruned": exported(work / "unpruned", arguments.lora, *model, *int8)}
    for kind in arguments.kinds:
        space, subnetworks = prepared(kind, arguments)
        for bound in arguments.bounds:
            name, subnetwork = f"{kind}-{bound}", subnetworks / f"latency-{bound}x.json"
            if not subnetwork.exists():
                continue  # no network of this kind is as fast
            options = ["--from", arguments.lora, *model, "--nncf-config", space, "--subnet", subnetwork]
            options += ["--teacher", arguments.lora, "--data", arguments.data, "--batch-size", 32, "--steps", arguments.steps]
            adapter = trained(work / f"{name}-adapter", *options, "--seed", arguments.seed)
            networks[name] = exported(work / name, adapter, *model, "--nncf-config", space, *int8)
    if not (work / "eval").exists():
        lonas_edge("eval", *networks.values(), "--data", arguments.test, "--output", work / "eval")
    report = json.loads((work / "eval/eval.json").read_text())
    rows = {name: {**described(name, work), "latency_ms": {}, "latency": {}} for name in networks}
    for name, target in zip(networks, report["targets"], strict=True):
        rows[name]["metrics"] = {task["task"]: task["metrics"] for task in target["tasks"]}
        rows[name]["differences"] = [each for each in report["differences"] if each["target"] == target["name"]]
    for (name, length), row in timed(networks, work / "bench", arguments.rounds).items():
        rows[name]["latency_ms"][length], rows[name]["latency"][length] = row
    given = {name: getattr(arguments, name) for name in ("steps", "prompts", "prompt_len", "seed", "rounds")}
    arguments.output.write_text(json.dumps({"conditions": conditions(), **given, "rows": rows}, indent=1) + "\n")
    if arguments.plot:
        draw(rows, arguments.prompt_len, arguments.plot)


def prepared(kind: str, arguments: argparse.Namespace) -> tuple[Path, Path]:
    """The search space of a kind, and the directory of its networks."""
    work, model = arguments.work, ["--model", arguments.model]
    space, search = work / f"{kind}.json", work / f"search-{kind}"
    if not space.exists():
        lonas_edge("space", "--adapter", arguments.lora, *model, "--depth", KINDS[kind], "--ratios", 1, "--output", space)
    if kind == "trailing":
        remove_last_layers(search / "subnetworks", space, arguments)
    bounds = sorted(arguments.bounds, key=float, reverse=True)
    while not search.exists():
        options = ["--nncf-config", space, "--data", arguments.eval_data, "--num-samples", arguments.prompts, "--evals", 240]
        options += ["--cost", "latency", "--prompt-len", arguments.prompt_len, "--seed", arguments.seed]
        options += [part for bound in bounds for part in ("--pick", f"latency={bound}x")]
        try:
            lonas_edge("search", arguments.lora, *model, *options, "--output", search)
        except subprocess.CalledProcessError:
            if len(bounds) == 1:
                raise
            bounds.pop()  # no network of this kind is as fast
    return space, search / "subnetworks"


def remove_last_layers(folder: Path, space: Path, arguments: argparse.Namespace) -> None:
    """Remove the fewest last layers whose predicted latency meets each bound; needs the latency table of `both`."""
    if folder.exists():
        return
    source = open_source(str(arguments.lora), str(arguments.model), space)
    table = LatencyTable.from_json(json.loads((arguments.work / "search-both" / LATENCY).read_text()), "the search of `both`")
    settings = CostSettings("int8_sym", prompt_len=arguments.prompt_len, new_tokens=0)
    cost = predicted_cost("latency", source, settings, table.curves)
    unpruned = source.select("maximal")
    chosen, layers = dict(unpruned.by_group), list(source.architecture.layers)
    made = folder.with_suffix(".new")
    made.mkdir(parents=True, exist_ok=True)
    for bound in sorted(arguments.bounds, key=float, reverse=True):
        while layers and cost(tuple(chosen.values())) > float(bound) * cost(unpruned.widths):
            last = layers.pop()  # model.layers.29; its groups: layers.29.self_attn, layers.29.mlp
            removed = [name for name in chosen if name.endswith(ENDINGS) and last.endswith(name.rpartition(".")[0])]
            assert removed, last
            chosen |= dict.fromkeys(removed, 0)
        (made / f"latency-{bound}x.json").write_text(json.dumps({"widths": chosen}))
    made.rename(folder)


def described(name: str, work: Path) -> dict[str, Any]:
    """The numbers of removed blocks of a network."""
    kind, _, bound = name.partition("-")
    if not bound:
        return {"kind": kind}
    widths = json.loads((work / f"search-{kind}/subnetworks/latency-{bound}x.json").read_text())["widths"]
    removed = {end: sum(name.endswith(f".{end}") and not width for name, width in widths.items()) for end in ENDINGS}
    return {"kind": kind, "bound": float(bound), "removed": removed}


def stock(arguments: argparse.Namespace) -> Path:
    """The merged LoRA in INT8 by `optimum-cli`."""
    output, merged = Path(arguments.work / "stock"), Path(arguments.work / "merged")
    if not output.exists():
        options = ["--model", arguments.model, "--stage", "checkpoint", "--no-verify"]
        exported(merged, arguments.lora, *options)
        classifies = "SequenceClassification" in (merged / "config.json").read_text()
        task = "text-classification" if classifies else "feature-extraction"
        line = ["optimum-cli", "export", "openvino", "--model", merged, "--task", task]
        line += ["--library", "transformers", "--weight-format", "int8", output]
        subprocess.run([str(part) for part in line], check=True, stdout=subprocess.DEVNULL)
        if pooling := read_pooling(merged):
            pooling.write(output, json.loads((merged / "config.json").read_text())["hidden_size"])
    return Path(output)


def timed(networks: dict[str, Path], output: Path, rounds: int) -> dict[tuple[str, int], tuple[float, list[float | None]]]:
    """Latency in ms, and its ratio to the stock file's with the interval, by network and length of the texts."""
    if not output.exists():
        others = ["subnet", *(str(folder) for name, folder in networks.items() if name != "unpruned")]
        lengths = ",".join(map(str, LENGTHS))
        options = ["--variants", ",".join(others), "--rounds", rounds, "--prompt-len", lengths]
        lonas_edge("bench", networks["unpruned"], *options, "--output", output)
    samples: dict[tuple[str, int], dict[int, tuple[float, int]]] = {}
    for each in json.loads((output / "bench.json").read_text())["samples"]:
        name = "unpruned" if each["variant"] == "subnet" else each["variant"]
        rounds_of = samples.setdefault((name, each["case"]["prompt_len"]), {})
        rounds_of[each["round"]] = 1000 * each["timing"]["end_to_end"], each["start"]
    times = {}
    for (name, length), own in samples.items():
        base = samples["stock", length]
        common = sorted(own.keys() & base.keys())
        starts = [own[number][1] for number in common]
        ratio = paired_ratio([own[number][0] for number in common], [base[number][0] for number in common], starts)
        times[name, length] = median(time for time, _ in own.values()), [ratio.value, ratio.low, ratio.high]
    return times


def draw(rows: dict[str, Any], length: int, output: Path) -> None:
    """Draw the differences of the metric over the latency ratio, a line for each kind."""
    figure, axis = pyplot.subplots(figsize=(6, 4), layout="constrained")
    for kind, label in LABELS.items():
        own = [row for row in rows.values() if row["kind"] == kind]
        if own:
            found = [row["differences"][0] for row in own]
            points = [each["points"] for each in found]
            bars = [[abs(each["points"] - each[side]) for each in found] for side in ("low", "high")]
            axis.errorbar([row["latency"][length][0] for row in own], points, bars, marker="o", capsize=3, label=label)
    axis.axhline(0, color="gray", linewidth=0.8)
    axis.set(xlabel=f"latency of {length} tokens, relative to stock INT8", ylabel="difference on the test set (points)")
    axis.legend(title="removed")
    figure.savefig(output, dpi=120)


if __name__ == "__main__":
    main()
