"""Evaluation protocols, one object each: what a sample becomes, and what counts as its accuracy. Nothing heavy is imported.

`generate` is the LoNAS reference's (run_commonsense.py, run_math.py): beam search, then the answer as the task reads it in the
response, the first answer word or the last number. The others ask commonsense tasks alone: `answer-word` ranks "the correct
answer is WORD" after the same prompt; `option-text` ranks " OPTION" after "Question: Q", a new line and "Answer:", as the
harness's own ARC tasks do. How the harness runs a protocol is in `harness_tasks/_NAME.yaml`.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lonas_edge.data import commonsense, glue, math_tasks
from lonas_edge.data.commonsense import CommonsenseTask
from lonas_edge.data.tasks import EXPECTED, Task
from lonas_edge.data.templates import PROMPTS, Example, Template
from lonas_edge.errors import raise_all

TASKS: Mapping[str, Task] = {**commonsense.TASKS, **math_tasks.TASKS}
Sample = dict[str, Any]
Document = dict[str, Any]  # what the harness's definitions ask of
Ask = Callable[[Any, Sample, Template], Document]  # the first is the task, of the protocol's own kind


@dataclass(frozen=True)
class Protocol:
    """How samples are asked.

    Attributes:
        name: What it is called on the command line, in records and in the harness's definitions.
        about: What the command line's help says of it.
        reported: What reports say of it; {beams} and {answers} are filled in.
        tasks: The tasks that it asks.
        metric: The metric that is a task's accuracy, unless the task says another.
        ask: Makes of a faultless sample what the harness asks. ValueError says why it cannot.
        prompt: The prompt as reports show it, where the protocol has its own; None where a template makes it.
        num_beams: Beams by default; None where choices are ranked.
    """

    name: str
    about: str
    reported: str
    tasks: Mapping[str, Task]
    metric: str
    ask: Ask
    prompt: str | None = None
    num_beams: int | None = None

    @property
    def generates(self) -> bool:
        """Whether it generates; otherwise it ranks choices."""
        return self.num_beams is not None

    def metric_of(self, task: str) -> str:
        """The metric that is a task's accuracy."""
        return self.tasks[task].metric or self.metric

    def describe(self, num_beams: int | None, tasks: Iterable[str]) -> str:
        """The protocol in one line.

        Args:
            num_beams: Beams; None where choices are ranked.
            tasks: Of `tasks`, those that were asked.

        Returns:
            Its name and how it asks; where answers are read in several ways, each with its tasks.
        """
        beams = "greedy" if num_beams == 1 else f"{num_beams} beams"
        read: dict[str, list[str]] = {}
        for task in map(self.tasks.__getitem__, tasks):
            read.setdefault(f"{task.new_tokens} new tokens, {task.reads}", []).append(task.heading)
        told = "; ".join(f"{how} ({', '.join(those)})" if len(read) > 1 else how for how, those in read.items())
        return f"{self.name}: {self.reported.format(beams=beams, answers=told)}"

    def read(self, datasets: Path, task: str) -> list[Sample]:
        """Read a task's test set, and check every sample before any is asked.

        Args:
            datasets: The directory with a folder for each task.
            task: One of `tasks`.

        Returns:
            The samples.

        Raises:
            LonasEdgeError: If the file is missing, empty or not of the format; every faulty sample is listed with its index.
        """
        known = self.tasks[task]
        items = known.items(datasets)
        faults = [f"sample {index}: {fault}" for index, item in enumerate(items) if (fault := self._fault(known, item))]
        raise_all(f"{known.path(datasets)}: not a test set of {task} for the protocol {self.name}:", faults, EXPECTED)
        return items

    def _fault(self, task: Task, item: Any) -> str | None:
        """What is wrong with a sample; one that cannot be asked, with whatever template, is no good."""
        fault = task.fault(item)
        if fault:
            return fault
        try:
            self.ask(task, item, next(iter(PROMPTS.values())).asking(task.collection))
        except ValueError as error:
            return str(error)
        return None

    def documents(self, samples: Sequence[Sample], task: str, prompt: str | Template) -> list[Document]:
        """What the harness asks: for each sample the text in front, the choices to rank, and the right one.

        Args:
            samples: Checked samples.
            task: One of `tasks`.
            prompt: The prompt, or its name; a protocol with a prompt of its own does not look at it.

        Returns:
            `task`, `prompt` and `answer`; where choices are ranked also `words` (those that the sample may be answered with),
            `choices` (texts to rank, in the order of the words), and `label`, the index of the right one.
        """
        known = self.tasks[task]
        template = prompt if isinstance(prompt, Template) else PROMPTS[prompt].asking(known.collection)
        return [{"task": task, **self.ask(known, sample, template)} for sample in samples]

    def longest_answer(self, document: Mapping[str, Any], length: Callable[[str], int]) -> int:
        """Length of the longest choice, by a measure of texts; of what is generated, the tokens."""
        if self.generates:
            return self.tasks[document["task"]].new_tokens
        return max(length(f" {choice}") for choice in document["choices"])


