"""What INT4 costs in answers, and what gives it back: data to look at, or a training that knows of it.

    python benchmarks/int4_study.py models/smollm2-135m nncf_config/smollm2_135m.json --datasets DIR --work DIR \\
        --output benchmarks/results/int4_study.json

With each seed: plain LoRA, and a sub-network (--subnet) of a super-adapter that is trained further with the LoRA as its
teacher. Each is stored in INT8 (`int8_sym`), and in INT4 (`int4_sym`) without data, with GPTQ on the training's prompts
(`export --calibration`; of LoRA optimum-intel's own, too), and trained anew as INT4 stores it (`train --weight-format`), in as
many steps. All answer by `option-text`; differences from the same network's INT8 are paired by question and averaged over the
seeds. Finished steps are kept in --work; one process may run for each seed, and one for both at the end.
"""

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from accuracy_study import TASKS, lonas_edge
from plane import merged, stock_ir
from search_study import PACKAGES, STEPS, against, answer, over_seeds, write_data
from structure_study import LORA_STEPS

from lonas_edge.bench.machine import describe
from lonas_edge.versions import versions

INT8, INT4, GPTQ, STOCK, TRAINED = "int8", "int4", "int4, GPTQ", "int4, GPTQ by optimum-intel", "int4, trained so"
FORMATS = {INT8: "int8_sym", INT4: "int4_sym", GPTQ: "int4_sym", TRAINED: "int4_sym"}
LORA = "LoRA"
Answers = dict[str, dict[str, list[float]]]  # by arm and task


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("base", type=Path)
    parser.add_argument("space", type=Path)
    parser.add_argument("--datasets", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--seeds", default="1,2")
    parser.add_argument("--subnet", default="heuristic")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--steps", type=int, default=LORA_STEPS, help="of LoRA, and of the training of one network")
    parser.add_argument("--super-steps", type=int, default=STEPS)
    parser.add_argument("--limit", type=int, help="questions of each task; all when not given")
    parser.add_argument("--only", choices=["train", "export"], help="stop after this step")
    return parser.parse_args()


def trained(output: Path, *command: object) -> Path:
    """An adapter."""
    if not output.exists():
        resumed = ["--resume"] if output.with_name(f"{output.name}.training").exists() else []
        lonas_edge("train", *command, "--output", output, "--prompt", "question", "--precision", "bf16", *resumed)
    return output


def adapters(arguments: argparse.Namespace, seed: int, data: Path) -> dict[str, dict[str, Path]]:
    """LoRA and the sub-network, each trained as it is and as INT4 stores it."""
    work = arguments.work
    new = ["--model", arguments.base, "--data", data, "--lr", arguments.lr, "--seed", seed]
    plain, stored = [], ["--weight-format", FORMATS[TRAINED]]
    steps = ["--steps", arguments.steps]
    lora = {
        arm: trained(work / f"lora{name}-{seed}", *new, "--no-elastic", *steps, *more)
        for arm, name, more in ((INT8, "", plain), (TRAINED, "-int4", stored))
    }
    spaced = ["--nncf-config", arguments.space, "--steps", arguments.super_steps]
    whole = trained(work / f"super-{seed}", *new, *spaced)
    one = ["--from", whole, "--subnet", arguments.subnet, "--teacher", lora[INT8]]
    one += ["--data", data, "--lr", arguments.lr, "--seed", seed, *steps]
    special = {
        arm: trained(work / f"special{name}-{seed}", *one, *more)
        for arm, name, more in ((INT8, "", plain), (TRAINED, "-int4", stored))
    }
    return {LORA: lora, "sub-network": special}


def irs(arguments: argparse.Namespace, seed: int, data: Path) -> dict[str, dict[str, Path]]:
    """IRs by network and arm."""
    found: dict[str, dict[str, Path]] = {}
    for name, made in adapters(arguments, seed, data).items():
        found[name] = {}
        for place, (arm, weight_format) in enumerate(FORMATS.items()):
            folder = found[name][arm] = arguments.work / f"ir-{seed}" / f"{name.lower()}-{place}"
            folder.parent.mkdir(exist_ok=True)
            more = ["--calibration", data] if arm == GPTQ else []
            if not folder.exists():
                adapter = made[TRAINED if arm == TRAINED else INT8]
                lonas_edge("export", adapter, "--weight-format", weight_format, "--output", folder, *more)
        if name == LORA:
            stock = arguments.work / f"stock-{seed}"
            stock.mkdir(exist_ok=True)
            found[name][STOCK] = stock_ir("int4-gptq", merged(made[INT8], stock), data, stock)
    return found


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
    data, _ = write_data(arguments)
    answers: list[dict[str, Answers]] = []
    seconds: dict[str, dict[str, float]] = {}
    for seed in map(int, arguments.seeds.split(",")):
        made = adapters(arguments, seed, data)
        seconds[str(seed)] = {
            f"{name}: {arm}": json.loads((one / "training.json").read_text())["seconds"]
            for name, arms in made.items()
            for arm, one in arms.items()
        }
        if arguments.only == "train":
            continue
        folders = irs(arguments, seed, data)
        if arguments.only == "export":
            continue
        flat = {f"{name}: {arm}": folder for name, arms in folders.items() for arm, folder in arms.items()}
        asked = answer(arguments, flat, arguments.work / f"answers-{seed}")
        answers.append({name: {arm: asked[f"{name}: {arm}"] for arm in arms} for name, arms in folders.items()})
    if arguments.only:
        return
    result = compared(answers)
    told(result)
    kept = {name: getattr(arguments, name) for name in ("seeds", "subnet", "lr", "steps", "super_steps", "limit")}
    report = {
        "conditions": {**describe("CPU"), "versions": versions((*PACKAGES, "optimum-intel"))},
        "settings": {**kept, "base": arguments.base.name, "space": arguments.space.name, "tasks": list(TASKS)},
        "training_seconds": seconds,
        "networks": result,
    }
    if arguments.output:
        arguments.output.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
