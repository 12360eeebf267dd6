"""Is the network that `lonas-edge search` finds better than the heuristic one of equal size? And what front does it give?

    python benchmarks/search_study.py models/smollm2-135m nncf_config/smollm2_135m.json --datasets DIR --work DIR \\
        --output benchmarks/results/search_study.json

DIR holds <task>/{train,test}.json of ARC-Easy, ARC-Challenge, openbookqa and boolq (LLM-Adapters' format). A super-adapter is
trained with each seed as in `accuracy_study.py` ("order": `--reorder`), but for the examples that are held out for the search.
One search a seed, with `--cost tpot` on this machine, gives the network of at most the heuristic one's linear weights, and four
others of the front. It and the heuristic one (with --maximal the maximal one, too) are exported in 8 bits and answer the whole
test sets by `option-text`; differences are paired by question and averaged over the seeds. With --front the four others do so
with the first seed, too, and all of that are measured in turn by `bench`. Finished steps are kept in --work, so that a study
that was stopped goes on.
"""

import argparse
import json
import os
import random
import statistics
from pathlib import Path
from typing import Any

from accuracy_study import TASKS, TRAINING, examples, lonas_edge, paired_difference, read

from lonas_edge.bench.machine import describe
from lonas_edge.network.source import open_source
from lonas_edge.versions import versions

LORA_STEPS = 180
STEPS = 222  # of random sub-networks: what `accuracy_study.py` gives them at equal compute
HELD_OUT = 100  # training examples of each task that the search asks
PACKAGES = ("lonas-edge", "torch", "transformers", "openvino", "nncf", "optuna")
EQUAL = "at equal weights"
BOTH = ("maximal", "heuristic", EQUAL)  # answered with every seed


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("base", type=Path)
    parser.add_argument("space", type=Path)
    parser.add_argument("--datasets", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--seeds", default="1,2")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--lr", type=float, default=3e-4)
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--quality", default="kl")
    parser.add_argument("--prompts", type=int, default=128, help="held-out prompts that networks are scored on")
    parser.add_argument("--evals", type=int, default=200)
    parser.add_argument("--torch-dtype", default="fp32")
    parser.add_argument("--limit", type=int, help="questions of each task; all when not given")
    parser.add_argument("--maximal", action="store_true", help="ask the maximal networks, too")
    parser.add_argument("--front", action="store_true", help="answer and measure the whole front of the first seed")
    parser.add_argument("--only", choices=["train", "search", "answers", "bench"], help="stop after this step")
    return parser.parse_args()


def write_data(arguments: argparse.Namespace) -> tuple[Path, Path]:
    """The training's mixture, and what is held out of it."""
    train, held_out = arguments.work / "train.json", arguments.work / "held_out.json"
    if not held_out.exists():
        mixture, held = [], []
        for task, count in TRAINING.items():
            asked = examples(read(arguments.datasets, task, "train", None))
            random.Random(f"held out/{task}").shuffle(asked)
            held += asked[:HELD_OUT]
            mixture += asked[HELD_OUT : HELD_OUT + count] if count else asked[HELD_OUT:]
        train.write_text(json.dumps(mixture))
        held_out.write_text(json.dumps(held))
    return train, held_out


def train(arguments: argparse.Namespace, seed: int, data: Path) -> Path:
    """A super-adapter."""
    output = arguments.work / f"super-{seed}"
    if not output.exists():
        command = ["train", "--model", arguments.base, "--data", data, "--output", output, "--nncf-config", arguments.space]
        command += ["--steps", arguments.steps, "--seed", seed, "--prompt", "question"]
        command += ["--lr", arguments.lr, "--precision", arguments.precision]
        lonas_edge(*command, "--reorder", *(["--resume"] if output.with_name(f"{output.name}.training").exists() else []))
    return output


def picks_of(super_adapter: Path) -> list[str]:
    """At the heuristic network's linear weights, and along the front."""
    source = open_source(str(super_adapter))
    equal = source.sizes(source.select("heuristic")).linear_weights
    return [f"weights<={equal}", "tpot<=0.97x", "tpot<=0.94x", "tpot<=0.91x", "tpot<=0.88x"]