def _generate(_task: Task, sample: Sample, template: Template) -> Document:
    return {"prompt": template.prompt(_example(sample)), "answer": str(sample["answer"])}


def _answer_word(task: CommonsenseTask, sample: Sample, template: Template) -> Document:
    words = tuple(task.question(sample).options)
    choices = [template.response.format(output=f"the correct answer is {word}") for word in words]
    return _document(template.prompt(_example(sample)), sample["answer"], words, choices)


def _option_text(task: CommonsenseTask, sample: Sample, _template: Template) -> Document:
    question = task.question(sample)
    prompt = f"Question: {question.text}\nAnswer:"
    return _document(prompt, sample["answer"], tuple(question.options), tuple(question.options.values()))


def _example(sample: Sample) -> Example:
    return Example(sample["instruction"], sample.get("input") or "", "")


def _document(prompt: str, answer: str, words: Sequence[str], choices: Sequence[str]) -> Document:
    label = words.index(answer)
    return {"prompt": prompt, "answer": answer, "words": list(words), "choices": list(choices), "label": label}


DEFAULT = "generate"
PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        Protocol(
            "generate",
            about="the reference's, generates and takes the first answer word, of math the last number",
            reported="{beams}, {answers}",
            tasks=TASKS,
            metric="acc",
            ask=_generate,
            num_beams=4,
        ),
        Protocol(
            "answer-word",
            about="ranks 'the correct answer is WORD'",
            reported='ranks "the correct answer is WORD"',
            tasks=commonsense.TASKS,
            metric="acc",
            ask=_answer_word,
        ),
        Protocol(
            "option-text",
            about="ranks the options' texts, the sensitive one for small models",
            reported='ranks " OPTION" after the question, length-normalized (BoolQ: plain)',
            tasks=commonsense.TASKS,
            metric="acc_norm",
            ask=_option_text,
            prompt="Question: …, Answer:",
        ),
    )
}


@dataclass(frozen=True)
class Classifying:
    """How classifiers are asked: a text or a pair of texts, without a prompt, each of GLUE's tasks as GLUE judges it.

    Attributes:
        name: What it is called in records.
        prompt: There is none.
        tasks: The development sets by the names that reports have.
    """

    name: str
    prompt: None
    tasks: Mapping[str, "Headed"]

    def describe(self, num_beams: int | None, tasks: Iterable[str]) -> str:
        """It in one line; see `Protocol`."""
        told = {"acc": "accuracy", "f1": "F1", "matthews": "Matthews correlation", "pearson": "Pearson", "spearman": "Spearman"}
        judged = [f"{name}: {', '.join(told[metric] for metric in self.tasks[name].metrics)}" for name in tasks]
        return f"{self.name}: GLUE's development sets; {'; '.join(judged)}"


@dataclass(frozen=True)
class Headed:
    """A development set in a report: its heading and its metrics."""

    heading: str
    metrics: tuple[str, ...]


CLASSIFY = Classifying(
    "classify",
    None,
    {
        f"{task.name}-mm" if number else task.name: Headed(f"{task.name}-mm" if number else task.name, task.metrics)
        for task in glue.TASKS.values()
        for number, _ in enumerate(task.splits)
    },
)
REPORTED: Mapping[str, Protocol | Classifying] = {**PROTOCOLS, CLASSIFY.name: CLASSIFY}
