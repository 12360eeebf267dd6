"""Functions that the definitions in `harness_tasks/` name; lm-evaluation-harness calls them, stock `lm_eval` too.

`load` returns documents with finished prompts and choices, so that no text of a sample is read as a template.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lonas_edge.data.templates import Template
from lonas_edge.data.test_sets import TASKS
from lonas_edge.errors import LonasEdgeError
from lonas_edge.evaluate.protocols import PROMPT_PROTOCOLS, Document


def load(
    datasets: str = "",
    task: str = "",
    protocol: str = "",
    prompt: str = "alpaca",
    template: Mapping[str, Any] | None = None,
    **_: Any,
) -> dict[str, Any]:
    """Load the split `test`: `custom_dataset` of the definitions, called with `dataset_kwargs` and the harness's `--metadata`.

    `template` has the fields of a `Template`, instead of the name `prompt`.
    """
    from datasets import Dataset

    if not datasets:
        raise LonasEdgeError('no test sets: lm_eval takes their directory as --metadata \'{"datasets": "DIR"}\'')
    known, chosen = PROMPT_PROTOCOLS[protocol], Template(**template) if template else prompt
    return {"test": Dataset.from_list(known.documents(known.read(Path(datasets), task), task, chosen))}


def answers(responses: Sequence[Sequence[str]], documents: Sequence[Document]) -> list[str]:
    """`filter_fn` of the definitions: the answer in each response, as its task reads it."""
    return [TASKS[document["task"]].answer_in(texts[0]) for texts, document in zip(responses, documents, strict=True)]


def judge(document: Document, results: Sequence[str]) -> dict[str, float]:
    """`process_results` of the definitions: whether the answer is correct."""
    return {"acc": float(TASKS[document["task"]].is_correct(results[0], document["answer"]))}
