"""Study: models with and without drafts, interleaved on the same prompts, compared with the first model.

    python benchmarks/drafts.py int8 int8+draft8 int4 int4+draft4 --data test.jsonl --output benchmarks/results/drafts.json

A `+` joins a model and its draft, which runs with its own number of proposed tokens and precision, and with those of
--proposed. The first model is also timed in f32, and with --lookup N in f32 with openvino_genai's prompt lookup, which proposes
N tokens that once followed the last three. With --schema FILE it is also timed with answers limited to this JSON schema. Each
model gets the prompts in its own tokens; `identical` compares tokens.
With --concurrent N, a measurement is of N prompts at once, in continuous batching: only the times of whole answers count.
"""

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import openvino_genai

from lonas_edge.bench.answers import Answer, Answerer, time_answers
from lonas_edge.bench.machine import describe
from lonas_edge.drafting.measure import speed_of
from lonas_edge.evaluate.backends import batching_pipeline
from lonas_edge.exporting.answering import Prompts, greedy, read_prompts
from lonas_edge.exporting.drafts import PRECISION, Draft, open_draft
from lonas_edge.exporting.exported import open_exported
from lonas_edge.progress import silent
from lonas_edge.versions import versions

PROMPTS = 24


class _Lookup(Draft):
    """Prompt lookup in place of a draft model."""

    def options(self, device: str) -> dict[str, Any]:
        """Arguments of openvino_genai's pipelines."""
        return {"prompt_lookup": True, **self.properties(device)}


def _own(answerer: Answerer, prompts: Prompts, proposed: int | None = None) -> Callable[[int], Answer]:
    """Answer the prompt of an index."""
    return lambda index: answerer.answer(prompts.tokens[index], proposed)


def _at_once(folder: Path, prompts: Prompts, count: int, draft: Draft | None, precision: str | None) -> Callable[[int], Answer]:
    """Answer `count` prompts from that of an index on, all at once; the answer has the tokens of all of them."""
    properties = draft.properties("CPU") if draft else {PRECISION: precision} if precision else {}
    pipeline, config = batching_pipeline(folder, "CPU", properties, draft), greedy(folder, prompts.limit)
    if draft:
        config.num_assistant_tokens = draft.num_assistant_tokens

    def answer(index: int) -> Answer:
        chosen = [prompts.tokens[(index + other) % len(prompts.tokens)] for other in range(count)]
        start = time.perf_counter()
        results = pipeline.generate([ov.Tensor(np.array([tokens], np.int64)) for tokens in chosen], [config] * count)
        total = 1000 * (time.perf_counter() - start)
        tokens = tuple(token for result in results for token in result.m_generation_ids[0])
        return Answer(tokens, 0.0, total, len(tokens))

    return answer


def main() -> None:
    """Time all of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--proposed", type=int, nargs="*", default=[])
    parser.add_argument("--lookup", type=int, nargs="*", default=[])
    parser.add_argument("--schema", type=Path)
    parser.add_argument("--concurrent", type=int, default=1)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    if arguments.concurrent > 1 and (arguments.proposed or arguments.lookup):
        parser.error("--proposed and --lookup are for one prompt at a time")
    first, count = Path(arguments.models[0]), arguments.concurrent
    prompts = read_prompts(open_exported(first, ours=False), arguments.data, 42, PROMPTS)
    answerers: dict[str, Callable[[int], Answer]] = {}

    def add(name: str, model: Path, own: Prompts, draft: Draft | None = None, precision: str | None = None) -> None:
        if count > 1:
            answerers[name] = _at_once(model, own, count, draft, precision)
            return
        answerer = Answerer(model, own.limit, draft, precision)
        answerers[name] = _own(answerer, own)
        for number in arguments.proposed if draft else ():
            answerers[f"{name}, {number} proposed"] = _own(answerer, own, number)

    add(f"{first.name}, f32", first, prompts, precision="f32")
    for number in arguments.lookup:
        answerer = Answerer(first, prompts.limit, _Lookup(first, number, "f32"))
        answerer._config.max_ngram_size = 3
        answerers[f"{first.name}, lookup of {number}"] = _own(answerer, prompts)
    if arguments.schema:
        answerer = Answerer(first, prompts.limit)
        form = openvino_genai.StructuredOutputConfig(json_schema=arguments.schema.read_text())
        answerer._config.structured_output_config = form
        answerers[f"{first.name}, schema"] = _own(answerer, prompts)
    for name in arguments.models:
        model, _, draft = name.partition("+")
        exported = open_exported(Path(model), ours=False)
        own = read_prompts(exported, arguments.data, 42, PROMPTS)
        shown = Path(model).name + (" + draft" if draft else "")
        add(shown, Path(model), own, open_draft(Path(draft), exported) if draft else None)
    timed = time_answers(answerers, range(PROMPTS), silent)
    rows = {name: asdict(speed_of(0, None, answers, timed[first.name])) for name, answers in timed.items()}
    for name in rows.keys() & {f"{first.name}, lookup of {number}" for number in arguments.lookup}:
        rows[name].pop("tokens_per_pass")  # openvino_genai does not count passes with prompt lookup
    record = {"conditions": {**describe("CPU"), "versions": versions(("openvino", "openvino-genai"))}}
    record["conditions"] |= {"concurrent": count, "prompt_tokens": sum(map(len, prompts.tokens[:PROMPTS])) / PROMPTS}
    record["rows"] = rows
    arguments.output.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
