"""Data of language models: instructions, conversations and plain texts. The next token is learned."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch.nn import functional as F

from lonas_edge.data.conversations import Conversation, as_messages, chat_as_template, chat_template_of, check_conversation
from lonas_edge.data.encoding import IGNORED, Learned, Prompting, collate_tokens, encode, encode_prompt
from lonas_edge.data.pooling import Pooling
from lonas_edge.data.task import MAX_LENGTH, Batch, DataOptions, Encoded, Task, widen
from lonas_edge.data.templates import CHAT, PROMPTS, TEMPLATES, Example, PromptRecord, choose_prompt
from lonas_edge.data.texts import TEXT, Texts, describe, read_records
from lonas_edge.errors import LonasEdgeError, raise_all
from lonas_edge.families import CAUSAL_LM, ModelKind
from lonas_edge.space.architecture import Architecture

INSTRUCTION, MESSAGES = "instruction", "messages"  # kinds of records, besides texts
_FIELDS = {  # one of them tells the kind
    INSTRUCTION: ("instruction", "output"),
    MESSAGES: ("messages", "conversations", "completion"),
    TEXT: ("text",),
}
_EXPECTED = {
    INSTRUCTION: '{"instruction": "…", "input": "", "output": "…"}',
    MESSAGES: '{"messages": [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}]}',
    TEXT: '{"text": "…"}',
}
_COMPLETION = '{"prompt": "…", "completion": "…"}'  # also read as messages


def read_examples(path: Path) -> tuple[str, list[Learned]]:
    """Read the examples of a file, and the kind of its records: that of the first one."""
    records = read_records(path)
    place, first = records[0]
    kinds = [kind for kind, names in _FIELDS.items() if isinstance(first, dict) and any(name in first for name in names)]
    if not kinds:
        raise LonasEdgeError(
            f"{path}: data of no known kind:\n  - {place}: found {describe(first)}\nExpected one of these in each line, or a "
            "JSON list of them:\n" + "\n".join(f"  {expected}" for expected in (*_EXPECTED.values(), _COMPLETION))
        )
    kind, examples, errors = kinds[0], list[Learned](), list[str]()
    for place, record in records:
        try:
            examples.append(_example(kind, record, f"{path}, {place}"))
        except ValueError as error:
            errors.append(f"{place}: {error}")
    raise_all(f"{path}: not {kind} data:", errors, f"Expected a JSON list of {_EXPECTED[kind]}, or one such object a line.")
    if kind == INSTRUCTION and not any(isinstance(example, Example) and example.output for example in examples):
        raise LonasEdgeError(f"{path}: 'output' is empty in each of its {len(examples)} examples; expected the answers")
    return kind, examples


def _example(kind: str, record: Any, place: str) -> Learned:
    """Check a record and make an example of it; `place` is for later errors."""
    if not isinstance(record, dict):
        raise ValueError(f"expected an object, found {type(record).__name__}")
    if kind == MESSAGES:
        record = as_messages(record)
        check_conversation(record)
        return Conversation.of(record, place)
    for name in _FIELDS[kind]:
        if not isinstance(record.get(name), str) or not (record[name] or name == "output"):
            raise ValueError(f"no text in {name!r}")
    if kind == TEXT:
        return Texts((record[TEXT],))
    if not isinstance(record.get("input"), str | None):
        raise ValueError("'input' is not text")
    return Example(record["instruction"], record.get("input") or "", record["output"])


def prompting_of(name: str, record: PromptRecord, tokenizer: Any) -> Prompting:
    """The template of a name; that of the adapter's training wins where it has this name."""
    same = record.template if record.template and record.template.name == name else None
    if name != CHAT:
        return Prompting(same or {**PROMPTS, **TEMPLATES}[name])
    folder = Path(tokenizer.name_or_path)
    chat = record.chat or chat_template_of(tokenizer, folder)
    return Prompting(same or chat_as_template(chat, tokenizer, folder), chat)


def question_and_reference(example: Learned) -> tuple[str, str]:
    """The prompt of an example as text, and its last answer; a text has none."""
    if isinstance(example, Texts):
        return example.texts[0], ""
    if isinstance(example, Example):
        return "\n\n".join(filter(None, (example.instruction, example.input))), example.output
    before = example.messages[: example.last_answer]
    return "\n\n".join(f"{role}: {content}" for role, content in before), example.reference


