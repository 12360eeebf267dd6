"""Choose the tokens of a smaller vocabulary: those that data use, with all that any text needs."""

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from itertools import chain

from lonas_edge.errors import LonasEdgeError
from lonas_edge.vocabulary.tokenizer_file import TokenizerFile


@dataclass(frozen=True)
class Choice:
    """The tokens to keep.

    Attributes:
        kept: Their ids, in order.
        used: Number of different tokens in the data.
        missing: How many of these were dropped.
    """

    kept: tuple[int, ...]
    used: int
    missing: int


def choose(
    tokenizer: TokenizerFile,
    counts: Mapping[int, int],
    always: Collection[int],
    size: int | None,
    rows: int,
    option: str = "--vocabulary",
) -> Choice:
    """Choose tokens: required ones, then those that data use, the most frequent first, then the earliest of the tokenizer.

    Args:
        tokenizer: The tokenizer.
        counts: How often the data use each token.
        always: Ids that stay in any case, in addition to what any text needs.
        size: Number of tokens to keep; None for those that the data use and no others.
        rows: Rows of the embedding: tokens beyond have none and are dropped.
        option: The option that sets the size, for errors.

    Raises:
        LonasEdgeError: If the size is below what every text needs, or not below the whole vocabulary.
    """
    everything = {number for number in tokenizer.tokens if number < rows}
    stay = (tokenizer.parts(number) for number in everything.intersection(always))
    kept = tokenizer.required(counts).union(*stay) & everything
    if size is not None and size < len(kept):
        raise LonasEdgeError(
            f"{option} {size}: below the {len(kept)} tokens that every text needs: bytes or characters, special and added "
            f"tokens, stored prompts. Use {option} {len(kept)} or more."
        )
    if size is not None and size >= len(everything):
        raise LonasEdgeError(f"{option} {size}: the vocabulary has only {len(everything)} tokens. Use a smaller {option}.")
    limit = len(everything) if size is None else size
    common = (number for number, _ in Counter(counts).most_common())
    for number in chain(common, () if size is None else tokenizer.earliest()):
        if len(kept) == limit:
            break
        missing = (tokenizer.parts(number) & everything) - kept
        if number in everything and len(kept) + len(missing) <= limit:
            kept |= missing
    return Choice(tuple(sorted(kept)), len(counts), len(counts.keys() - kept))
