"""What does a sub-network cost in answers? LoRA, the reference's recipe, and options of `lonas-edge train`, at equal compute.

    python benchmarks/accuracy_study.py models/smollm2-135m nncf_config/smollm2_135m.json --datasets DIR --work DIR \\
        --output benchmarks/results/accuracy_study.json

DIR holds <task>/{train,test}.json of ARC-Easy, ARC-Challenge, openbookqa and boolq (LLM-Adapters' format). Every arm trains on
the same examples ("Question: … Answer: TEXT", the right option's text as answer) for the same compute as LoRA: the
steps are divided by what a step costs. The maximal, heuristic and minimal sub-networks then answer a seeded sample of the
test sets by the `option-text` protocol. Finished runs are kept in --work, so that a study that was stopped goes on.
"""

import argparse
import json
import math
import random
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from lonas_edge.evaluate.compare import Z_95
from lonas_edge.evaluate.protocols import PROTOCOLS

# An arm: options of `lonas-edge train`, and what a step costs in those of plain LoRA. A backward pass costs as much as a
# forward pass (base weights need no gradients); a random sub-network keeps 0.81 of the work, the minimal one 0.63.
RANDOM, HEURISTIC, MINIMAL = 0.81, 0.84, 0.63
ARMS: dict[str, tuple[list[str], float]] = {
    "lora": (["--no-elastic"], 1),
    "reference": (["--no-reorder"], RANDOM),
    "order": (["--reorder"], RANDOM),
    "order+distill": (["--reorder", "--distill", "0.5"], RANDOM + 0.5),
    "order+sandwich+distill": (["--reorder", "--sampling", "sandwich", "--distill", "0.5"], 1 + RANDOM + MINIMAL),
    # nothing narrower than the heuristic widths is drawn: what training the smaller sub-networks takes from it
    "order+narrow": (["--reorder", "--width-indicator", "3"], 0.91),
    # plain LoRA on the base cut to the heuristic widths: what any elastic training could reach there with this compute
    "cut-first": (["--no-elastic"], HEURISTIC),
}
SUBNETS = ("maximal", "heuristic", "minimal")
TASKS = ("ARC-Easy", "ARC-Challenge", "openbookqa", "boolq")
TRAINING = {"ARC-Easy": None, "ARC-Challenge": None, "openbookqa": 1500, "boolq": 1500}  # examples taken of each


