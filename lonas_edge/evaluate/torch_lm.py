"""A PyTorch model as a model of lm-evaluation-harness: its own `hf` backend, with each context of a ranking computed once."""

from collections.abc import Sequence
from typing import Any

import torch
from lm_eval.models.huggingface import HFLM
from transformers import GenerationConfig

from lonas_edge.evaluate.ranking import Likelihood, Ranked, RankingLM
from lonas_edge.families import Family
from lonas_edge.space.architecture import Architecture


class TorchLM(RankingLM, HFLM):  # type: ignore[misc]
    """The harness's `hf` backend on a live model; context and continuations are one sequence with a mask of its own.

    A continuation sees its context and itself, at its usual positions. Requests alone determine how texts are generated,
    as with an IR: the harness (0.4.13) would also use the repetition penalty and the lengths of `generation_config.json`.
    """

    def __init__(self, **options: Any):
        """Take the arguments of `HFLM`. Of the model's own generation configuration, only the tokens that end a text stay."""
        super().__init__(**options)
        named = self.model.generation_config.eos_token_id
        stops = self.tokenizer.eos_token_id if named is None else named
        self.model.generation_config = GenerationConfig(eos_token_id=stops, pad_token_id=self.tokenizer.pad_token_id)

    def _loglikelihood_tokens(self, requests: Sequence[tuple[Any, list[int], list[int]]], **options: Any) -> list[Likelihood]:
        """See `RankingLM`. The harness's own way where a custom mask is impossible: beyond a window, or in some families."""
        window = getattr(self.model.config, "sliding_window", None)
        longest = max((len(context) + len(continuation) for _, context, continuation in requests), default=0)
        if not self._family.takes_positions or (window and longest > window):
            ranked: list[Likelihood] = HFLM._loglikelihood_tokens(self, list(requests), **options)
            return ranked
        return super()._loglikelihood_tokens(requests, **options)

    def rank(self, batch: Sequence[Ranked]) -> list[list[Likelihood]]:
        """See `RankingLM`."""
        packed = [_Packed.of(item) for item in batch]
        length = max(len(item.ids) for item in packed)

        def padded(rows: Sequence[Sequence[int]], filler: int) -> torch.Tensor:
            return torch.tensor([[*row, *[filler] * (length - len(row))] for row in rows], device=self.device)

        ids, part = padded([item.ids for item in packed], 0), padded([item.part for item in packed], -1)
        position = padded([item.position for item in packed], 0)
        mask = _mask(part)
        with torch.inference_mode():
            hidden = self._family.hidden(self.model, input_ids=ids, position_ids=position, attention_mask=mask)
            return [self._likelihoods(hidden[row], item) for row, item in enumerate(packed)]

    @property
    def _family(self) -> Family:
        return Architecture.from_config(self.model.config, "the model").family

    def _likelihoods(self, hidden: torch.Tensor, item: "_Packed") -> list[Likelihood]:
        targets = torch.tensor(item.ids[item.context :], device=hidden.device)
        logits = self._family.logits(self.model, hidden[torch.tensor(item.predictors, device=hidden.device)]).float()
        chosen = logits.gather(1, targets[:, None])[:, 0]
        values = (chosen.double() - logits.logsumexp(-1).double()).split(item.lengths)
        greedy = (chosen == logits.amax(-1)).split(item.lengths)
        return [(value.sum().item(), bool(same.all())) for value, same in zip(values, greedy, strict=True)]


class _Packed:
    """Context and continuations in one sequence; `part` is 0 for the context, 1, 2, … for the continuations."""

    def __init__(self, ids: list[int], position: list[int], part: list[int], predictors: list[int], lengths: list[int]):
        self.ids, self.position, self.part, self.predictors, self.lengths = ids, position, part, predictors, lengths
        self.context = len(ids) - sum(lengths)

    @classmethod
    def of(cls, item: Ranked) -> "_Packed":
        start = len(item.context)
        ids, position, part = list(item.context), list(range(start)), [0] * start
        predictors: list[int] = []
        for number, end in enumerate(item.continuations, 1):
            # the last token of the context predicts the first of every continuation
            predictors += [start - 1, *range(len(ids), len(ids) + len(end) - 1)]
            ids += end
            position += range(start, start + len(end))
            part += [number] * len(end)
        return cls(ids, position, part, predictors, [len(end) for end in item.continuations])


def _mask(part: torch.Tensor) -> torch.Tensor:
    """Which positions a position sees [batch, 1, tokens, tokens]; padding sees itself, so that no row is empty."""
    same = part[:, :, None] == part[:, None, :]
    context = (part == 0)[:, None, :] & (part >= 0)[:, :, None]
    length = part.shape[1]
    return ((same | context) & torch.ones(length, length, dtype=torch.bool, device=part.device).tril())[:, None]
