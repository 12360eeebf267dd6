"""Study: drafts of several layers and widths, trained for at most --steps on the same answers, timed on the same prompts.

    python benchmarks/draft_shapes.py int8 --data train600.jsonl --shapes 1x128 2x64 2x128 --work work --output out.json

Ratios are to the model alone in f32. A killed study continues: answers, trainings and exports are in the working directory.
"""

import argparse
import json
import time
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from lonas_edge.bench.answers import Answerer, time_answers
from lonas_edge.bench.machine import describe
from lonas_edge.drafting import training
from lonas_edge.drafting.answers import generate_answers
from lonas_edge.drafting.measure import speed_of
from lonas_edge.drafting.network import new_draft
from lonas_edge.drafting.run import export_draft
from lonas_edge.exporting.answering import read_prompts
from lonas_edge.exporting.drafts import Draft
from lonas_edge.exporting.exported import open_exported
from lonas_edge.network.tokenizer import require_tokenizer
from lonas_edge.progress import silent
from lonas_edge.versions import versions

HELD_OUT, TIMED, PROPOSED = 60, 24, 7


def main() -> None:
    """Train, export and time all of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--shapes", nargs="+", required=True, metavar="LAYERSxWIDTH")
    parser.add_argument("--steps", type=int, default=training.STEPS)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    training.STEPS = arguments.steps
    exported, tokenizer = open_exported(arguments.model, ours=False), require_tokenizer(arguments.model, "a draft")
    prompts = read_prompts(exported, arguments.data, 42, 32)
    arguments.work.mkdir(parents=True, exist_ok=True)
    answered = generate_answers(arguments.model, prompts, arguments.work / "answers.jsonl", silent)
    answered = [each for each in answered if each.answer]
    held_out, train = answered[:HELD_OUT], answered[HELD_OUT:]
    rows: dict[str, Any] = {}
    answerers = {"alone": Answerer(arguments.model, prompts.limit, precision="f32").answer}
    for shape in arguments.shapes:
        work = arguments.work / f"{shape}-{arguments.steps}"
        trained = work / "trained.json"
        if not trained.exists():
            work.mkdir(exist_ok=True)
            network, started = new_draft(exported, 42, *map(int, shape.split("x"))), time.perf_counter()
            best = training.train_draft(network, train, held_out, tokenizer, 42, work / "training.pt", silent)
            row = {"agreement": best.agreement, "steps": best.steps, "seconds": time.perf_counter() - started}
            export_draft(network, arguments.model, work, silent)
            trained.write_text(json.dumps(row))
        rows[shape] = json.loads(trained.read_text())
        print(shape, rows[shape], flush=True)
        answerer = Answerer(arguments.model, prompts.limit, Draft(work / "draft", PROPOSED, "f32"))
        answerers[shape] = partial(answerer.answer, proposed=PROPOSED)
    timed = time_answers(answerers, [each.prompt for each in held_out[:TIMED]], silent)
    for name, answers in timed.items():
        rows[name] = rows.get(name, {}) | asdict(speed_of(PROPOSED, "f32", answers, timed["alone"]))
    conditions = {**describe("CPU"), "versions": versions(("openvino", "openvino-genai", "torch")), "steps": arguments.steps}
    arguments.output.write_text(json.dumps({"conditions": conditions, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
