"""Texts and token ids to compare networks on."""

from collections.abc import Callable, Mapping
from typing import Any

import torch

from lonas_edge.families import CAUSAL_LM, CLASSIFICATION, EMBEDDING, ModelKind, tokens_of

TEXTS = (
    "The sun is the star at the center of the Solar System. It is a massive, nearly perfect sphere of hot plasma.",
    "Question: Which of these is a renewable resource?\nAnswer: Wind, because it is not used up when it turns a turbine.",
    "def mean(values):\n    total = sum(values)\n    return total / len(values)\n\nprint(mean([1, 2, 3, 4, 5, 6]))",
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.",
)
PROMPT_TOKENS, FEWEST_TOKENS = 16, 4  # with fewer, rotary tables and attention are not tested


def prompts(tokenizer: Any, vocab_size: int) -> torch.Tensor:
    """Make token ids of prompts of one length, [prompts, tokens]; random ones without a usable tokenizer."""
    if tokenizer is not None:
        encoded = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in TEXTS]
        length = min(PROMPT_TOKENS, *map(len, encoded))
        ids = torch.tensor([row[:length] for row in encoded])
        if length >= FEWEST_TOKENS and int(ids.max()) < vocab_size and len(set(ids.flatten().tolist())) > len(TEXTS):
            return ids
    return torch.randint(0, vocab_size, (len(TEXTS), PROMPT_TOKENS), generator=torch.Generator().manual_seed(0))


PAIR_TOKENS = 24  # of a pair, padding included


def _pairs(tokenizer: Any, config: Any) -> dict[str, torch.Tensor]:
    """Make pairs of texts of unequal lengths, so that mask and segments matter."""
    rows = [_pair(tokenizer, config, number) for number in range(len(TEXTS))]
    length = max(len(ids) for ids, _ in rows)
    last = getattr(config, "type_vocab_size", 1) - 1

    def padded(values: list[list[int]], filler: int) -> torch.Tensor:
        return torch.tensor([[*row, *[filler] * (length - len(row))] for row in values])

    return {
        "input_ids": padded([ids for ids, _ in rows], config.pad_token_id or 0),
        "token_type_ids": padded([[min(kind, last) for kind in kinds] for _, kinds in rows], 0),
        "attention_mask": padded([[1] * len(ids) for ids, _ in rows], 0),
    }


def _pair(tokenizer: Any, config: Any, number: int) -> tuple[list[int], list[int]]:
    """Make ids and segments of one pair of its own length; random ones without a usable tokenizer."""
    length = min(PAIR_TOKENS, config.max_position_embeddings) - number
    if tokenizer is not None:
        options = {"truncation": True, "max_length": length, "return_token_type_ids": True}
        encoded = tokenizer(TEXTS[number], TEXTS[number - 1], **options)
        ids, kinds = list(encoded["input_ids"]), list(encoded["token_type_ids"])
        if len(set(ids)) > FEWEST_TOKENS and max(ids) < config.vocab_size:
            return ids, kinds
    generator = torch.Generator().manual_seed(number)
    random = torch.randint(0, config.vocab_size, (max(1, length),), generator=generator).tolist()
    return random, [int(position > length // 2) for position in range(len(random))]


def _tokens(tokenizer: Any, config: Any) -> dict[str, torch.Tensor]:
    return {"input_ids": prompts(tokenizer, tokens_of(config.to_dict()))}


_COMPARED: Mapping[ModelKind, Callable[[Any, Any], dict[str, torch.Tensor]]] = {
    CAUSAL_LM: _tokens,
    CLASSIFICATION: _pairs,
    EMBEDDING: _pairs,
}


def compared_inputs(kind: ModelKind, tokenizer: Any, config: Any) -> dict[str, torch.Tensor]:
    """Make inputs to compare networks of a kind on, by name, each [prompts, tokens]."""
    return _COMPARED[kind](tokenizer, config)