def search(
    arguments: argparse.Namespace,
    seed: int,
    super_adapter: Path,
    data: Path,
    picks: list[str],
    *more: object,
    cache: Path | None = None,
) -> Path:
    """A search on this machine, with the picks; without a `cache` of latency tables one is measured, which counts."""
    output, cache = arguments.work / f"search-{seed}", cache or arguments.work / f"cache-{seed}"
    if not (output / "search.json").exists() or not json.loads((output / "search.json").read_text())["finished"]:
        command = [
            "search",
            super_adapter,
            "--data",
            data,
            "--output",
            output,
            "--quality",
            arguments.quality,
            "--cost",
            "tpot",
        ]
        command += ["--val-set-size", arguments.prompts, "--evals", arguments.evals, "--torch-dtype", arguments.torch_dtype]
        os.environ["XDG_CACHE_HOME"] = str(cache.resolve())
        picked = (part for pick in picks for part in ("--pick", pick))
        lonas_edge(*command, *picked, "--no-measure", "--seed", seed, *more)
    return output


def picked(pick: dict[str, Any]) -> str:
    """What a pick is called here."""
    name: str = pick["name"].removeprefix("pick:")
    return EQUAL if name.startswith("weights") else name


def networks(found: Path, front: bool, maximal: bool) -> dict[str, str]:
    """What is compared: name and --subnet; of the picks the one at equal weights alone without `front`."""
    record = json.loads((found / "search.json").read_text())
    picks = {picked(pick): str(found / "subnetworks" / f"{pick['file']}.json") for pick in record["picks"]}
    return {
        **({"maximal": "maximal"} if maximal else {}),
        "heuristic": "heuristic",
        **{name: file for name, file in picks.items() if front or name == EQUAL},
    }


def export(super_adapter: Path, subnets: dict[str, str], work: Path) -> dict[str, Path]:
    """IRs in 8 bits by name."""
    folders = {name: work / name.replace(" ", "-").replace("<=", "-") for name in subnets}
    for name, folder in folders.items():
        if not folder.exists():
            lonas_edge("export", super_adapter, "--subnet", subnets[name], "--output", folder)
    return folders


def answer(arguments: argparse.Namespace, folders: dict[str, Path], output: Path) -> dict[str, dict[str, list[float]]]:
    """For each network and task, 100 for each right answer and 0 for each wrong one, in the order of the questions."""
    if not output.exists():
        options = ["--tasks", ",".join(TASKS), "--datasets", arguments.datasets, "--protocol", "option-text"]
        options += ["--limit", arguments.limit] if arguments.limit else []
        lonas_edge("eval", *folders.values(), *options, "--output", output)
    report = json.loads((output / "eval.json").read_text())
    found = {}
    for name, target in zip(folders, report["targets"], strict=True):
        found[name] = {}
        for task in target["tasks"]:
            log = output / "samples" / target["name"] / f"samples_{task['task']}.jsonl"
            rows = sorted(map(json.loads, log.read_text().splitlines()), key=lambda row: row["doc_id"])
            found[name][task["task"]] = [100.0 * row[task["metric"]] for row in rows]
    return found


def time_networks(folders: dict[str, Path], output: Path) -> dict[str, dict[str, float]]:
    """TTFT and TPOT of all in one run, in turn."""
    first, *others = folders.values()
    if not output.exists():
        settings = ["--rounds", 12, "--warmup", 1, "--starts", 4, "--no-memory", "--output", output]
        lonas_edge("bench", first, "--arms", ",".join(["subnet", *map(str, others)]), *settings)
    rows = json.loads((output / "bench.json").read_text())["rows"]
    return {
        name: {"ttft_ms": row["ttft"]["p50"], "tpot_ms": row["tpot"]["p50"]} for name, row in zip(folders, rows, strict=True)
    }


