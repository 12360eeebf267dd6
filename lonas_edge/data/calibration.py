"""Token ids to compare networks on."""

from typing import Any

import torch

from lonas_edge.data.encoding import encode_pairs, pad
from lonas_edge.families import CAUSAL_LM, ModelKind, tokens_of

TEXTS = (
    "The sun is the star at the center of the Solar System. It is a massive, nearly perfect sphere of hot plasma.",
    "Question: Which of these is a renewable resource?\nAnswer: Wind, because it is not used up when it turns a turbine.",
    "def mean(values):\n    total = sum(values)\n    return total / len(values)\n\nprint(mean([1, 2, 3, 4, 5, 6]))",
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.",
)
PROMPT_TOKENS, FEWEST_TOKENS = 16, 4  # with fewer, rotary tables and attention are not tested
PAIR_TOKENS = 24  # of a pair, padding included


def compared_inputs(kind: ModelKind, tokenizer: Any, config: Any) -> dict[str, torch.Tensor]:
    """Make inputs to compare networks of a kind on, by name, each [prompts, tokens]; random without a usable tokenizer."""
    return {"input_ids": prompts(tokenizer, tokens_of(config.to_dict()))} if kind is CAUSAL_LM else _pairs(tokenizer, config)


def prompts(tokenizer: Any, vocab_size: int) -> torch.Tensor:
    """Make token ids of prompts of one length, [prompts, tokens]."""
    if tokenizer is not None:
        encoded = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in TEXTS]
        length = min(PROMPT_TOKENS, *map(len, encoded))
        ids = torch.tensor([row[:length] for row in encoded])
        if length >= FEWEST_TOKENS and int(ids.max()) < vocab_size and len(set(ids.flatten().tolist())) > len(TEXTS):
            return ids
    return torch.randint(0, vocab_size, (len(TEXTS), PROMPT_TOKENS), generator=torch.Generator().manual_seed(0))


def _pairs(tokenizer: Any, config: Any) -> dict[str, torch.Tensor]:
    """Make pairs of texts of unequal lengths, so that mask and segments matter."""
    rows, last = [], getattr(config, "type_vocab_size", 1) - 1
    for number, text in enumerate(TEXTS):
        length = min(PAIR_TOKENS, config.max_position_embeddings) - number
        row = encode_pairs([(text, TEXTS[number - 1])], tokenizer, length)[0] if tokenizer is not None else {"input_ids": []}
        ids, segments = row["input_ids"], row.get("token_type_ids", [])
        if len(set(ids)) <= FEWEST_TOKENS or max(ids) >= config.vocab_size:
            draw = torch.Generator().manual_seed(number)
            ids = torch.randint(0, config.vocab_size, (max(1, length),), generator=draw).tolist()
            segments = [int(position > length // 2) for position in range(len(ids))]
        rows.append((ids, [min(segment, last) for segment in segments]))
    return {
        "input_ids": pad([ids for ids, _ in rows], config.pad_token_id or 0),
        "token_type_ids": pad([segments for _, segments in rows], 0),
        "attention_mask": pad([[1] * len(ids) for ids, _ in rows], 0),
    }
