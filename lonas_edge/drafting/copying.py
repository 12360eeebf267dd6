"""Examples whose values are replaced by random words, so that a draft learns to copy them from the prompt.

The values of a few hundred examples are few, and a draft that knows them by heart does not predict others.
"""

import random
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lonas_edge.drafting.answers import Answered
from lonas_edge.exporting.answering import Tokens

_WORD = re.compile(r"\w+")
_COMMON = 0.02  # words in a larger share of the prompts are no values: they may be a part of the instruction
_BLANK = "\u0120\u2581"  # a blank at the start of a token, in byte-level and in SentencePiece vocabularies


@dataclass(frozen=True)
class Encoded:
    """Token ids of a prompt and its answer; the answer starts at the index `start`."""

    tokens: Tokens
    start: int

    @classmethod
    def of(cls, answered: Answered) -> "Encoded":
        """Take an example as it is."""
        return cls(answered.prompt + answered.answer, len(answered.prompt))


class Copies:
    """Replaces values that occur in prompt and answer, the same in both."""

    def __init__(self, answered: Sequence[Answered], tokenizer: Any):
        """Count the words of the prompts; random words are those of the tokenizer's vocabulary."""
        self._tokenizer = tokenizer
        counts = Counter(word for each in answered for word in set(_WORD.findall(self._text(each.prompt))))
        self._common = {word for word, count in counts.items() if count > max(1, _COMMON * len(answered))}
        pieces = sorted({piece.lstrip(_BLANK) for piece in tokenizer.get_vocab()})
        self._words = [piece for piece in pieces if len(piece) > 1 and piece.isascii() and piece.isalpha()]

    def replace(self, answered: Answered, draw: random.Random) -> Encoded:
        """Return the example with other values; as it is without any."""
        prompt, answer = self._text(answered.prompt), self._text(answered.answer)
        values = (set(_WORD.findall(prompt)) & set(_WORD.findall(answer))) - self._common
        if not (values and self._words):
            return Encoded.of(answered)
        others = {value: "".join(draw.choices(self._words, k=draw.choice((1, 1, 2)))) for value in sorted(values)}
        prompt, answer = (_WORD.sub(lambda word: others.get(word[0], word[0]), text) for text in (prompt, answer))
        encoded = self._tokenizer(prompt + answer, add_special_tokens=False, return_offsets_mapping=True)
        start = sum(begin < len(prompt) for begin, _ in encoded["offset_mapping"])
        return Encoded(tuple(encoded["input_ids"]), start)

    def _text(self, tokens: Tokens) -> str:
        return str(self._tokenizer.decode(list(tokens), skip_special_tokens=False, clean_up_tokenization_spaces=False))
