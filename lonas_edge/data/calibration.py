"""Texts that networks are compared on, and the token ids of them."""

from typing import Any

import torch

TEXTS = (
    "The sun is the star at the center of the Solar System. It is a massive, nearly perfect sphere of hot plasma.",
    "Question: Which of these is a renewable resource?\nAnswer: Wind, because it is not used up when it turns a turbine.",
    "def mean(values):\n    total = sum(values)\n    return total / len(values)\n\nprint(mean([1, 2, 3, 4, 5, 6]))",
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.",
)


PROMPT_TOKENS, FEWEST_TOKENS = 16, 4  # with one or two, rotary tables and attention say nothing


def prompts(tokenizer: Any, vocab_size: int) -> torch.Tensor:
    """Token ids of the prompts that are compared, all of one length: [prompts, tokens].

    Args:
        tokenizer: The model's tokenizer, or None. Seeded random ids then, and where it makes too few tokens of the texts.
        vocab_size: Size of the vocabulary.

    Returns:
        The ids.
    """
    if tokenizer is not None:
        encoded = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in TEXTS]
        length = min(PROMPT_TOKENS, *map(len, encoded))
        ids = torch.tensor([row[:length] for row in encoded])
        if length >= FEWEST_TOKENS and int(ids.max()) < vocab_size and len(set(ids.flatten().tolist())) > len(TEXTS):
            return ids
    return torch.randint(0, vocab_size, (len(TEXTS), PROMPT_TOKENS), generator=torch.Generator().manual_seed(0))
