"""What does each freedom of a search space give? MLP widths alone, blocks alone, heads alone, all of them.

    python benchmarks/structure_study.py models/smollm2-135m --datasets DIR --work DIR \\
        --output benchmarks/results/structure_study.json

A super-adapter is trained with each freedom and seed, as in `search_study.py` and at the same steps; which blocks may be left
out is measured on the base by the held-out examples (`space --depth --data`). One search each, by TPOT on this machine, gives
networks at 0.88, 0.78 and 0.70 of the maximal network's TPOT. They, the maximal and the heuristic one and plain LoRA of equal
compute are exported as INT8, measured in turn in one run, and answer the whole test sets by `option-text`; differences from
LoRA are paired by question and averaged over the seeds. Finished steps are kept in --work.
"""

import argparse
import copy
import json
import statistics
from pathlib import Path
from typing import Any

from accuracy_study import TASKS, lonas_edge
from search_study import (
    PACKAGES,
    STEPS,
    against,
    answer,
    export,
    over_seeds,
    search,
    time_networks,
    train,
    write_data,
)

from lonas_edge.bench.machine import describe
from lonas_edge.versions import versions

FREEDOMS = ("widths", "depth", "heads", "all")
SHARES = (0.88, 0.78, 0.70)  # of the maximal network's TPOT
LORA_STEPS = 180  # what `STEPS` of random sub-networks cost


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("base", type=Path)
    parser.add_argument("--datasets", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--seeds", default="1,2")
    parser.add_argument("--freedoms", default=",".join(FREEDOMS))
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--quality", default="kl")
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--evals", type=int, default=120)
    parser.add_argument("--torch-dtype", default="bf16")
    parser.add_argument("--limit", type=int, help="questions of each task; all when not given")
    parser.add_argument("--only", choices=["spaces", "train", "search", "answers"], help="stop after this step")
    return parser.parse_args()


def spaces(arguments: argparse.Namespace, held_out: Path) -> dict[str, Path]:
    """A search space for each freedom: the same file but for what may change."""
    whole = arguments.work / "space-all.json"
    if not whole.exists():
        options = ["--heads", "--depth", "attention,mlp", "--data", held_out, "--prompt", "question"]
        lonas_edge("space", "--model", arguments.base, "--output", whole, *options)
    found = {}
    for freedom in arguments.freedoms.split(","):
        content = json.loads(whole.read_text())
        training = content["bootstrapNAS"]["training"]
        width, stage = training["elasticity"]["width"], training["schedule"]["list_stage_descriptions"][0]
        for nodes, values in zip(width["overwrite_groups"], width["overwrite_groups_widths"], strict=True):
            kind = "ranks" if "lora_A" in nodes[0] else "widths" if "mlp" in nodes[0] else "heads"
            if freedom not in ("all", kind) and kind != "ranks":
                del values[1:]
        if freedom not in ("all", "depth"):
            del training["elasticity"]["lonas_edge"]
            stage["train_dims"] = ["width"]
        found[freedom] = arguments.work / f"space-{freedom}.json"
        found[freedom].write_text(json.dumps(content, indent=1))
    return found


def within(arguments: argparse.Namespace, freedom: str, space: Path | None) -> argparse.Namespace:
    """The arguments of one freedom, whose steps are kept in a directory of its own."""
    own = copy.copy(arguments)
    own.work, own.space = arguments.work / freedom, space
    own.work.mkdir(exist_ok=True)
    return own


def best_within(record: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The best of the front at each share of the maximal network's cost that this freedom can reach."""
    evaluations = record["evaluations"]
    places = {one["name"]: one for one in record["named"]}
    whole = evaluations[places["maximal"]["evaluation"]]["cost"]
    found = {}
    for share in SHARES:
        under = [
            {**evaluations[one["evaluation"]], "file": one["file"]}
            for name, one in places.items()
            if name.startswith("front:") and evaluations[one["evaluation"]]["cost"] <= share * whole
        ]
        if under:
            found[f"tpot<={share:.2f}x"] = min(under, key=lambda one: one["quality"])
    return found


def train_lora(arguments: argparse.Namespace, seed: int, data: Path) -> Path:
    """Plain LoRA at equal compute."""
    output = arguments.work / f"lora-{seed}"
    if not output.exists():
        command = [
            "train",
            "--model",
            arguments.base,
            "--data",
            data,
            "--output",
            output,
            "--no-elastic",
            "--prompt",
            "question",
        ]
        lonas_edge(*command, "--steps", LORA_STEPS, "--seed", seed, "--lr", 3e-4, "--precision", "bf16")
    return output


def study(arguments: argparse.Namespace, seed: int, data: tuple[Path, Path], found_spaces: dict[str, Path]) -> dict[str, Any]:
    """One seed: all freedoms from the training to the answers."""
    adapters = {"lora": train_lora(arguments, seed, data[0])}
    for freedom, space in found_spaces.items():
        adapters[freedom] = train(within(arguments, freedom, space), seed, data[0])
    if arguments.only == "train":
        return {}
    folders = {"lora": export(adapters["lora"], {"lora": "maximal"}, arguments.work / f"ir-{seed}")["lora"]}
    predicted: dict[str, float] = {}
    for freedom, space in found_spaces.items():
        own = within(arguments, freedom, space)
        found = search(own, seed, adapters[freedom], data[1], [])
        best = best_within(json.loads((found / "search.json").read_text()))
        if arguments.only != "search":
            files = {name: str(found / "subnetworks" / f"{one['file']}.json") for name, one in best.items()}
            subnets = {"maximal": "maximal", "heuristic": "heuristic", **files}
            made = export(adapters[freedom], subnets, own.work / f"ir-{seed}")
            folders |= {f"{freedom}: {name}": folder for name, folder in made.items()}
        predicted |= {f"{freedom}: {name}": one["quality"] for name, one in best.items()}
    if arguments.only == "search":
        return {}
    answers = answer(arguments, folders, arguments.work / f"answers-{seed}")
    if arguments.only == "answers":
        return {"answers": answers}
    times = time_networks(folders, arguments.work / f"bench-{seed}")
    averages = {name: statistics.mean(map(statistics.mean, one.values())) for name, one in answers.items()}
    rows = {name: {"average": averages[name], "kl": predicted.get(name), **times[name]} for name in folders}
    return {"answers": answers, "networks": rows}


def main() -> None:
    arguments = parse()
    arguments.work.mkdir(parents=True, exist_ok=True)
    data = write_data(arguments)
    found_spaces = spaces(arguments, data[1])
    if arguments.only == "spaces":
        return
    seeds = {seed: study(arguments, seed, data, found_spaces) for seed in map(int, arguments.seeds.split(","))}
    if arguments.only:
        return
    names = list(next(iter(seeds.values()))["networks"])
    answers = {name: over_seeds([one["answers"][name] for one in seeds.values()]) for name in names}
    differences = {name: against(answers[name], answers["lora"]) for name in names if name != "lora"}
    settings = {name: getattr(arguments, name) for name in ("steps", "quality", "prompts", "evals", "torch_dtype", "limit")}
    report = {
        "conditions": {**describe("CPU"), "versions": versions(PACKAGES)},
        "settings": {**settings, "base": arguments.base.name, "tasks": list(TASKS), "lora_steps": LORA_STEPS},
        "seeds": {str(seed): one["networks"] for seed, one in seeds.items()},
        "less_lora": differences,
    }
    for name in names:
        rows = [one["networks"][name] for one in seeds.values()]
        figures = "  ".join(f"{row['average']:.1f} % {row['ttft_ms']:.0f} / {row['tpot_ms']:.2f} ms" for row in rows)
        told = differences.get(name)
        print(f"{name:24} {figures}" + (f"  {told['difference']:+.1f} ± {told['half_width_95']:.1f}" if told else ""))
    if arguments.output:
        arguments.output.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
