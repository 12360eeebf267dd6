"""Log-likelihoods of continuations, with every context computed once for all its continuations."""

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from lm_eval.api.model import TemplateLM

Likelihood = tuple[float, bool]  # log-likelihood in nats, and whether greedy decoding would give the continuation

BATCH_TOKENS = 512  # of contexts, and of continuations: enough to keep two cores busy, and little padding


@dataclass(frozen=True)
class Ranked:
    """A context and the continuations to rank after it, as token ids; none is empty."""

    context: tuple[int, ...]
    continuations: tuple[tuple[int, ...], ...]

    @property
    def tokens(self) -> int:
        """Tokens of all continuations together."""
        return sum(map(len, self.continuations))


class RankingLM(TemplateLM):  # type: ignore[misc]
    """A model of lm-evaluation-harness that computes a context once; a backend implements `rank`.

    The harness's own backends compute context and continuation together, once for every continuation. Requests arrive in
    batches, so that only these decide which of them are computed together.
    """

    max_length: int

    @abstractmethod
    def rank(self, batch: Sequence[Ranked]) -> list[list[Likelihood]]:
        """Log-likelihoods of the continuations of each context."""

    def _loglikelihood_tokens(self, requests: Sequence[tuple[Any, list[int], list[int]]], **_: Any) -> list[Likelihood]:
        """See `TemplateLM`: requests are ((context, continuation), token ids of the context, and of the continuation)."""
        indices: dict[tuple[int, ...], dict[tuple[int, ...], list[int]]] = {}
        for index, (_, context, continuation) in enumerate(requests):
            # the harness's own rule for long sequences: the context loses its beginning
            kept = tuple(context[-max(1, self.max_length + 1 - len(continuation)) :])
            indices.setdefault(kept, {}).setdefault(tuple(continuation), []).append(index)
        ranked: list[Likelihood] = [(0.0, True)] * len(requests)  # of a continuation without tokens
        contexts = [Ranked(context, tuple(filter(None, ends))) for context, ends in indices.items()]
        for batch in _packed(sorted((item for item in contexts if item.tokens), key=_by_length)):
            for item, likelihoods in zip(batch, self.rank(batch), strict=True):
                for end, likelihood in zip(item.continuations, likelihoods, strict=True):
                    for index in indices[item.context][end]:
                        ranked[index] = likelihood
        return ranked


def _by_length(item: Ranked) -> tuple[int, int, tuple[int, ...]]:
    """Neighbours in this order need little padding: 20 % of the tokens on ARC; 58 % if sorted by the context alone."""
    return -(len(item.context) // 16), max(map(len, item.continuations)), item.context


def _packed(ranked: Sequence[Ranked]) -> Iterator[list[Ranked]]:
    """Batches of similar lengths, the longest contexts first."""
    batch: list[Ranked] = []
    for item in ranked:
        together = [*batch, item]
        rows = sum(len(each.continuations) for each in together)
        context = max(len(each.context) for each in together)
        longest = max(len(end) for each in together for end in each.continuations)
        if batch and max(len(together) * context, rows * longest) > BATCH_TOKENS:
            yield batch
            together = [item]
        batch = together
    if batch:
        yield batch
