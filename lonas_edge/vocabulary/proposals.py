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


@dataclass(frozen=True)
class Proposal:
    """A vocabulary.

    Attributes:
        tokens: Number of its tokens.
        table_bytes: Bytes of embedding and head in INT8; once where they are tied.
        share: Their share of all weights.
        tokens_per_text: Tokens per text, relative to the whole vocabulary, on data that it was not chosen on.
    """

    tokens: int
    table_bytes: int
    share: float
    tokens_per_text: float

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return asdict(self)


@dataclass(frozen=True)
class Fertility:
    """Measures how many tokens a vocabulary needs for text that it was not chosen on: every tenth example."""

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

    def of(self, size: int | None) -> tuple[int, float]:
        """Choose a vocabulary; return its tokens, and tokens per text relative to the whole vocabulary."""
        kept = choose(self.tokenizer, self.counts, self.always, size, self.rows).kept
        return len(kept), self._tokens(self.tokenizer.trimmed(kept)) / self._before

    @cached_property
    def _before(self) -> int:
        return self._tokens(self.tokenizer.content)

    def _tokens(self, content: Mapping[str, Any]) -> int:
        tokenizer = Tokenizer.from_str(json.dumps(content))
        return sum(len(encoding.ids) for encoding in tokenizer.encode_batch(self.texts, add_special_tokens=False))


def proposals(architecture: Architecture, fertility: Fertility, size: int | None) -> list[Proposal]:
    """Compare the whole vocabulary with the data's tokens alone, with `SIZES`, and with a size."""
    rows, hidden = architecture.config.vocab_size, architecture.config.hidden_size
    tables = 1 if architecture.tied or architecture.family.task.new_head else 2
    others = sum(map(math.prod, architecture.shapes.values())) - tables * rows * hidden

    def proposal(tokens: int, ratio: float) -> Proposal:
        table = tokens * tables * hidden
        return Proposal(tokens, table, table / (table + others), ratio)

    least, ratio = fertility.of(None)
    whole = len(fertility.tokenizer.tokens)
    sizes = {*(each for each in SIZES if least < each < whole), *([size] if size else [])} - {least}
    found = [proposal(least, ratio), *(proposal(*fertility.of(each)) for each in sizes), proposal(rows, 1.0)]
    return sorted(found, key=lambda each: each.tokens)
