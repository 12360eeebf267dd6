"""What a search costs at a large model's shape: seconds an evaluation, and memory. Random weights, bf16.

    python benchmarks/search_cost.py --work models/bench --output benchmarks/results/search_cost_llama_7b.json

`lonas-edge search` by KL over MACs, damage table and `--evals` evaluations, as a command line of its own; 14 GB of disk for
LLaMA-7B's shape. Its tokenizer has a token a byte, so that a question is about as long as a real one of 250 tokens. Memory is
that of the process, looked at every --every seconds (`export_cost.run`): `pss` counts memory-mapped file pages, too. Found
networks mean nothing.
"""

import argparse
import json
import shutil
from pathlib import Path

from export_cost import BIN, conditions, run
from random_models import SHAPES, random_source

HELD_OUT = 64  # questions in the file; --prompts of them are scored


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="scratch directory; the model made for it is kept there")
    parser.add_argument("--shape", choices=SHAPES, default="llama-7b")
    parser.add_argument("--prompts", type=int, default=2)
    parser.add_argument("--evals", type=int, default=50)
    parser.add_argument("--every", type=float, default=15, help="seconds between looks at the memory")
    parser.add_argument("--resume", action="store_true", help="go on with a search that was interrupted")
    parser.add_argument("--output", type=Path)
    return parser.parse_args()


def write_questions(path: Path) -> Path:
    """Sums, in the instruction format."""
    rows = []
    for number in range(HELD_OUT):
        first, second = 17 + 3 * number, 91 - number
        output = f"the correct answer is {first + second}"
        rows.append({"instruction": f"What is {first} plus {second}?", "input": "", "output": output, "answer": "sum"})
    path.write_text(json.dumps(rows))
    return path


def main() -> None:
    arguments = parse()
    arguments.work.mkdir(parents=True, exist_ok=True)
    source = random_source(arguments.shape, arguments.work)
    data = write_questions(arguments.work / "sums.json")
    found = arguments.work / f"search-{arguments.shape}"
    if not arguments.resume:
        shutil.rmtree(found, ignore_errors=True)
    settings = ["--val-set-size", arguments.prompts, "--evals", arguments.evals, "--torch-dtype", "bf16"]
    settings += ["--resume"] if arguments.resume else []
    command = [BIN / "lonas-edge", "search", *source, "--data", data, "--output", found, *settings]
    measured = run([str(part) for part in command], arguments.every)
    record = json.loads((found / "search.json").read_text())
    each = sorted(one["seconds"] for one in record["evaluations"])
    result = {
        "shape": arguments.shape,
        "conditions": conditions(),
        "settings": {"prompts": arguments.prompts, "evals": arguments.evals, "groups": len(record["evaluations"][0]["widths"])},
        "command": measured,
        "seconds": record["seconds"],
        "seconds_an_evaluation": {"median": each[len(each) // 2], "largest": each[-1]},
    }
    print(json.dumps({key: result[key] for key in ("command", "seconds", "seconds_an_evaluation")}, indent=1))
    if arguments.output:
        arguments.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
