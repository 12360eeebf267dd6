"""What does each freedom of a search space give? MLP widths alone, attention left out alone, heads alone, all at once.

    python benchmarks/structure_study.py models/smollm2-135m --datasets DIR --work DIR \\
        --given found.json --given-space SPACE.json --output benchmarks/results/structure_study.json

With each seed LoRA is trained so that it can be cut in every way (the maximal network alone of a super-adapter). The first
seed's is searched by KL and TPOT on this machine, once with each freedom: within a kind of cut KL orders well, between kinds it
misleads before they were trained. What each search picks at --share of the maximal network's TPOT, and --given (found by a
super-adapter's search, in which kinds compete), is trained further from each seed's LoRA, with that LoRA as its teacher.

All are INT8 IRs and answer by `option-text`; differences are paired by question and averaged over the seeds; the first seed's
are measured in turn in one run. Finished steps are kept in --work: `--only lora`, then `--only search`, then a process for each
seed with `--only answers`, then one for all.
"""

import argparse
import copy
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from accuracy_study import TASKS, lonas_edge
from int4_study import trained
from search_study import LORA_STEPS, PACKAGES, against, answer, over_seeds, search, time_networks, write_data

from lonas_edge.bench.machine import describe
from lonas_edge.network.source import open_source
from lonas_edge.space.search_space import Group
from lonas_edge.versions import versions