@dataclass(frozen=True)
class LanguageTask(Task):
    """Predict the next token at each learned position: cross-entropy, and KL from another network."""

    kind: ClassVar[ModelKind] = CAUSAL_LM
    special_token: ClassVar[str] = "EOS"

    @classmethod
    def of(cls, architecture: Architecture, pooling: Pooling | None, options: DataOptions) -> Self:
        return cls(options.max_length or MAX_LENGTH, options)

    def _read(self, path: Path) -> tuple[str, Sequence[Any]]:
        return read_examples(path)

    def read(self, files: Sequence[tuple[Path, float]]) -> Self:
        return super().read(files).with_prompt(self.options.prompt)

    def with_prompt(self, prompt: str | None) -> Self:
        task = replace(self, options=replace(self.options, prompt=prompt))
        task.description  # noqa: B018 - refuses a template that does not fit
        return task

    def prompting(self, tokenizer: Any) -> Prompting:
        return prompting_of(self.description, self.options.record, tokenizer)

    @property
    def description(self) -> str:
        record, conversations = self.options.record, next((file.path for file in self.files if file.kind == MESSAGES), None)
        recorded = record.template.name if record.template else None
        return choose_prompt(self.options.prompt, recorded, record.space, conversations)

    def _encode(self, inputs: Sequence[Any], tokenizer: Any, max_length: int) -> list[Encoded]:
        return encode(inputs, self.prompting(tokenizer), tokenizer, max_length)

    def learned_tokens(self, tokenizer: Any) -> list[tuple[int, int]]:
        """The number of learned tokens of each input of `lengths`, and of tokens from the first to the last of them."""
        encoded = self._encode(self.inputs, tokenizer, self.context)
        places = [[place for place, label in enumerate(each["labels"]) if label != IGNORED] for each in encoded]
        return [(len(each), each[-1] - each[0] + 1 if each else 0) for each in places]

    def collate(self, encoded: Sequence[Encoded], pad_token_id: int) -> dict[str, torch.Tensor]:
        return collate_tokens(encoded, pad_token_id)

    def shorten(self, example: Encoded, tokens: int) -> Encoded:
        ids = example["input_ids"][:tokens]
        return {"input_ids": ids, "labels": ids}

    def prompts(self, indices: Sequence[int], tokenizer: Any, max_length: int) -> Iterator[Batch]:
        prompting = self.prompting(tokenizer)
        for index in indices:
            ids = torch.tensor([encode_prompt(self.examples[index], prompting, tokenizer, max_length)])
            yield {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    def select(self, hidden: torch.Tensor, batch: Batch) -> torch.Tensor:
        return hidden[:, batch["logits_to_keep"]][batch["labels"] != IGNORED]

    def logits(self, output: Any, batch: Batch) -> torch.Tensor:
        logits: torch.Tensor = output.logits
        return logits.flatten(0, 1)[batch["labels"].flatten() != IGNORED]

    def labels(self, labels: torch.Tensor) -> torch.Tensor:
        return labels[labels != IGNORED]

    def loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(logits.float(), labels, reduction="sum")

    def distance(self, reference: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        return kl_divergence(reference, logits)

    def sample(self, logits: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        return sample_classes(logits, generator)

    @staticmethod
    def score(logits: np.ndarray, labels: Sequence[int]) -> tuple[float, int, int]:
        """Loss in nats, correct and learned tokens of logits [tokens, vocabulary] and labels [tokens, or one more]."""
        following = torch.tensor(labels[1:], dtype=torch.long)
        learned = following != IGNORED
        chosen, targets = torch.from_numpy(logits[: len(following)])[learned].double(), following[learned]
        return F.cross_entropy(chosen, targets, reduction="sum").item(), int((chosen.argmax(-1) == targets).sum()), len(targets)


def kl_divergence(reference: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """KL(reference || logits) of distributions over tokens or classes [positions, classes], summed over positions, in nats."""
    p, q = widen(reference).log_softmax(-1), widen(logits).log_softmax(-1)
    return F.kl_div(q, p, reduction="sum", log_target=True)


def sample_classes(logits: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Draw tokens or classes [positions] from the distributions that logits [positions, classes] give."""
    return torch.multinomial(logits.float().softmax(-1).cpu(), 1, generator=generator)[:, 0].to(logits.device)
