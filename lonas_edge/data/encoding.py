"""Examples as token batches, with the positions whose logits are needed."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from lonas_edge.data.conversations import Conversation, encode_conversation
from lonas_edge.data.templates import Example, Template
from lonas_edge.data.texts import Texts
from lonas_edge.errors import LonasEdgeError, raise_all

Learned = Example | Conversation | Texts  # a text is learned as a whole
_PAIR_ROLES = ("query", "document")
IGNORED = -100  # a label that is not learned


@dataclass(frozen=True)
class Prompting:
    """The template of instructions, and the chat template (Jinja) of conversations."""

    template: Template
    chat: str | None = None


def encode(examples: Sequence[Learned], prompting: Prompting, tokenizer: Any, max_length: int) -> list[dict[str, list[int]]]:
    """Tokenize examples.

    Args:
        examples: The examples.
        prompting: The templates.
        tokenizer: The model's.
        max_length: Tokens of the longest example.

    Returns:
        `input_ids` and `labels`, each [tokens], for every example with an output that has something to learn within
        `max_length`. Texts are learned whole, in pieces of that length.

    Raises:
        LonasEdgeError: If conversations do not fit the chat template; all are listed.
    """
    encoded: list[dict[str, list[int]]] = []
    errors: list[str] = []
    for example in examples:
        if isinstance(example, Texts):
            encoded += _pieces(example.texts[0], tokenizer, max_length)
            continue
        if isinstance(example, Example):
            ids, learned = _instruction(example, prompting.template, tokenizer, max_length)
        else:
            try:
                ids, learned = encode_conversation(example, prompting.chat or "", tokenizer)
            except LonasEdgeError as error:
                errors.append(str(error))
                continue
        if any(learned[1:]) and len(ids) <= max_length:
            labels = [token if learn else IGNORED for token, learn in zip(ids, learned, strict=True)]
            encoded.append({"input_ids": ids, "labels": labels})
    raise_all("The conversations cannot be learned from:", errors)
    return encoded


def encode_prompt(example: Learned, prompting: Prompting, tokenizer: Any, max_length: int) -> list[int]:
    """Tokenize an example without its answer, cut: a prompt, a conversation without its last answer, or a text."""
    text, special = prompt_of(example, prompting, tokenizer), not isinstance(example, Conversation)
    ids: list[int] = tokenizer(text, truncation=True, max_length=max_length, add_special_tokens=special)["input_ids"]
    return ids


def prompt_of(example: Learned, prompting: Prompting, tokenizer: Any) -> str:
    """The text of an example before its last answer. A conversation's has its special tokens."""
    if isinstance(example, Example):
        return prompting.template.prompt(example)
    if isinstance(example, Texts):
        return example.texts[0]
    return example.render(tokenizer, prompting.chat or "", example.last_answer, with_prompt=True)


def _instruction(example: Example, template: Template, tokenizer: Any, max_length: int) -> tuple[list[int], list[bool]]:
    """Tokenize an instruction; return the ids, and whether each token is learned."""
    tokenize = _whole if template.whole_text else _apart
    ids, prompt = tokenize(template.prompt(example), template.answer(example), tokenizer, max_length)
    return ids, [bool(example.output) and (template.train_on_prompt or position >= prompt) for position in range(len(ids))]


def _pieces(text: str, tokenizer: Any, max_length: int) -> list[dict[str, list[int]]]:
    ids = tokenizer(text)["input_ids"]
    ids = ids if ids[-1:] == [tokenizer.eos_token_id] else [*ids, tokenizer.eos_token_id]
    pieces = [ids[start : start + max_length] for start in range(0, len(ids), max_length)]
    return [{"input_ids": piece, "labels": list(piece)} for piece in pieces if len(piece) > 1]


def _apart(prompt: str, response: str, tokenizer: Any, max_length: int) -> tuple[list[int], int]:
    first = tokenizer(prompt)["input_ids"]
    if first and first[-1] == tokenizer.eos_token_id and len(first) > 1:
        first = first[:-1]  # some tokenizers add EOS to every text
    whole = tokenizer(prompt + response, add_special_tokens=True)["input_ids"]
    whole = whole[:-1] if whole[-1:] == [tokenizer.eos_token_id] else whole
    if whole[: len(first)] != first:  # a token would span the boundary: the prompt ends as it does at inference
        whole = first + tokenizer(response, add_special_tokens=False)["input_ids"]
    ids = [*whole, tokenizer.eos_token_id]
    return (ids, len(first)) if len(ids) <= max_length else ([], 0)


def _whole(prompt: str, response: str, tokenizer: Any, max_length: int) -> tuple[list[int], int]:
    ids = tokenizer(prompt + response, truncation=True, max_length=max_length)["input_ids"]
    if len(ids) < max_length and ids[-1:] != [tokenizer.eos_token_id]:
        ids = [*ids, tokenizer.eos_token_id]
    return ids, len(tokenizer(prompt, truncation=True, max_length=max_length)["input_ids"])


