"""What does each freedom of a search space give? MLP widths alone, attention left out alone, heads alone, several, all of them.

    python benchmarks/structure_study.py models/smollm2-135m --datasets DIR --work DIR \\
        --output benchmarks/results/structure_study.json

A super-adapter is trained with each freedom, as in `search_study.py` and at the same steps; which attention may be left out is
measured on the base by the held-out examples (`space --depth --data`). One search each, by TPOT on this machine, gives networks
at 0.88 and 0.78 of the maximal network's TPOT, and, where MLPs may be narrowed, at the linear weights of the network whose
MLPs are at 75 %. They, that network, the maximal one and plain LoRA of equal compute are exported as INT8, measured in turn in
one run (the first seed's), and answer the whole test sets by `option-text`; differences are paired by question and averaged
over the seeds. The freedoms in --once have the first seed alone. "widths+attention" is a space with both. Finished steps are
kept in --work.
"""

import argparse
import copy
import json
import statistics
from pathlib import Path
from typing import Any

from accuracy_study import TASKS, lonas_edge
from search_study import (
    EQUAL,
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
from lonas_edge.network.source import Source, open_source
from lonas_edge.space.search_space import Group
from lonas_edge.space.subnetwork import select
from lonas_edge.versions import versions

FREEDOMS = ("widths", "attention", "heads", "all")
SHARES = (0.88, 0.78)  # of the maximal network's TPOT
UNIFORM = "MLPs at 75 %"
LORA_STEPS = 180  # what `STEPS` of random sub-networks cost


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("base", type=Path)
    parser.add_argument("--datasets", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--seeds", default="1,2")
    parser.add_argument("--freedoms", default=",".join(FREEDOMS))
    parser.add_argument("--once", default="", help="freedoms that the first seed alone has")
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
        options = ["--heads", "--depth", "attention", "--data", held_out, "--prompt", "question"]
        lonas_edge("space", "--model", arguments.base, "--output", whole, *options)
    found = {}
    for freedom in arguments.freedoms.split(","):
        kinds = FREEDOMS[:-1] if freedom == "all" else freedom.split("+")
        content = json.loads(whole.read_text())
        training = content["bootstrapNAS"]["training"]
        width, stage = training["elasticity"]["width"], training["schedule"]["list_stage_descriptions"][0]
        for nodes, values in zip(width["overwrite_groups"], width["overwrite_groups_widths"], strict=True):
            kind = "ranks" if "lora_A" in nodes[0] else "widths" if "mlp" in nodes[0] else "heads"
            if kind not in (*kinds, "ranks"):
                del values[1:]
        if "attention" not in kinds:
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


def of_mlps(group: Group) -> bool:
    """Whether a group is an MLP's width."""
    return group.kind == "width" and ".mlp." in group.members[0].module


def uniform(source: Source) -> tuple[int, ...]:
    """Every MLP at the middle of its widths, all else whole."""
    middle, whole = (select(source.space, name).widths for name in ("heuristic", "maximal"))
    groups = source.space.groups
    return tuple(narrow if of_mlps(group) else wide for group, narrow, wide in zip(groups, middle, whole, strict=True))


def compared(source: Source, found: Path, work: Path) -> dict[str, str]:
    """The networks of one search that are compared: name and --subnet."""
    record = json.loads((found / "search.json").read_text())
    evaluations, places = record["evaluations"], {one["name"]: one for one in record["named"]}
    whole = evaluations[places["maximal"]["evaluation"]]["cost"]
    subnets = {"maximal": "maximal"}
    for pick in [pick for pick in record["picks"] if pick["name"].startswith("pick:weights")]:
        file = work / "uniform.json"
        file.write_text(json.dumps({"widths": uniform(source)}))
        subnets[UNIFORM] = str(file)
        subnets[EQUAL] = str(found / "subnetworks" / f"{pick['file']}.json")
    for share in SHARES:
        under = [
            (evaluations[one["evaluation"]]["quality"], one["file"])
            for name, one in places.items()
            if name.startswith("front:") and evaluations[one["evaluation"]]["cost"] <= share * whole
        ]
        if under:
            subnets[f"tpot<={share:.2f}x"] = str(found / "subnetworks" / f"{min(under)[1]}.json")
    return subnets


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


def study(
    arguments: argparse.Namespace, seed: int, data: tuple[Path, Path], found_spaces: dict[str, Path], timed: bool
) -> dict[str, Any]:
    """One seed: its freedoms from the training to the answers, and the times if they are asked for."""
    adapters = {"lora": train_lora(arguments, seed, data[0])}
    for freedom, space in found_spaces.items():
        adapters[freedom] = train(within(arguments, freedom, space), seed, data[0])
    if arguments.only == "train":
        return {}
    folders: dict[str, Path] = {}
    answers: dict[str, dict[str, list[float]]] = {}

    def ask(freedom: str, own: argparse.Namespace, subnets: dict[str, str]) -> None:
        made = export(adapters[freedom], subnets, own.work / f"ir-{seed}")
        told = answer(arguments, made, own.work / f"answers-{seed}")
        for name, folder in made.items():
            full = name if freedom == "lora" else f"{freedom}: {name}"
            folders[full], answers[full] = folder, told[name]

    if arguments.only != "search":
        ask("lora", arguments, {"lora": "maximal"})
    for freedom, space in found_spaces.items():
        own, source = within(arguments, freedom, space), open_source(str(adapters[freedom]))
        equal = source.sizes(uniform(source)).linear_weights
        narrows = any(of_mlps(group) and len(group.widths) > 1 for group in source.space.groups)
        found = search(own, seed, adapters[freedom], data[1], [f"weights<={equal}"] if narrows else [])
        if arguments.only != "search":
            ask(freedom, own, compared(source, found, own.work))
    if arguments.only:
        return {}
    times = time_networks(folders, arguments.work / f"bench-{seed}") if timed else {}
    averages = {name: statistics.mean(map(statistics.mean, one.values())) for name, one in answers.items()}
    rows = {name: {"average": averages[name], **sizes(folders[name]), **times.get(name, {})} for name in folders}
    return {"answers": answers, "networks": rows}


def sizes(folder: Path) -> dict[str, Any]:
    """What the exported network weighs and what it was measured to differ by."""
    manifest = json.loads((folder / "lonas_edge.json").read_text())
    return {"linear_weights": manifest["sizes"]["subnetwork"]["linear_weights"]}


def differences_of(name: str, seeds: list[dict[str, dict[str, list[float]]]]) -> dict[str, dict[str, float]]:
    """What a network's answers lose to those of LoRA, and to those of the super-adapter whose MLPs alone are elastic."""
    having = [one for one in seeds if name in one]
    own = over_seeds([one[name] for one in having])
    freedom, _, network = name.partition(": ")
    others = ["lora"]
    others += [f"widths: {network}"] if network in ("maximal", UNIFORM) and freedom != "widths" else []
    others += [f"widths: {UNIFORM}"] if network == EQUAL else []
    return {
        other: against(own, over_seeds([one[other] for one in having]))
        for other in others
        if all(other in one for one in having)
    }


def main() -> None:
    arguments = parse()
    arguments.work.mkdir(parents=True, exist_ok=True)
    data = write_data(arguments)
    found_spaces = spaces(arguments, data[1])
    if arguments.only == "spaces":
        return
    first, *others = map(int, arguments.seeds.split(","))
    again = {freedom: space for freedom, space in found_spaces.items() if freedom not in arguments.once.split(",")}
    seeds = {first: study(arguments, first, data, found_spaces, True)}
    seeds |= {seed: study(arguments, seed, data, again, False) for seed in others}
    if arguments.only:
        return
    names = list(seeds[first]["networks"])
    differences = {name: differences_of(name, [one["answers"] for one in seeds.values()]) for name in names if name != "lora"}
    settings = {name: getattr(arguments, name) for name in ("steps", "quality", "prompts", "evals", "torch_dtype", "limit")}
    report = {
        "conditions": {**describe("CPU"), "versions": versions(PACKAGES)},
        "settings": {**settings, "base": arguments.base.name, "tasks": list(TASKS), "lora_steps": LORA_STEPS},
        "seeds": {str(seed): one["networks"] for seed, one in seeds.items()},
        "differences": differences,
    }
    for name in names:
        rows = [one["networks"][name] for one in seeds.values() if name in one["networks"]]
        times = f"  {rows[0]['ttft_ms']:.0f} / {rows[0]['tpot_ms']:.2f} ms"
        figures = "  ".join(f"{row['average']:.1f} %" for row in rows)
        told = "  ".join(
            f"less {other} {one['difference']:+.1f} ± {one['half_width_95']:.1f}"
            for other, one in differences.get(name, {}).items()
        )
        print(f"{name:24} {figures}{times}  {told}")
    if arguments.output:
        arguments.output.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
