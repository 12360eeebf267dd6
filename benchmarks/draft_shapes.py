"""Study: layers and width of a draft, trained as `draft` does on the same answers of a model.

    python benchmarks/draft_shapes.py IR --data train.jsonl --work DIR --shapes 2x128 1x128 3x128 2x64 2x256 \\
        --output benchmarks/results/draft_shapes.json

A shape is layers x width. `draft` itself makes 2x128. Agreement is that with 60 held-out answers; the first of them are timed,
with the number of proposed tokens that is fastest for each shape.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

from lonas_edge.bench.machine import describe
from lonas_edge.drafting import network as module
from lonas_edge.drafting.answers import generate_answers
from lonas_edge.drafting.measure import fastest, measure_draft
from lonas_edge.drafting.run import export_draft
from lonas_edge.drafting.training import train_draft
from lonas_edge.exporting.answering import read_prompts
from lonas_edge.exporting.exported import open_exported
from lonas_edge.network.tokenizer import require_tokenizer
from lonas_edge.progress import silent
from lonas_edge.versions import versions

SEED, HELD_OUT, TIMED = 42, 60, 24


def main() -> None:
    """Train and time all shapes; a stopped study continues."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--shapes", nargs="+", default=["2x128", "1x128", "3x128", "2x64", "2x256"])
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    exported = open_exported(arguments.model, ours=False)
    tokenizer = require_tokenizer(arguments.model, "a draft")
    prompts = read_prompts(exported, arguments.data, SEED, 1)
    answered = [
        each for each in generate_answers(arguments.model, prompts, arguments.work / "answers.jsonl", silent) if each.answer
    ]
    held_out, train = answered[:HELD_OUT], answered[HELD_OUT:]
    rows: dict[str, Any] = {}
    for shape in arguments.shapes:
        module._LAYERS, module._WIDTH = map(int, shape.split("x"))
        work = arguments.work / shape
        work.mkdir(exist_ok=True)
        draft, start = module.new_draft(exported, SEED), time.perf_counter()
        trained = train_draft(draft, train, held_out, tokenizer, SEED, work / "training.pt", silent)
        seconds = time.perf_counter() - start
        export_draft(draft, arguments.model, work, silent)
        timed = [each.prompt for each in held_out[:TIMED]]
        speeds = measure_draft(arguments.model, work / "draft", timed, prompts.limit, silent)
        best = fastest(speeds)
        rows[shape] = {"agreement": trained.agreement, "steps": trained.steps, "seconds": seconds, "best": vars(best)}
        rows[shape]["megabytes"] = (work / "draft/openvino_model.bin").stat().st_size / 1e6
        print(shape, rows[shape], flush=True)
    conditions = {**describe("CPU"), "versions": versions(("openvino", "openvino-genai")), "seed": SEED, "train": len(train)}
    arguments.output.write_text(json.dumps({"conditions": conditions, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
