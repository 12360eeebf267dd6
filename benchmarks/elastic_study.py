"""Which options of elastic training pay at equal compute? Attention that is drawn, a finished teacher, networks of a front.

    python benchmarks/elastic_study.py models/smollm2-135m SPACE.json --subnet found.json --front DIR --datasets DIR \\
        --work DIR --output benchmarks/results/elastic_study.json

SPACE has MLP widths and attention that may be left out. With each seed LoRA is trained so that it can be cut (the maximal
network alone), and for the same compute super-adapters: with MLP widths alone; with attention, too, left out at two rates;
with the finished LoRA as the teacher; and drawing the networks of --front (files that `search` wrote) instead of all. Of each
the maximal network, the one whose MLPs are at their middle widths, and --subnet (where attention may be left out) answer by
`option-text` as INT8 IRs; differences are paired by question and averaged over the seeds. Finished steps are kept in --work;
a process may run for each seed with `--only answers`, then one for all.
"""

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from accuracy_study import TASKS, lonas_edge
from int4_study import trained
from search_study import LORA_STEPS, PACKAGES, STEPS, against, answer, over_seeds, write_data
from structure_study import groups_of, lora, restricted, shown, translated

from lonas_edge.bench.machine import describe
from lonas_edge.network.source import Source, open_source
from lonas_edge.space.search_space import Group
from lonas_edge.versions import versions

