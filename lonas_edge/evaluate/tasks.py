"""The eight commonsense tasks: their files, and what a sample becomes under each protocol.

A task is `<task>/test.json`, a list of {instruction, input, output, answer} as in the LLM-Adapters collection (Hu et al. 2023,
AGI-Edgerunners/LLM-Adapters). The definitions in `harness_tasks/` are lm-evaluation-harness's; they take their documents from
`load` here, with the prompt and the choices of the protocol ready made, so that nothing in a sample is read as a template.

Protocols: `generate` is the LoNAS reference's (run_commonsense.py): beam search, then the first answer word in the response.
`answer-word` ranks "the correct answer is WORD" after the same prompt. `option-text` ranks " OPTION" after "Question: Q", a new
line and "Answer:", as the harness's own ARC tasks do.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lonas_edge.data.commonsense import TASKS, first_answer_word, parse, read_samples
from lonas_edge.data.templates import EVALUATION_TEMPLATES, Example
from lonas_edge.errors import LonasEdgeError

PROTOCOLS = ("generate", "answer-word", "option-text")
METRIC = {"generate": "acc", "answer-word": "acc", "option-text": "acc_norm"}  # what the card's table shows


def documents(samples: Sequence[dict[str, str]], task: str, protocol: str, prompt: str) -> list[dict[str, Any]]:
    """What the harness asks: for each sample the text in front, the choices to rank, and the right one.

    Args:
        samples: Checked samples.
        task: One of `TASKS`.
        protocol: One of `PROTOCOLS`.
        prompt: Name of the prompt template; `option-text` has its own.

    Returns:
        `prompt`, `answer`, `words` (those that the sample may be answered with), `choices` (texts to rank, in the order of the
        words), and `label`, the index of the right one.
    """
    template = EVALUATION_TEMPLATES[prompt]
    found = []
    for sample in samples:
        example = Example(sample["instruction"], sample.get("input") or "", "")
        words, choices = list(TASKS[task]), list(TASKS[task])
        text = template.prompt(example)
        if protocol != "generate":
            question = parse(sample["instruction"])
            words = list(question.options)
            choices = [template.response.format(output=f"the correct answer is {word}") for word in words]
            if protocol == "option-text":
                text, choices = f"Question: {question.text}\nAnswer:", list(question.options.values())
        label = words.index(sample["answer"])
        found.append({"prompt": text, "answer": sample["answer"], "words": words, "choices": choices, "label": label})
    return found


def load(datasets: str = "", task: str = "", protocol: str = "", prompt: str = "alpaca", **_: Any) -> dict[str, Any]:
    """`custom_dataset` of the harness's definitions; called with a task's `dataset_kwargs` and the harness's `--metadata`.

    Args:
        datasets: The directory with a folder for each task.
        task: One of `TASKS`.
        protocol: One of `PROTOCOLS`.
        prompt: Name of the prompt template.

    Returns:
        The split `test`, a `datasets.Dataset`.

    Raises:
        LonasEdgeError: If the data is not there or not of the format.
    """
    from datasets import Dataset

    if not datasets:
        raise LonasEdgeError('where is the data? The harness takes it as --metadata \'{"datasets": "DIR"}\'')
    samples = read_samples(Path(datasets), task, protocol)
    return {"test": Dataset.from_list(documents(samples, task, protocol, prompt))}


def first_answer_words(responses: Sequence[Sequence[str]], documents: Sequence[dict[str, Any]]) -> list[str]:
    """`filter_fn` of the harness's definitions: the answer word of each response."""
    return [first_answer_word(answers[0], document["words"]) for answers, document in zip(responses, documents, strict=True)]


def judge(document: dict[str, Any], results: Sequence[str]) -> dict[str, float]:
    """`process_results` of the harness's definitions: whether the answer word is the right one."""
    return {"acc": float(results[0] == document["answer"])}
