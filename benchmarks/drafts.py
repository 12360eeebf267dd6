"""Study: models with and without drafts, interleaved on the same prompts, compared with the first model.

    python benchmarks/drafts.py int8 int8+draft8 int4 int4+draft4 --data test.jsonl --output benchmarks/results/drafts.json

A `+` joins a model and its draft, which runs with its own number of proposed tokens and precision, and with those of
--proposed. The first model is also timed in f32.
"""

import argparse
import json
from dataclasses import asdict
from functools import partial
from pathlib import Path

from lonas_edge.bench.answers import Answerer, time_answers
from lonas_edge.bench.machine import describe
from lonas_edge.drafting.measure import speed_of
from lonas_edge.exporting.answering import read_prompts
from lonas_edge.exporting.drafts import open_draft
from lonas_edge.exporting.exported import open_exported
from lonas_edge.progress import silent
from lonas_edge.versions import versions

PROMPTS = 24


def main() -> None:
    """Time all of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--proposed", type=int, nargs="*", default=[])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    first = Path(arguments.models[0])
    prompts = read_prompts(open_exported(first, ours=False), arguments.data, 42, PROMPTS)
    answerers = {f"{first.name}, f32": Answerer(first, prompts.limit, precision="f32").answer}
    for name in arguments.models:
        model, _, draft = name.partition("+")
        opened = open_draft(Path(draft), open_exported(Path(model), ours=False)) if draft else None
        shown = Path(model).name + (" + draft" if draft else "")
        answerer = Answerer(Path(model), prompts.limit, opened)
        answerers[shown] = answerer.answer
        for number in arguments.proposed if draft else ():
            answerers[f"{shown}, {number} proposed"] = partial(answerer.answer, proposed=number)
    timed = time_answers(answerers, prompts.tokens[:PROMPTS], silent)
    rows = {name: asdict(speed_of(0, None, answers, timed[first.name])) for name, answers in timed.items()}
    record = {"conditions": {**describe("CPU"), "versions": versions(("openvino", "openvino-genai"))}, "rows": rows}
    arguments.output.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
