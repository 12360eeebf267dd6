"""Sizes of a trimmed vocabulary, and what each costs: bytes, and tokens per text."""

import json
import math
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
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
        fertility: Tokens per text, relative to the whole vocabulary, on data that it was not chosen on.
    """

    tokens: int
    table_bytes: int
    share: float
    fertility: float

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return asdict(self)


def proposals(
    tokenizer: TokenizerFile,
    architecture: Architecture,
    examples: Sequence[Sequence[int]],
    always: Collection[int],
    size: int | None,
) -> list[Proposal]:
    """Compare the whole vocabulary with the data's tokens alone, with `SIZES`, and with a size; `always` are kept in all."""
    rows, hidden = architecture.config.vocab_size, architecture.config.hidden_size
    held = examples[::_TENTH]
    counts = Counter(token for index, example in enumerate(examples) if index % _TENTH for token in example)
    whole = Tokenizer.from_str(json.dumps(tokenizer.content))
    texts = [whole.decode(list(example), skip_special_tokens=False) for example in held]
    before = _count(whole, texts)
    tables = 1 if architecture.tied or architecture.family.task.new_head else 2
    others = sum(map(math.prod, architecture.shapes.values())) - tables * rows * hidden
    least = len(choose(tokenizer, counts, always, None, rows).kept)
    sizes = {least, *(each for each in SIZES if least < each < len(tokenizer.tokens)), *([size] if size else [])}
    found = []
    for each in sorted(sizes):
        kept = choose(tokenizer, counts, always, None if each == least else each, rows).kept
        small = Tokenizer.from_str(json.dumps(tokenizer.trimmed(kept)))
        found.append(_proposal(len(kept), tables * hidden, others, _count(small, texts) / before))
    return [*found, _proposal(rows, tables * hidden, others, 1.0)]


def _proposal(tokens: int, columns: int, others: int, fertility: float) -> Proposal:
    table = tokens * columns
    return Proposal(tokens, table, table / (table + others), fertility)


def _count(tokenizer: Tokenizer, texts: Sequence[str]) -> int:
    encodings = tokenizer.encode_batch(list(texts), add_special_tokens=False)
    return sum(len(encoding.ids) for encoding in encodings)
