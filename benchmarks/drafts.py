"""Study: models with and without drafts, interleaved on the same prompts, compared with the first model.

    python benchmarks/drafts.py int8 int8+draft8 int4 int4+draft4 --data test.jsonl --output benchmarks/results/drafts.json

A `+` joins a model and its draft, which runs with its own number of proposed tokens and precision, and with those of
--proposed. The first model is also timed in f32. Each model gets the prompts in its own tokens; `identical` compares tokens.
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from lonas_edge.bench.answers import Answer, Answerer, time_answers
from lonas_edge.bench.machine import describe
from lonas_edge.drafting.measure import speed_of
from lonas_edge.exporting.answering import Prompts, read_prompts
from lonas_edge.exporting.drafts import open_draft
from lonas_edge.exporting.exported import open_exported
from lonas_edge.progress import silent
from lonas_edge.versions import versions

PROMPTS = 24


def _own(answerer: Answerer, prompts: Prompts, proposed: int | None = None) -> Callable[[int], Answer]:
    """Answer the prompt of an index."""
    return lambda index: answerer.answer(prompts.tokens[index], proposed)


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
    answerers = {f"{first.name}, f32": _own(Answerer(first, prompts.limit, precision="f32"), prompts)}
    for name in arguments.models:
        model, _, draft = name.partition("+")
        exported = open_exported(Path(model), ours=False)
        opened = open_draft(Path(draft), exported) if draft else None
        shown = Path(model).name + (" + draft" if draft else "")
        answerer, own = Answerer(Path(model), prompts.limit, opened), read_prompts(exported, arguments.data, 42, PROMPTS)
        answerers[shown] = _own(answerer, own)
        for number in arguments.proposed if draft else ():
            answerers[f"{shown}, {number} proposed"] = _own(answerer, own, number)
    timed = time_answers(answerers, range(PROMPTS), silent)
    rows = {name: asdict(speed_of(0, None, answers, timed[first.name])) for name, answers in timed.items()}
    record = {"conditions": {**describe("CPU"), "versions": versions(("openvino", "openvino-genai"))}, "rows": rows}
    arguments.output.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
