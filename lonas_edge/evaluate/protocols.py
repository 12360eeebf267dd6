"""Evaluation protocols, one object each, and their registry. Imports nothing heavy.

A protocol of language models has the prompt of a sample, and the metric that is its accuracy.

`generate` is the LoNAS reference's (run_commonsense.py, run_math.py): beam search, then the answer as the task reads it in the
response, the first answer word or the last number. The others are for commonsense tasks only: `answer-word` ranks "the correct
answer is WORD" after the same prompt; `option-text` ranks " OPTION" after "Question: Q", a new line and "Answer:", as the
harness's own ARC tasks do. `harness_tasks/_NAME.yaml` tells lm-evaluation-harness how to run a protocol; it calls the
functions at the end of this module, stock `lm_eval` does so, too.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lonas_edge.data.templates import PROMPTS, REFERENCE, Example, Template, evaluation_template
from lonas_edge.data.test_sets import COMMONSENSE, EXPECTED, MATH, TASKS, CommonsenseTestSet, TestSet
from lonas_edge.errors import LonasEdgeError, raise_all

HARNESS_TASKS = Path(__file__).parent / "harness_tasks"  # for `lm_eval --include_path`, too
SIMILARITY = "STS-B"  # GLUE's task that embedding models have, too
Sample = dict[str, Any]
Document = dict[str, Any]  # a question for the harness's definitions
Ask = Callable[[Any, Sample, Template], Document]  # the first is the task, of the protocol's own kind


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """A way to evaluate models: encoders, whose texts have no prompt template, or answers to the prompts of a data file."""

    name: str  # on the command line, in records and in the harness's definitions
    reported: str  # a phrase for reports; of prompts with {answers}, how they are read

    def describe(self, tasks: Mapping[str, Iterable[str]]) -> str:
        """Describe the protocol in one line; `tasks` has the metrics of each evaluated task."""
        judged = []
        for task, metrics in tasks.items():
            names = ", ".join(_TITLES.get(metric, metric) for metric in metrics)
            judged.append(task if names == task else f"{task}: {names}")  # a metric of answers is a task of its own
        return f"{self.name}: {self.reported}; {'; '.join(judged)}"


@dataclass(frozen=True, kw_only=True)
class PromptProtocol(Protocol):
    """How a sample becomes a prompt of a language model, and how answers are judged."""

    tasks: Mapping[str, TestSet]
    metric: str  # a task's accuracy, unless the task has another
    ask: Ask  # makes a document of a valid sample, or raises ValueError with the reason
    prompt: str | None = None  # its own prompt, as reports show it; None where a template makes the prompt
    generates: bool = False  # whether it generates; otherwise it ranks choices

    def describe(self, tasks: Mapping[str, Iterable[str]]) -> str:
        read: dict[str, list[str]] = {}
        for task in map(self.tasks.__getitem__, tasks):
            read.setdefault(f"{task.new_tokens} new tokens, {task.reads}", []).append(task.heading)
        answers = "; ".join(f"{way} ({', '.join(those)})" if len(read) > 1 else way for way, those in read.items())
        return f"{self.name}: {self.reported.format(answers=answers)}"

    def read(self, datasets: Path, task: str) -> list[Sample]:
        """Read a task's test set from a directory with a folder for each task, and check every sample."""
        known, errors = self.tasks[task], []
        items = known.items(datasets)
        for index, item in enumerate(items):
            error = known.error_in(item)
            try:
                if error is None:
                    self.ask(known, item, next(iter(PROMPTS.values())))  # whatever the template
            except ValueError as reason:
                error = str(reason)
            errors += [f"sample {index}: {error}"] if error else []
        raise_all(f"{known.path(datasets)}: not a test set of {task} for the protocol {self.name}:", errors, EXPECTED)
        return items

    def documents(self, samples: Sequence[Sample], task: str, prompt: str | Template) -> list[Document]:
        """Make documents for the harness of checked samples; a protocol with a prompt of its own ignores `prompt`.

        Each has `task`, `prompt` and `answer`. Where choices are ranked it has `words` (possible answers), `choices` (texts
        to rank, in the order of the words), and `label`, the index of the correct one.
        """
        known = self.tasks[task]
        template = prompt if isinstance(prompt, Template) else evaluation_template(prompt, known.collection)
        return [{"task": task, **self.ask(known, sample, template)} for sample in samples]

    def length(self, document: Document, tokenizer: Any) -> int:
        """Count the tokens of a prompt with its longest answer."""
        choices = [] if self.generates else [f" {choice}" for choice in document["choices"]]
        prompt, *answers = tokenizer([document["prompt"], *choices])["input_ids"]
        longest = self.tasks[document["task"]].new_tokens if self.generates else max(map(len, answers))
        return len(prompt) + longest