def against(first: dict[str, list[float]], second: dict[str, list[float]]) -> dict[str, float]:
    """first - second in points of average accuracy, paired by question; 95 % interval."""
    groups = [task for task in TASKS for _ in first[task]]
    flat = [[value for task in TASKS for value in one[task]] for one in (first, second)]
    mean, half = paired_difference(*flat, groups)
    return {"difference": mean, "half_width_95": half}


def over_seeds(seeds: list[dict[str, list[float]]]) -> dict[str, list[float]]:
    """Each question's mean over the seeds."""
    return {task: [statistics.mean(values) for values in zip(*(one[task] for one in seeds), strict=True)] for task in TASKS}


def study(arguments: argparse.Namespace, seed: int, data: tuple[Path, Path], first: bool) -> dict[str, Any]:
    """One seed from the training to the answers; of the first one the whole front, with its latency."""
    super_adapter = train(arguments, seed, data[0])
    if arguments.only == "train":
        return {}
    found = search(arguments, seed, super_adapter, data[1], picks_of(super_adapter))
    if arguments.only == "search":
        return {}
    folders = export(super_adapter, networks(found, first, arguments.maximal), arguments.work / f"ir-{seed}")
    result: dict[str, Any] = {"answers": answer(arguments, folders, arguments.work / f"answers-{seed}")}
    if arguments.only == "answers":
        return result
    record = json.loads((found / "search.json").read_text())
    known = {one["name"]: record["evaluations"][one["evaluation"]] for one in record["named"]}
    known |= {picked(pick): record["evaluations"][pick["evaluation"]] for pick in record["picks"]}
    source = open_source(str(super_adapter))
    times = time_networks(folders, arguments.work / f"bench-{seed}") if first else {}
    result["networks"] = {
        name: {
            "average": statistics.mean(statistics.mean(values) for values in result["answers"][name].values()),
            "linear_weights": source.sizes(source.subnetwork(one["widths"])).linear_weights,
            arguments.quality: one["quality"],
            "tpot_ms_predicted": one["cost"],
            **times.get(name, {}),
        }
        for name, one in ((name, known[name]) for name in folders)
    }
    result["search_seconds"] = {"all": sum(record["seconds"].values()), **record["seconds"]}
    return result


def main() -> None:
    arguments = parse()
    arguments.work.mkdir(parents=True, exist_ok=True)
    data = write_data(arguments)
    numbers = list(map(int, arguments.seeds.split(",")))
    seeds = {seed: study(arguments, seed, data, arguments.front and seed == numbers[0]) for seed in numbers}
    if arguments.only:
        return
    named = list(next(iter(seeds.values()))["answers"])
    answers = {name: over_seeds([one["answers"][name] for one in seeds.values() if name in one["answers"]]) for name in named}
    others = [name for name in ("maximal", "heuristic") if name in answers]
    common = {name: over_seeds([one["answers"][name] for one in list(seeds.values())[:1]]) for name in others}
    differences = {
        name: {
            f"against {other}": against(answers[name], (answers if name in BOTH else common)[other])
            for other in others
            if other != name
        }
        for name in answers
    }
    settings = {name: getattr(arguments, name) for name in ("steps", "quality", "prompts", "evals", "torch_dtype", "limit")}
    report = {
        "conditions": {
            **describe("CPU"),
            "versions": versions(PACKAGES),
        },
        "settings": {**settings, "base": arguments.base.name, "space": arguments.space.name, "held_out": len(TASKS) * HELD_OUT},
        "seeds": {str(seed): {key: one[key] for key in ("networks", "search_seconds")} for seed, one in seeds.items()},
        "differences": differences,
    }
    for name, compared in differences.items():
        rows = [one["networks"][name] for one in seeds.values() if name in one["networks"]]
        figures = [
            f"{row['average']:.1f} %" + (f" {row['ttft_ms']:.0f} / {row['tpot_ms']:.2f} ms" if "ttft_ms" in row else "")
            for row in rows
        ]
        figures += [f"{key} {value['difference']:+.1f} ± {value['half_width_95']:.1f}" for key, value in compared.items()]
        print(f"{name:18} {'  '.join(figures)}")
    if arguments.output:
        arguments.output.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
