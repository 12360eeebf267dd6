"""Sizes of a trimmed vocabulary, and what each costs: bytes, and tokens per text."""

import json
import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from tokenizers import Tokenizer

from lonas_edge.space.architecture import Architecture
from lonas_edge.vocabulary.choice import choose
from lonas_edge.vocabulary.tokenizer_file import TokenizerFile

SIZES = (8_192, 16_384, 24_576, 32_768, 49_152, 65_536, 98_304, 131_072)
_TENTH = 10
OTHER_TEXTS = (  # of other kinds than most data: plain English, other languages, code, emoji
    "The museum opens at nine and closes at five. Visitors may leave coats and bags at the entrance; photography is allowed in "
    "every room except the library.",
    "Der Zug nach München fährt heute von Gleis sieben ab und hat wegen einer Baustelle etwa zwanzig Minuten Verspätung.",
    "Le marché ouvre tous les samedis sur la place de l'église; on y trouve des légumes, du fromage et des fleurs.",
    "图书馆每天早上九点开门,周末下午五点关门。",
    "Библиотека открывается в девять часов утра и закрывается в пять вечера.",
    "def mean(values: list[float]) -> float:\n    if not values:\n        raise ValueError('no values')\n"
    "    return sum(values) / len(values)\n",
    "SELECT name, COUNT(*) FROM visits WHERE day >= '2024-01-01' GROUP BY name ORDER BY 2 DESC;",
    "See you on Friday 🎉🙂 bring snacks 🍕, please! 👍",
)


@dataclass(frozen=True)
class Proposal:
    """A vocabulary.

    Attributes:
        tokens: Number of its tokens.
        table_bytes: Bytes of embedding and head in INT8; once where they are tied.
        share: Their share of all weights.
        tokens_per_text: Tokens per text, relative to the whole vocabulary, on data that it was not chosen on.
        tokens_per_other_text: The same on `OTHER_TEXTS`.
    """

    tokens: int
    table_bytes: int
    share: float
    tokens_per_text: float
    tokens_per_other_text: float

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return asdict(self)


@dataclass(frozen=True)
class Fertility:
    """Measures how many tokens a vocabulary needs for text that it was not chosen on: every tenth example, and other texts."""

    tokenizer: TokenizerFile
    examples: Sequence[Sequence[int]]  # ids of the whole vocabulary
    always: Collection[int]  # ids that every vocabulary has
    rows: int  # of the embedding

    @cached_property
    def texts(self) -> list[str]:
        """The held-out examples."""
        whole = Tokenizer.from_str(json.dumps(self.tokenizer.content))
        return [whole.decode(list(example), skip_special_tokens=False) for example in self.examples[::_TENTH]]

    @cached_property
    def counts(self) -> Counter[int]:
        """How often the other examples use each token."""
        return Counter(token for index, example in enumerate(self.examples) if index % _TENTH for token in example)

    def of(self, size: int | None) -> tuple[int, float, float]:
        """Choose a vocabulary; return its tokens, and tokens per text and per other text relative to the whole vocabulary."""
        kept = choose(self.tokenizer, self.counts, self.always, size, self.rows).kept
        own, other = self._tokens(self.tokenizer.trimmed(kept))
        return len(kept), own / self._before[0], other / self._before[1]

    @cached_property
    def _before(self) -> tuple[int, int]:
        return self._tokens(self.tokenizer.content)

    def _tokens(self, content: Mapping[str, Any]) -> tuple[int, int]:
        """Number of tokens of the held-out examples, and of the other texts."""
        tokenizer = Tokenizer.from_str(json.dumps(content))
        tokenizer.no_padding()  # a file may prescribe both, as sentence-transformers' do
        tokenizer.no_truncation()
        own, other = (tokenizer.encode_batch(list(texts), add_special_tokens=False) for texts in (self.texts, OTHER_TEXTS))
        return sum(len(each.ids) for each in own), sum(len(each.ids) for each in other)


def proposals(architecture: Architecture, fertility: Fertility, size: int | None) -> list[Proposal]:
    """Compare the whole vocabulary with the data's tokens alone, with `SIZES`, and with a size."""
    rows, shapes = architecture.config.vocab_size, architecture.shapes
    tables = sum(math.prod(shapes[name]) for name in architecture.token_tables & shapes.keys())
    others = sum(map(math.prod, shapes.values())) - tables

    def proposal(tokens: int, ratio: float, other: float) -> Proposal:
        table = tokens * tables // rows
        return Proposal(tokens, table, table / (table + others), ratio, other)

    smallest = fertility.of(None)
    least = smallest[0]
    whole = len(fertility.tokenizer.tokens)
    sizes = {*(each for each in SIZES if least < each < whole), *([size] if size else [])} - {least}
    found = [proposal(*smallest), *(proposal(*fertility.of(each)) for each in sizes), proposal(rows, 1.0, 1.0)]
    return sorted(found, key=lambda each: each.tokens)