def encode_pairs(pairs: Sequence[Sequence[str]], tokenizer: Any, max_length: int | None) -> list[dict[str, list[int]]]:
    """Tokenize texts, or pairs, of which the longer text is cut at `max_length`; return `input_ids` and `token_type_ids`.

    Pairs are rendered by a chat template with the roles query and document, as rerankers have it; then the document is cut.
    """
    if not pairs:
        return []
    if len(pairs[0]) > 1 and renders_pairs(tokenizer):
        rows = [_render_pair(pair, tokenizer, max_length) for pair in pairs]
        return [{"input_ids": row, "token_type_ids": [0] * len(row)} for row in rows]
    cut = {"truncation": "longest_first", "max_length": max_length} if max_length else {"truncation": False}
    columns = [list(column) for column in zip(*pairs, strict=True)]
    encoded = tokenizer(*columns, return_token_type_ids=True, return_attention_mask=False, verbose=False, **cut)
    return [
        {"input_ids": ids, "token_type_ids": kinds}
        for ids, kinds in zip(encoded["input_ids"], encoded["token_type_ids"], strict=True)
    ]


def renders_pairs(tokenizer: Any) -> bool:
    """Whether a tokenizer's chat template names the roles that sentence-transformers 6 gives to a reranker's texts."""
    template = getattr(tokenizer, "chat_template", None)
    return isinstance(template, str) and all(re.search(rf"['\"]{role}['\"]", template) for role in _PAIR_ROLES)


def _render_pair(pair: Sequence[str], tokenizer: Any, max_length: int | None) -> list[int]:
    """Token ids of a rendered pair; what the template writes after the document stays when it is cut.

    The ending is what two short pairs have in common, as in sentence-transformers 6.
    """

    def render(*texts: str) -> list[int]:
        messages = [{"role": role, "content": text} for role, text in zip(_PAIR_ROLES, texts, strict=True)]
        rendered = tokenizer.apply_chat_template(messages, tokenize=False)
        ids: list[int] = tokenizer(rendered, add_special_tokens=False)["input_ids"]
        return ids

    ids = render(*pair)
    if max_length is None or len(ids) <= max_length:
        return ids
    first, second = render("0", "0"), render("1 2 3 4", "1 2 3 4")
    equal = [left == right for left, right in zip(reversed(first), reversed(second), strict=False)]
    count = equal.index(False) if False in equal else 0
    return [*ids[: max(0, max_length - count)], *first[len(first) - count :]][-max_length:]


def check_padding(tokenizer: Any, padding: int | None) -> None:
    """Refuse a tokenizer that pads with another token than `padding`, by which a model finds the end of a text; None: any."""
    if padding not in (None, tokenizer.pad_token_id):
        raise LonasEdgeError(
            f"{tokenizer.name_or_path}: pads with token {tokenizer.pad_token_id}, but pad_token_id in config.json is "
            f"{padding}: a classifier reads the last token before the padding. Make them equal."
        )


def pad(rows: Sequence[Sequence[int]], value: int) -> torch.Tensor:
    """Stack rows of unequal lengths [rows, longest], padded on the right."""
    length = max(map(len, rows))
    return torch.tensor([[*row, *[value] * (length - len(row))] for row in rows])


def collate_tokens(examples: Sequence[dict[str, list[int]]], pad_token_id: int) -> dict[str, torch.Tensor]:
    """Make a batch with the positions that predict learned tokens: other logits are not computed.

    Args:
        examples: `input_ids` and `labels` of each, [tokens].
        pad_token_id: Token of the padding.

    Returns:
        `input_ids` and `attention_mask` [examples, tokens]; `logits_to_keep` [positions], the positions kept; `labels`
        [examples, positions], the token that follows each, or -100.
    """
    ids = [example["input_ids"] for example in examples]
    following = pad([example["labels"] for example in examples], IGNORED)[:, 1:]
    kept = (following != IGNORED).any(0).nonzero().flatten()
    return {
        "input_ids": pad(ids, pad_token_id),
        "attention_mask": pad([[1] * len(row) for row in ids], 0),
        "logits_to_keep": kept,
        "labels": following[:, kept].contiguous(),
    }


def collate_pairs(examples: Sequence[dict[str, Any]], pad_token_id: int, regression: bool = False) -> dict[str, torch.Tensor]:
    """Make a batch of texts or pairs.

    Args:
        examples: `input_ids` and `token_type_ids` of each, [tokens], and `labels`, a class number or a value.
        pad_token_id: Token of the padding.
        regression: Whether labels are values.

    Returns:
        `input_ids`, `token_type_ids` and `attention_mask` [examples, tokens]; `labels` [examples].
    """
    ids, labels = [example["input_ids"] for example in examples], [example["labels"] for example in examples]
    return {
        "input_ids": pad(ids, pad_token_id),
        "token_type_ids": pad([example["token_type_ids"] for example in examples], 0),
        "attention_mask": pad([[1] * len(row) for row in ids], 0),
        "labels": torch.tensor(labels, dtype=torch.float32 if regression else torch.long),
    }
