"""Compare two networks: logits by difference, KL divergence and top tokens; generated texts by their divergent tokens."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from statistics import fmean
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Parity:
    """Comparison of two models' logits over the tokens of the prompts.

    Attributes:
        max_logit_difference: Largest absolute difference.
        mean_kl: Mean Kullback-Leibler divergence of the next-token distributions from the reference, in nats.
        top1_agreement: Share of positions at which both prefer the same token.
        positions: Positions compared.
    """

    max_logit_difference: float
    mean_kl: float
    top1_agreement: float
    positions: int


def compare(reference: "torch.Tensor", logits: "torch.Tensor") -> Parity:
    """Compare logits [prompts, tokens, vocabulary] with those of a reference."""
    difference, kl, agreeing = 0.0, 0.0, 0
    for expected, actual in zip(reference, logits, strict=True):  # a prompt at a time: vocabularies are large
        expected, actual = expected.double(), actual.double()
        p, q = expected.log_softmax(-1), actual.log_softmax(-1)
        largest = (expected - actual).abs().max().item()
        difference = largest if math.isnan(largest) else max(difference, largest)
        kl += (p.exp() * (p - q)).sum().item()
        agreeing += int((expected.argmax(-1) == actual.argmax(-1)).sum())
    positions = reference[..., 0].numel()
    return Parity(difference, kl / positions, agreeing / positions, positions)


@dataclass(frozen=True)
class TextDivergence:
    """Comparison of greedily generated texts with a reference's, by the metrics of OpenVINO's who_what_benchmark.

    The metrics are those of Deiseroth et al., "Divergent Token Metrics" (arXiv 2311.01544, NAACL 2024), as
    `evaluate_divergency` in openvino.genai (`tools/who_what_benchmark/whowhatbench/whowhat_metrics.py`) computes them, with two
    differences: generated tokens are compared, including the end of text, where it encodes texts again; and FDT is the position
    at which two texts part, which it reads from SequenceMatcher's first block, so that a repetition may make 0 of it.

    Attributes:
        fdt: First divergent token: mean number of tokens before it. Larger is better.
        fdt_norm: The same as a share of the mean length of the reference's texts; 1 if all are equal.
        sdt: Mean number of divergent tokens of a text: those in no block that it shares with the reference's. Smaller is
            better.
        sdt_norm: Their mean share of the text's tokens; 0 if all are equal.
        equal: Number of texts that equal the reference's.
        prompts: Number of texts.
        new_tokens: Largest number of tokens of a text.
    """

    fdt: float
    fdt_norm: float
    sdt: float
    sdt_norm: float
    equal: int
    prompts: int
    new_tokens: int


def compare_texts(reference: Sequence[Sequence[int]], texts: Sequence[Sequence[int]], new_tokens: int) -> TextDivergence:
    """Compare generated texts, token ids, with those of a reference (at least one); no text has more than `new_tokens`."""
    pairs = list(zip(reference, texts, strict=True))
    fdt = fmean(_common(expected, text) for expected, text in pairs)
    sdt = [len(text) - _matched(expected, text) for expected, text in pairs]
    return TextDivergence(
        fdt=fdt,
        fdt_norm=fdt / fmean(map(len, reference)),
        sdt=fmean(sdt),
        sdt_norm=fmean(divergent / len(text) for divergent, text in zip(sdt, texts, strict=True)),
        equal=sum(list(expected) == list(text) for expected, text in pairs),
        prompts=len(pairs),
        new_tokens=new_tokens,
    )


def _common(expected: Sequence[int], text: Sequence[int]) -> int:
    """Number of tokens in the common beginning of two texts."""
    differing = (index for index, (token, other) in enumerate(zip(expected, text, strict=False)) if token != other)
    return next(differing, min(len(expected), len(text)))


def _matched(expected: Sequence[int], text: Sequence[int]) -> int:
    """Number of tokens in blocks that two texts share, in order."""
    return sum(block.size for block in SequenceMatcher(None, expected, text).get_matching_blocks())


def kl_divergence(reference: "torch.Tensor", logits: "torch.Tensor") -> "torch.Tensor":
    """KL(reference || logits) of next-token distributions [positions, vocabulary], summed over positions, in nats."""
    from torch.nn import functional as F

    p, q = reference.float().log_softmax(-1), logits.float().log_softmax(-1)
    return F.kl_div(q, p, reduction="sum", log_target=True)


def cross_entropy(logits: "torch.Tensor", labels: "torch.Tensor") -> "torch.Tensor":
    """Cross-entropy of logits [positions, vocabulary] and labels [positions], summed over positions, in nats."""
    from torch.nn import functional as F

    return F.cross_entropy(logits.float(), labels, reduction="sum")