def _generate(_task: TestSet, sample: Sample, template: Template) -> Document:
    return {"prompt": template.prompt(_example(sample)), "answer": str(sample["answer"])}


def _answer_word(task: CommonsenseTestSet, sample: Sample, template: Template) -> Document:
    words = tuple(task.question(sample).options)
    choices = [template.response.format(output=f"the correct answer is {word}") for word in words]
    return _document(template.prompt(_example(sample)), sample["answer"], words, choices)


def _option_text(task: CommonsenseTestSet, sample: Sample, _template: Template) -> Document:
    question = task.question(sample)
    prompt = f"Question: {question.text}\nAnswer:"
    return _document(prompt, sample["answer"], tuple(question.options), tuple(question.options.values()))


def _example(sample: Sample) -> Example:
    return Example(sample["instruction"], sample.get("input") or "", "")


def _document(prompt: str, answer: str, words: Sequence[str], choices: Sequence[str]) -> Document:
    label = words.index(answer)
    return {"prompt": prompt, "answer": answer, "words": list(words), "choices": list(choices), "label": label}


_TITLES = {
    "acc": "accuracy",
    "f1": "F1",
    "matthews": "Matthews correlation",
    "pearson": "Pearson",
    "spearman": "Spearman",
}

GENERATE = PromptProtocol(
    name="generate",
    reported="4 beams, {answers}",
    tasks=TASKS,
    metric="acc",
    ask=_generate,
    generates=True,
)
ANSWER_WORD = PromptProtocol(
    name="answer-word",
    reported='ranks "the correct answer is WORD"',
    tasks=COMMONSENSE,
    metric="acc",
    ask=_answer_word,
)
OPTION_TEXT = PromptProtocol(
    name="option-text",
    reported='ranks " OPTION" after the question, length-normalized (BoolQ: plain)',
    tasks=COMMONSENSE,
    metric="acc_norm",
    ask=_option_text,
    prompt="Question: …, Answer:",
)
CLASSIFY = Protocol(name="classify", reported="classes and scores")
EMBED = Protocol(name="embed", reported="cosines of embeddings")
ANSWERS = Protocol(name="answers", reported="greedy answers to the prompts of a data file")
PROMPT_PROTOCOLS = {protocol.name: protocol for protocol in (GENERATE, ANSWER_WORD, OPTION_TEXT)}
PROTOCOLS: Mapping[str, Protocol] = {**PROMPT_PROTOCOLS, **{each.name: each for each in (CLASSIFY, EMBED, ANSWERS)}}


def choose_protocol(explicit: str | None, prompts: Iterable[str], tasks: Iterable[str]) -> PromptProtocol:
    """Choose the protocol: `option-text`, but `generate` for models trained with the reference's prompt, and for math."""
    if explicit:
        return PROMPT_PROTOCOLS[explicit]
    return GENERATE if set(tasks) <= {*MATH} or REFERENCE in prompts else OPTION_TEXT


def load_documents(
    datasets: str = "",
    task: str = "",
    protocol: str = "",
    prompt: str = "alpaca",
    template: Mapping[str, Any] | None = None,
    **_: Any,
) -> dict[str, Any]:
    """Load the split `test`: `custom_dataset` of the definitions, called with `dataset_kwargs` and the harness's `--metadata`.

    Its documents have finished prompts and choices, so that no text of a sample is read as a template.
    `template` has the fields of a `Template`, instead of the name `prompt`.
    """
    from datasets import Dataset

    if not datasets:
        raise LonasEdgeError('no test sets: lm_eval takes their directory as --metadata \'{"datasets": "DIR"}\'')
    known, chosen = PROMPT_PROTOCOLS[protocol], Template(**template) if template else prompt
    return {"test": Dataset.from_list(known.documents(known.read(Path(datasets), task), task, chosen))}


def read_answers(responses: Sequence[Sequence[str]], documents: Sequence[Document]) -> list[str]:
    """`filter_fn` of the definitions: the answer in each response, as its task reads it."""
    return [TASKS[document["task"]].answer_in(texts[0]) for texts, document in zip(responses, documents, strict=True)]


def judge_answer(document: Document, results: Sequence[str]) -> dict[str, float]:
    """`process_results` of the definitions: whether the answer is correct."""
    return {"acc": float(TASKS[document["task"]].is_correct(results[0], document["answer"]))}