@dataclass(frozen=True)
class Answer:
    """How the options of one question were ranked; the loss is that of the right one, in nats."""

    task: str
    right: bool
    right_normalized: bool
    loss: float


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("base", type=Path)
    parser.add_argument("space", type=Path)
    parser.add_argument("--datasets", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--steps", type=int, default=250, help="of LoRA")
    parser.add_argument("--seeds", default="1,2")
    parser.add_argument("--arms", default=",".join(ARMS))
    parser.add_argument("--questions", type=int, default=500, help="of each test set")
    parser.add_argument("--precision", default="bf16", choices=["fp32", "bf16"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--lr", type=float, default=3e-4)
    return parser.parse_args()


def lonas_edge(*command: object) -> None:
    """Run the command line."""
    subprocess.run([sys.executable, "-m", "lonas_edge", *map(str, command)], check=True, stdout=subprocess.DEVNULL)


def cut_base(arguments: argparse.Namespace, data: Path) -> Path:
    """The base in order of importance, cut to the heuristic widths, without any training: a checkpoint of its own."""
    cut, untrained = arguments.work / "cut", arguments.work / "untrained"
    if not cut.exists():
        settings = ["--nncf-config", arguments.space, "--prompt", "question", "--steps", 1, "--lr", 1e-12, "--overwrite"]
        lonas_edge("train", "--model", arguments.base, "--data", data, "--output", untrained, *settings)
        lonas_edge("export", untrained, "--subnet", "heuristic", "--stage", "checkpoint", "--output", cut)
    return cut


def train(arguments: argparse.Namespace, arm: str, seed: int, data: Path) -> tuple[Path, dict[str, Any]]:
    """Train one arm with one seed through the command line; returns the super-adapter and its record."""
    output = arguments.work / f"{arm}-{seed}"
    options, cost = ARMS[arm]
    if not output.exists():
        base = cut_base(arguments, data) if arm == "cut-first" else arguments.base
        command = ["train", "--model", base, "--data", data, "--output", output, *options]
        command += [] if "--no-elastic" in options else ["--nncf-config", arguments.space]
        command += ["--steps", round(arguments.steps / cost), "--seed", seed, "--prompt", "question", "--lr", arguments.lr]
        command += ["--precision", arguments.precision, "--device", arguments.device, "--save-steps", 100]
        command += ["--resume"] if output.with_name(f"{output.name}.training").exists() else []
        lonas_edge(*command)
    return output, json.loads((output / "training.json").read_text())


def read(datasets: Path, task: str, split: str, limit: int | None) -> list[dict[str, Any]]:
    """Questions of a task as the protocol `option-text` asks them; `limit` takes a seeded sample."""
    path, protocol = datasets / task / f"{split}.json", PROTOCOLS["option-text"]
    samples = protocol.read(datasets, task) if split == "test" else json.loads(path.read_text())
    if limit and limit < len(samples):
        samples = random.Random(f"0/{task}/{split}").sample(samples, limit)
    return [{"task": task, **document} for document in protocol.documents(samples, task, "question")]


def examples(asked: list[dict[str, Any]]) -> list[dict[str, str]]:
    """Training examples whose answer is the right option's text."""
    head, tail = "Question: ", "\nAnswer:"
    return [
        {"instruction": d["prompt"].removeprefix(head).removesuffix(tail), "input": "", "output": d["choices"][d["label"]]}
        for d in asked
    ]


def evaluate(arguments: argparse.Namespace, source: Path, asked: list[Any], zero_shot: bool = False) -> dict[str, list[Any]]:
    """Answers of the sub-networks of a trained arm, or of the base alone."""
    import torch
    from transformers import AutoTokenizer

    from lonas_edge.evaluate.torch_lm import TorchLM
    from lonas_edge.network.source import open_source
    from lonas_edge.network.super_network import load_super_network

    opened = open_source(str(source))
    tokenizer = AutoTokenizer.from_pretrained(opened.base.folder)
    network = load_super_network(opened, torch.bfloat16 if arguments.precision == "bf16" else torch.float32)
    base = network.model if zero_shot else network.model.get_base_model()
    model = TorchLM(pretrained=base.to(arguments.device), tokenizer=tokenizer, batch_size=16)
    found = {}
    for name in SUBNETS if opened.space.groups else ("maximal",):
        network.activate(opened.select(name).widths)
        found[name] = answers_of(model, asked)
    return found


def answers_of(model: Any, asked: list[dict[str, Any]]) -> list[Answer]:
    """How a model ranks the options of every question."""
    from lm_eval.api.instance import Instance

    requests = [
        Instance("loglikelihood", {}, (d["prompt"], f" {choice}"), place, (d["task"], index, 1))
        for index, d in enumerate(asked)
        for place, choice in enumerate(d["choices"])
    ]
    likelihoods = iter([value for value, _ in model.loglikelihood(requests, disable_tqdm=True)])
    found = []
    for document in asked:
        scores = [next(likelihoods) for _ in document["choices"]]
        shares = [score / len(choice) for score, choice in zip(scores, document["choices"], strict=True)]
        right = [values.index(max(values)) == document["label"] for values in (scores, shares)]
        found.append(Answer(document["task"], *right, -scores[document["label"]]))
    return found


def cached(path: Path, make: Any) -> Any:
    if not path.exists():
        path.write_text(json.dumps(make()))
    return json.loads(path.read_text())


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    arguments.work.mkdir(parents=True, exist_ok=True)
    data = arguments.work / "train.json"
    mixture = [e for task, n in TRAINING.items() for e in examples(read(arguments.datasets, task, "train", n))]
    if not data.exists():
        data.write_text(json.dumps(mixture))
    asked = [q for task in TASKS for q in read(arguments.datasets, task, "test", arguments.questions)]

    def answers(source: Path, zero_shot: bool = False) -> dict[str, list[dict[str, Any]]]:
        found = evaluate(arguments, source, asked, zero_shot)
        return {name: [vars(a) for a in values] for name, values in found.items()}

    runs: dict[str, Any] = {
        "zero-shot": {"maximal": cached(arguments.work / "zero.json", lambda: answers(arguments.base, True))}
    }
    runs = {"zero-shot": {"0": runs["zero-shot"]["maximal"]}}
    records = {}
    for seed in map(int, arguments.seeds.split(",")):
        for arm in arguments.arms.split(","):
            start = time.time()
            output, record = train(arguments, arm, seed, data)
            runs.setdefault(arm, {})[str(seed)] = cached(
                arguments.work / f"{arm}-{seed}.answers.json", partial(answers, output)
            )
            records.setdefault(arm, {})[str(seed)] = {key: record[key] for key in ("steps", "seconds", "losses")}
            shown = {name: round(average(load(values)), 1) for name, values in runs[arm][str(seed)].items()}
            print(f"{arm}, seed {seed}: {shown}  [{time.time() - start:.0f} s]", flush=True)
    return {"runs": runs, "records": records}


def summary(answers: list[Answer]) -> dict[str, float]:
    """acc, acc_norm (percent, with standard errors) and answer loss (nats)."""
    n, result = len(answers), {}
    for name, values in (("acc", [a.right for a in answers]), ("acc_norm", [a.right_normalized for a in answers])):
        share = sum(values) / n
        result |= {name: 100 * share, f"{name}_se": 100 * math.sqrt(share * (1 - share) / n)}
    return result | {"answer_loss": sum(a.loss for a in answers) / n}


def paired_difference(first: list[float], second: list[float], groups: list[str]) -> tuple[float, float]:
    """Mean over tasks of the difference of two networks on the same questions, and half its 95 % interval."""
    mean, variance = 0.0, 0.0
    for task in TASKS:
        differences = [a - b for a, b, g in zip(first, second, groups, strict=True) if g == task]
        mean += statistics.mean(differences) / len(TASKS)
        variance += statistics.variance(differences) / len(differences) / len(TASKS) ** 2
    return mean, Z_95 * math.sqrt(variance)


def load(values: list[dict[str, Any]]) -> list[Answer]:
    return [Answer(**value) for value in values]


def score(found: Answer) -> float:
    """What counts as accuracy here: length-normalized, and for BoolQ, whose options are two words, plain."""
    return 100.0 * (found.right if found.task == "boolq" else found.right_normalized)


def average(found: list[Answer]) -> float:
    """Mean accuracy over the tasks."""
    return statistics.mean(statistics.mean(score(a) for a in found if a.task == task) for task in TASKS)


def against(first: list[list[Answer]], second: list[list[Answer]]) -> dict[str, float]:
    """first - second in points of average accuracy, paired by question and averaged over seeds; 95 % interval."""
    groups = [a.task for a in first[0]]
    pairs = [
        [statistics.mean(values) for values in zip(*(map(score, answers) for answers in side), strict=True)]
        for side in (first, second)
    ]
    mean, half = paired_difference(pairs[0], pairs[1], groups)
    return {"difference": mean, "half_width_95": half}


def report(found: dict[str, Any]) -> dict[str, Any]:
    """Tables of the study: each network's figures, and paired differences from LoRA and from the reference's recipe."""
    networks = {
        (arm, subnet): [load(seeds[seed][subnet]) for seed in sorted(seeds)]
        for arm, seeds in found["runs"].items()
        for subnet in next(iter(seeds.values()))
    }
    rows = []
    for (arm, subnet), seeds in networks.items():
        row = {
            "arm": arm,
            "subnet": subnet,
            "average": statistics.mean(map(average, seeds)),
            "by_seed": list(map(average, seeds)),
        }
        row["answer_loss"] = statistics.mean(summary(answers)["answer_loss"] for answers in seeds)
        row["tasks"] = {
            task: {
                key: statistics.mean(summary([a for a in answers if a.task == task])[key] for answers in seeds)
                for key in ("acc", "acc_norm", "acc_se", "acc_norm_se", "answer_loss")
            }
            for task in TASKS
        }
        for other in (("zero-shot", "maximal"), ("lora", "maximal"), ("reference", subnet)):
            if other in networks and other != (arm, subnet):
                row[f"against_{other[0]}"] = against(seeds, networks[other])
        rows.append(row)
    return {"networks": rows, "training": found["records"]}


def main() -> None:
    arguments = parse()
    found = report(run(arguments))
    for row in found["networks"]:
        compared = "  ".join(
            f"{key.removeprefix('against_')} {value['difference']:+.1f} ± {value['half_width_95']:.1f}"
            for key, value in row.items()
            if key.startswith("against")
        )
        print(f"{row['arm']:24} {row['subnet']:10} {row['average']:5.1f} %  loss {row['answer_loss']:.2f}  {compared}")
    from export_cost import conditions

    settings = {key: str(value) if isinstance(value, Path) else value for key, value in vars(arguments).items()}
    for private in ("datasets", "work", "output", "base", "space"):
        settings[private] = Path(settings[private] or "").name
    if arguments.output:
        arguments.output.write_text(json.dumps({"conditions": conditions(), "settings": settings} | found, indent=2) + "\n")


if __name__ == "__main__":
    main()