FREEDOMS = ("widths", "attention", "heads")
LORA = "LoRA"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("base", type=Path)
    parser.add_argument("--datasets", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--seeds", default="1,2")
    parser.add_argument("--freedoms", default=",".join((*FREEDOMS, "all")), help="those that are searched; may be empty")
    parser.add_argument("--given", type=Path, help="a sub-network in which several kinds are cut")
    parser.add_argument("--given-space", type=Path, help="the search space that it is of")
    parser.add_argument("--share", type=float, default=0.85, help="of the maximal network's TPOT")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--steps", type=int, default=LORA_STEPS, help="of LoRA, and of one network's further training")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--quality", default="kl")
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--evals", type=int, default=24)
    parser.add_argument("--torch-dtype", default="fp32")
    parser.add_argument("--limit", type=int, help="questions of each task; all when not given")
    parser.add_argument("--only", choices=["lora", "search", "answers"], help="stop after this step")
    return parser.parse_args()


def groups_of(base: Path, space: Path) -> tuple[Group, ...]:
    """The elastic groups of a search space."""
    return open_source(str(base), None, space).space.groups


def translated(widths: list[int], groups: tuple[Group, ...], others: tuple[Group, ...]) -> list[int]:
    """A sub-network in the terms of a search space that has other groups: what it does not say stays whole."""
    known = {group.members: width for group, width in zip(groups, widths, strict=True)}
    return [known.pop(group.members, group.widths[0]) for group in others]


def restricted(content: dict[str, Any], kinds: Sequence[str]) -> dict[str, Any]:
    """A search space in which these kinds alone may change, of ranks, widths, heads and attention."""
    content = copy.deepcopy(content)
    training = content["bootstrapNAS"]["training"]
    width, stage = training["elasticity"]["width"], training["schedule"]["list_stage_descriptions"][0]
    for nodes, values in zip(width["overwrite_groups"], width["overwrite_groups_widths"], strict=True):
        kind = "ranks" if "lora_A" in nodes[0] else "widths" if "mlp" in nodes[0] else "heads"
        if kind not in kinds:
            del values[1:]
    if "attention" not in kinds:
        del training["elasticity"]["lonas_edge"]
        stage["train_dims"] = ["width"]
    return content


def spaces(arguments: argparse.Namespace) -> dict[str, Path]:
    """Search spaces that differ in what may change: all, or one freedom."""
    whole = arguments.work / "space-all.json"
    if not whole.exists():
        options = ["--ratios", "1,.75,.5,.25", "--heads", "--depth", "attention"]
        options += ["--data", arguments.held_out, "--prompt", "question"]
        lonas_edge("space", "--model", arguments.base, "--output", whole, *options)
    found = {"all": whole}
    for freedom in FREEDOMS:
        found[freedom] = arguments.work / f"space-{freedom}.json"
        found[freedom].write_text(json.dumps(restricted(json.loads(whole.read_text()), [freedom]), indent=1))
    return found


def lora(arguments: argparse.Namespace, seed: int, space: Path) -> Path:
    """LoRA that can be cut."""
    command = ["--model", arguments.base, "--nncf-config", space, "--subnetworks", "maximal", "--prompt", "question"]
    output: Path = arguments.work / f"lora-{seed}"
    return trained(arguments, seed, output, *command, "--steps", arguments.steps, "--lr", arguments.lr)


def networks(arguments: argparse.Namespace, super_adapter: Path, found_spaces: dict[str, Path]) -> dict[str, Path]:
    """The sub-network of each freedom, found in the first seed's LoRA, and the given one: files of the whole search space."""
    whole = groups_of(arguments.base, found_spaces["all"])
    found = {}
    given = [("several", arguments.given, arguments.given_space)] if arguments.given else []
    for freedom in filter(None, arguments.freedoms.split(",")):
        own = argparse.Namespace(**{**vars(arguments), "work": arguments.work / freedom})
        own.work.mkdir(exist_ok=True)
        alone, cache = ["--nncf-config", found_spaces[freedom]], arguments.work / "cache"
        picks = [f"tpot<={arguments.share:.2f}x"]
        output = search(own, 1, super_adapter, arguments.held_out, picks, *alone, cache=cache)
        (pick,) = json.loads((output / "search.json").read_text())["picks"]
        given.append((freedom, output / "subnetworks" / f"{pick['file']}.json", found_spaces[freedom]))
    for name, file, space in given:
        widths = translated(list(json.loads(file.read_text())["widths"].values()), groups_of(arguments.base, space), whole)
        found[name] = arguments.work / f"found-{name}.json"
        found[name].write_text(json.dumps({"widths": widths}))
    return found


def study(arguments: argparse.Namespace, seed: int, found_spaces: dict[str, Path], subnets: dict[str, Path]) -> dict[str, Path]:
    """The networks of one seed as IRs, by name."""
    teacher = lora(arguments, seed, found_spaces["all"])
    folders = {LORA: exported(arguments, seed, LORA, teacher, "--subnet", "maximal")}
    options = ["--teacher", teacher, "--steps", arguments.steps, "--lr", arguments.lr]
    for name, subnet in subnets.items():
        output = arguments.work / f"special-{name}-{seed}"
        folders[name] = exported(
            arguments, seed, name, trained(arguments, seed, output, "--from", teacher, "--subnet", subnet, *options)
        )
    return folders


def exported(arguments: argparse.Namespace, seed: int, name: str, source: Path, *options: object) -> Path:
    """An IR."""
    folder: Path = arguments.work / f"ir-{seed}" / name.replace(" ", "-").replace(":", "")
    if not folder.exists():
        folder.parent.mkdir(exist_ok=True)
        lonas_edge("export", source, *options, "--output", folder)
    return folder


def sizes(folder: Path) -> dict[str, Any]:
    """What an exported network weighs."""
    manifest = json.loads((folder / "lonas_edge.json").read_text())
    return {"linear_weights": manifest["sizes"]["subnetwork"]["linear_weights"]}


def shown(row: dict[str, Any]) -> str:
    """Averages by seed, and differences."""
    figures = " ".join(f"{value:.1f}" for value in row["averages"])
    less = "  ".join(f"less {other} {v['difference']:+.1f} ± {v['half_width_95']:.1f}" for other, v in row["less"].items())
    return f"{figures} %  {less}"


def main() -> None:
    arguments = parse()
    arguments.work.mkdir(parents=True, exist_ok=True)
    arguments.data, arguments.held_out = write_data(arguments)
    found_spaces = spaces(arguments)
    seeds = list(map(int, arguments.seeds.split(",")))
    if arguments.only == "lora":
        for seed in seeds:
            lora(arguments, seed, found_spaces["all"])
        return
    subnets = networks(arguments, lora(arguments, 1, found_spaces["all"]), found_spaces)
    if arguments.only == "search":
        return
    folders = {seed: study(arguments, seed, found_spaces, subnets) for seed in seeds}
    answers = {seed: answer(arguments, folders[seed], arguments.work / f"answers-{seed}") for seed in seeds}
    if arguments.only:
        return
    times = time_networks(folders[seeds[0]], arguments.work / "bench")
    means = {name: over_seeds([one[name] for one in answers.values()]) for name in folders[seeds[0]]}
    result = {}
    for name, mean in means.items():
        result[name] = {
            "averages": [statistics.mean(map(statistics.mean, one[name].values())) for one in answers.values()],
            **sizes(folders[seeds[0]][name]),
            **times[name],
            "less": {} if name == LORA else {LORA: against(mean, means[LORA])},
        }
    kept = (
        "seeds",
        "freedoms",
        "share",
        "lr",
        "steps",
        "precision",
        "quality",
        "prompts",
        "evals",
        "torch_dtype",
        "limit",
    )
    report = {
        "conditions": {**describe("CPU"), "versions": versions(PACKAGES)},
        "settings": {**{name: getattr(arguments, name) for name in kept}, "base": arguments.base.name, "tasks": list(TASKS)},
        "subnetworks": {name: list(json.loads(file.read_text())["widths"].values()) for name, file in subnets.items()},
        "networks": result,
    }
    for name, row in result.items():
        print(f"{name:12} {row['ttft_ms']:.0f} / {row['tpot_ms']:.2f} ms  {shown(row)}")
    if arguments.output:
        arguments.output.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
