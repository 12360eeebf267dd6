"""What INT4 costs in answers, and what gives it back: data to look at, or a training that knows of it.

    python benchmarks/int4_study.py models/smollm2-135m SPACE.json --subnet found-{seed}.json --datasets DIR --work DIR \\
        --output benchmarks/results/int4_study.json

With each seed LoRA is trained so that it can be cut (the maximal network of a super-adapter alone), and a sub-network of it
(--subnet) is trained further with the LoRA as its teacher. Each is stored in INT8 (`int8_sym`), in INT4 (`int4_sym`) without
data, with GPTQ on the training's prompts (`export --calibration`; of LoRA optimum-intel's own, too), and after a short further
training as INT4 stores it, taught by the LoRA (`train --from --weight-format`); of LoRA also after as long a training that
knows nothing of INT4. All answer by `option-text`; differences from the same network's INT8 are paired by question and averaged
over the seeds. Finished steps are kept in --work; one process may run for each seed, and one for both at the end.
"""

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from accuracy_study import TASKS, lonas_edge
from plane import merged, stock_ir
from search_study import LORA_STEPS, PACKAGES, against, answer, over_seeds, write_data

from lonas_edge.bench.machine import describe
from lonas_edge.versions import versions

INT8, INT4, GPTQ, STOCK, TRAINED = "int8", "int4", "int4, GPTQ", "int4, GPTQ by optimum-intel", "int4, trained so"
LONGER, LONGER_GPTQ = "int8, trained as long", "int4, GPTQ, trained as long"
STORED = {  # by arm: which adapter, in which format, by GPTQ
    INT8: (INT8, "int8_sym", False),
    INT4: (INT8, "int4_sym", False),
    GPTQ: (INT8, "int4_sym", True),
    TRAINED: (TRAINED, "int4_sym", False),
    LONGER: (LONGER, "int8_sym", False),
    LONGER_GPTQ: (LONGER, "int4_sym", True),
}
LORA, SUBNETWORK = "LoRA", "sub-network"
Answers = dict[str, dict[str, list[float]]]  # by arm and task


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("base", type=Path)
    parser.add_argument("space", type=Path)
    parser.add_argument("--datasets", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--seeds", default="1,2")
    parser.add_argument("--subnet", default="heuristic", help="a name or a file; {seed} is replaced")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--steps", type=int, default=LORA_STEPS, help="of LoRA, and of the sub-network")
    parser.add_argument("--int4-lr", type=float, default=5e-4)
    parser.add_argument("--int4-steps", type=int, default=LORA_STEPS // 2, help="of the further training as INT4 stores it")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--arms", default=";".join([*STORED, STOCK]), help="that answer, separated by semicolons")
    parser.add_argument("--limit", type=int, help="questions of each task; all when not given")
    parser.add_argument("--only", choices=["train", "export"], help="stop after this step")
    return parser.parse_args()


def trained(arguments: argparse.Namespace, seed: int, output: Path, *command: object) -> Path:
    """An adapter."""
    if not output.exists():
        options = ["--data", arguments.data, "--seed", seed, "--precision", arguments.precision, "--output", output]
        resumed = ["--resume"] if output.with_name(f"{output.name}.training").exists() else []
        lonas_edge("train", *command, *options, *resumed)
    return output


def adapters(arguments: argparse.Namespace, seed: int) -> dict[str, dict[str, Path]]:
    """LoRA and the sub-network, each trained as it is, and further as INT4 stores it."""

    def made(name: str, *command: object) -> Path:
        return trained(arguments, seed, arguments.work / f"{name}-{seed}", *command)

    as_it_is = ["--steps", arguments.steps, "--lr", arguments.lr]
    longer = ["--steps", arguments.int4_steps, "--lr", arguments.int4_lr]
    as_stored = [*longer, "--weight-format", STORED[TRAINED][1]]
    space = ["--nncf-config", arguments.space, "--subnetworks", "maximal"]
    lora = made("lora", "--model", arguments.base, *space, "--prompt", "question", *as_it_is)
    subnet = ["--subnet", arguments.subnet.format(seed=seed)]
    special = made("special", "--from", lora, *subnet, "--teacher", lora, *as_it_is)
    lora_int4 = made("lora-int4", "--from", lora, "--subnet", "maximal", "--teacher", lora, *as_stored)
    special_int4 = made("special-int4", "--from", special, "--teacher", lora, *as_stored)
    found = {LORA: {INT8: lora, TRAINED: lora_int4}, SUBNETWORK: {INT8: special, TRAINED: special_int4}}
    if {LONGER, LONGER_GPTQ} & set(arguments.arms.split(";")):
        found[LORA][LONGER] = made("lora-longer", "--from", lora, "--subnet", "maximal", "--teacher", lora, *longer)
    return found


def irs(arguments: argparse.Namespace, seed: int) -> dict[str, dict[str, Path]]:
    """IRs by network and arm."""
    found: dict[str, dict[str, Path]] = {}
    for name, made in adapters(arguments, seed).items():
        found[name] = {}
        for place, (arm, (adapter, weight_format, by_gptq)) in enumerate(STORED.items()):
            if adapter not in made:
                continue
            folder = found[name][arm] = arguments.work / f"ir-{seed}" / f"{name.lower()}-{place}"
            folder.parent.mkdir(exist_ok=True)
            more = ["--calibration", arguments.data] if by_gptq else []
            more += ["--subnet", "maximal"] if name == LORA else []
            if not folder.exists():
                lonas_edge("export", made[adapter], "--weight-format", weight_format, "--output", folder, *more)
        if name == LORA:
            stock = arguments.work / f"stock-{seed}"
            stock.mkdir(exist_ok=True)
            found[name][STOCK] = stock_ir("int4-gptq", merged(made[INT8], stock), arguments.data, stock)
    asked = arguments.arms.split(";")
    return {name: {arm: folder for arm, folder in arms.items() if arm in asked} for name, arms in found.items()}


def compared(answers: list[dict[str, Answers]]) -> dict[str, dict[str, Any]]:
    """Averages of each seed by network and arm, and differences from the network's own INT8 and from LoRA's."""
    result: dict[str, dict[str, Any]] = {}
    lora = over_seeds([one[LORA][INT8] for one in answers])
    for name, arms in answers[0].items():
        own = over_seeds([one[name][INT8] for one in answers])
        result[name] = {}
        for arm in arms:
            mean = over_seeds([one[name][arm] for one in answers])
            result[name][arm] = {
                "averages": [statistics.mean(map(statistics.mean, one[name][arm].values())) for one in answers],
                "less_own_int8": against(mean, own),
                "less_lora_int8": against(mean, lora),
            }
    return result


def told(result: dict[str, dict[str, Any]]) -> None:
    """A line an arm."""
    for name, arms in result.items():
        for arm, row in arms.items():
            averages = " ".join(f"{value:.1f}" for value in row["averages"])
            pairs = (("own INT8", row["less_own_int8"]), ("LoRA INT8", row["less_lora_int8"]))
            less = "  ".join(f"less {what} {one['difference']:+.1f} ± {one['half_width_95']:.1f}" for what, one in pairs)
            print(f"{name:12} {arm:28} {averages} %  {less}")


def main() -> None:
    arguments = parse()
    arguments.work.mkdir(parents=True, exist_ok=True)
    arguments.data, _ = write_data(arguments)
    answers: list[dict[str, Answers]] = []
    seconds: dict[str, dict[str, float]] = {}
    for seed in map(int, arguments.seeds.split(",")):
        made = adapters(arguments, seed)
        seconds[str(seed)] = {
            f"{name}: {arm}": json.loads((one / "training.json").read_text())["seconds"]
            for name, arms in made.items()
            for arm, one in arms.items()
        }
        if arguments.only == "train":
            continue
        folders = irs(arguments, seed)
        if arguments.only == "export":
            continue
        flat = {f"{name}: {arm}": folder for name, arms in folders.items() for arm, folder in arms.items()}
        asked = answer(arguments, flat, arguments.work / f"answers-{arguments.limit or 'all'}-{seed}")
        answers.append({name: {arm: asked[f"{name}: {arm}"] for arm in arms} for name, arms in folders.items()})
    if arguments.only:
        return
    result = compared(answers)
    told(result)
    names = ("seeds", "lr", "steps", "int4_lr", "int4_steps", "precision", "limit")
    kept = {name: getattr(arguments, name) for name in names}
    files = {"base": arguments.base.name, "space": arguments.space.name, "subnet": Path(arguments.subnet).name}
    report = {
        "conditions": {**describe("CPU"), "versions": versions((*PACKAGES, "optimum-intel"))},
        "settings": {**kept, **files, "tasks": list(TASKS)},
        "training_seconds": seconds,
        "networks": result,
    }
    if arguments.output:
        arguments.output.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