LORA, WIDTHS, DEEP, RARE, TAUGHT, FRONT = "LoRA", "MLP widths", "and attention", "and attention, rarely", "taught", "of a front"
# Steps of equal compute: what a drawn network's step and a teacher's forward pass cost in LoRA's steps (`accuracy_study.py`);
# a network of a front of 0.70 x to 1 x the time of a token keeps nine tenths of the work.
ARM_STEPS = {WIDTHS: STEPS, DEEP: STEPS, RARE: STEPS, TAUGHT: 137, FRONT: 200}
RATES = {DEEP: 0.2, RARE: 0.1, TAUGHT: 0.2}  # --depth-rate
MAXIMAL, MIDDLE, FOUND = "maximal", "MLPs at their middle", "found"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("base", type=Path)
    parser.add_argument("space", type=Path)
    parser.add_argument("--subnet", type=Path, required=True, help="a sub-network file of SPACE")
    parser.add_argument("--front", type=Path, required=True, help="directory of sub-network files of SPACE")
    parser.add_argument("--datasets", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--seeds", default="1,2")
    parser.add_argument("--arms", default=";".join(ARM_STEPS), help="separated by semicolons")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--steps", type=int, default=LORA_STEPS, help="of LoRA; the arms' are in proportion")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--limit", type=int, help="questions of each task; all when not given")
    parser.add_argument("--only", choices=["answers"], help="stop after this step")
    return parser.parse_args()


def named(name: str) -> str:
    """As part of a file's name."""
    return name.replace(" ", "-").replace(":", "").replace(",", "")


def super_adapter(arguments: argparse.Namespace, arm: str, seed: int) -> Path:
    """One arm's training."""
    space: Path = arguments.space
    if arm == WIDTHS:
        space = arguments.work / "space-widths.json"
        space.write_text(json.dumps(restricted(json.loads(arguments.space.read_text()), ["widths"]), indent=1))
    command: list[object] = ["--model", arguments.base, "--nncf-config", space, "--prompt", "question", "--lr", arguments.lr]
    command += ["--steps", round(ARM_STEPS[arm] * arguments.steps / LORA_STEPS)]
    command += ["--depth-rate", RATES[arm]] if arm in RATES else []
    command += ["--teacher", lora(arguments, seed, arguments.space)] if arm == TAUGHT else []
    command += ["--subnetworks", arguments.front] if arm == FRONT else []
    return trained(arguments, seed, arguments.work / f"super-{named(arm)}-{seed}", *command)


def of_mlps(group: Group) -> bool:
    """Whether a group is an MLP's width."""
    return group.kind == "width" and ".mlp." in group.members[0].module


def middle(source: Source) -> list[int]:
    """Every MLP at the middle of its widths, all else whole."""
    narrow, wide = (source.select(name).widths for name in ("heuristic", "maximal"))
    return [n if of_mlps(group) else w for group, n, w in zip(source.space.groups, narrow, wide, strict=True)]


def networks(arguments: argparse.Namespace, arm: str, adapter: Path) -> dict[str, object]:
    """Which of an arm's networks are asked: name and --subnet."""
    file = arguments.work / f"middle-{named(arm)}.json"
    source = open_source(str(adapter))
    file.write_text(json.dumps({"widths": middle(source)}))
    found: dict[str, object] = {MAXIMAL: "maximal", MIDDLE: file}
    if arm != WIDTHS:
        widths = list(json.loads(arguments.subnet.read_text())["widths"].values())
        own = arguments.work / f"found-{named(arm)}.json"
        own.write_text(
            json.dumps({"widths": translated(widths, groups_of(arguments.base, arguments.space), source.space.groups)})
        )
        found[FOUND] = own
    return found


def exported(arguments: argparse.Namespace, seed: int) -> dict[str, Path]:
    """All networks of one seed as IRs, by arm and network."""
    adapters = {arm: super_adapter(arguments, arm, seed) for arm in arguments.arms.split(";")}
    wanted: dict[str, tuple[Path, object]] = {LORA: (lora(arguments, seed, arguments.space), "maximal")}
    for arm, adapter in adapters.items():
        wanted |= {f"{arm}: {name}": (adapter, subnet) for name, subnet in networks(arguments, arm, adapter).items()}
    folders = {}
    for name, (adapter, subnet) in wanted.items():
        folder = folders[name] = arguments.work / f"ir-{seed}" / named(name)
        folder.parent.mkdir(exist_ok=True)
        if not folder.exists():
            lonas_edge("export", adapter, "--subnet", subnet, "--output", folder)
    return folders


def rows(answers: dict[int, dict[str, Any]]) -> dict[str, Any]:
    """Averages by seed, and differences from LoRA and from the same network of the arms before."""
    names = list(next(iter(answers.values())))
    means = {name: over_seeds([one[name] for one in answers.values()]) for name in names}
    found = {}
    for name in names:
        arm, _, network = name.partition(": ")
        others = [LORA] if arm != LORA else []
        others += [f"{other}: {network}" for other in (WIDTHS, DEEP, RARE) if arm not in (LORA, WIDTHS, other)]
        found[name] = {
            "averages": [statistics.mean(map(statistics.mean, one[name].values())) for one in answers.values()],
            "less": {other: against(means[name], means[other]) for other in others if other in means},
        }
    return found


def trainings(arguments: argparse.Namespace, seeds: list[int]) -> dict[str, Any]:
    """What each training took: steps, and seconds by seed."""
    found = {}
    for arm in (LORA, *arguments.arms.split(";")):
        own = [lora(arguments, seed, arguments.space) if arm == LORA else super_adapter(arguments, arm, seed) for seed in seeds]
        records = [json.loads((adapter / "training.json").read_text()) for adapter in own]
        found[arm] = {"steps": records[0]["steps"], "seconds": [round(record["seconds"]) for record in records]}
    return found


def main() -> None:
    arguments = parse()
    arguments.work.mkdir(parents=True, exist_ok=True)
    arguments.data, _ = write_data(arguments)
    seeds = list(map(int, arguments.seeds.split(",")))
    folders = {seed: exported(arguments, seed) for seed in seeds}
    answers = {seed: answer(arguments, folders[seed], arguments.work / f"answers-{seed}") for seed in seeds}
    if arguments.only:
        return
    result = rows(answers)
    settings = {name: getattr(arguments, name) for name in ("seeds", "arms", "lr", "steps", "precision", "limit")}
    report = {
        "conditions": {**describe("CPU"), "versions": versions(PACKAGES)},
        "settings": {**settings, "base": arguments.base.name, "depth_rates": RATES, "tasks": list(TASKS)},
        "trainings": trainings(arguments, seeds),
        "found": list(json.loads(arguments.subnet.read_text())["widths"].values()),
        "front": {
            file.stem: list(json.loads(file.read_text())["widths"].values()) for file in sorted(arguments.front.glob("*.json"))
        },
        "networks": result,
    }
    for name, row in result.items():
        print(f"{name:36} {shown(row)}")
    if arguments.output:
        arguments.output.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
