"""The eight commonsense tasks of the LLM-Adapters collection: questions and answer words."""

import re
from dataclasses import dataclass, field

from lonas_edge.data.test_sets import WordTestSet

_INSTRUCTION = re.compile(r".*?: (?P<body>.*?)\s*Answer format: (?P<words>\S+)\s*", re.DOTALL)


@dataclass(frozen=True)
class Question:
    """A question, and the text of each option by its answer word, in order."""

    text: str
    options: dict[str, str]


@dataclass(frozen=True)
class CommonsenseTestSet(WordTestSet):
    """A question with options, answered by a word."""

    # whether the instruction has a text for each option; BoolQ's options are its answer words
    spelled_out: bool = field(default=True, kw_only=True)

    def question(self, sample: dict[str, str]) -> Question:
        """Parse the question of a sample.

        Raises:
            ValueError: If the instruction has another form, or other options.
        """
        question = parse(sample["instruction"])
        unknown = [word for word in question.options if word not in self.words]
        if unknown:
            raise ValueError(f"answer format {unknown[0]!r} is not one of {', '.join(self.words)}")
        if self.spelled_out and all(text == word for word, text in question.options.items()):
            first = next(iter(question.options)).capitalize()
            raise ValueError(f"no option is spelled out; expected '{first}: TEXT …'")
        if sample["answer"] not in question.options:
            raise ValueError(f"answer {sample['answer']!r} is not among its options")
        return question


def parse(instruction: str) -> Question:
    """Parse `…: QUESTION`, the options `Answer1: TEXT Answer2: TEXT …`, and `Answer format: answer1/answer2/…`.

    Without spelled-out options (BoolQ) the answer words are the options.

    Raises:
        ValueError: If it has another form.
    """
    match = _INSTRUCTION.fullmatch(instruction)
    if not match:
        raise ValueError("the instruction does not end with 'Answer format: WORD/WORD/…'")
    words, body = match["words"].split("/"), match["body"]
    labels = [f"{word.capitalize()}:" for word in words]
    if labels[0] not in body:
        return Question(body.strip(), {word: word for word in words})
    starts, position = [], 0
    for label in labels:
        position = body.find(label, position)
        if position < 0:
            raise ValueError(f"the instruction has no option {label!r}, which its answer format names")
        starts.append(position)
        position += len(label)
    ends = [*starts[1:], len(body)]
    texts = [body[start + len(label) : end].strip() for start, end, label in zip(starts, ends, labels, strict=True)]
    if not all(texts):
        raise ValueError(f"option {labels[texts.index('')]!r} has no text")
    return Question(body[: starts[0]].strip(), dict(zip(words, texts, strict=True)))


def _numbered(word: str, count: int) -> tuple[str, ...]:
    return tuple(f"{word}{number}" for number in range(1, count + 1))


TASKS = {
    task.name: task
    for task in (
        # BoolQ's options are two words: their length has no meaning.
        CommonsenseTestSet("boolq", "BoolQ", "acc", words=("true", "false"), spelled_out=False),
        CommonsenseTestSet("piqa", "PIQA", words=_numbered("solution", 2)),
        CommonsenseTestSet("social_i_qa", "SIQA", words=_numbered("answer", 5)),
        CommonsenseTestSet("hellaswag", "HellaSwag", words=_numbered("ending", 4)),
        CommonsenseTestSet("winogrande", "WinoG", words=_numbered("option", 2)),
        CommonsenseTestSet("ARC-Easy", "ARC-e", words=_numbered("answer", 5)),
        CommonsenseTestSet("ARC-Challenge", "ARC-c", words=_numbered("answer", 5)),
        CommonsenseTestSet("openbookqa", "OBQA", words=_numbered("answer", 5)),
    )
}
