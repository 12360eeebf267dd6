"""How far two networks' answers are apart: of logits differences, Kullback-Leibler divergence and equal top tokens; of texts
the first divergent token and the share of divergent ones."""

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
    """How two models' logits compare over the tokens of the prompts.

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
    """Compare logits with those of a reference.

    Args:
        reference: [prompts, tokens, vocabulary].
        logits: The same shape.

    Returns:
        The comparison.
    """
    difference, kl, agreeing = 0.0, 0.0, 0
    for expected, found in zip(reference, logits, strict=True):  # a prompt at a time: vocabularies are large
        expected, found = expected.double(), found.double()
        p, q = expected.log_softmax(-1), found.log_softmax(-1)
        largest = (expected - found).abs().max().item()
        difference = largest if math.isnan(largest) else max(difference, largest)
        kl += (p.exp() * (p - q)).sum().item()
        agreeing += int((expected.argmax(-1) == found.argmax(-1)).sum())
    positions = reference[..., 0].numel()
    return Parity(difference, kl / positions, agreeing / positions, positions)


@dataclass(frozen=True)
class TextDivergence:
    """How texts that a network generates greedily compare with a reference's, in OpenVINO's who_what_benchmark's terms.

    Deiseroth et al., "Divergent Token Metrics" (arXiv 2311.01544, NAACL 2024), have the idea; the figures are those of
    `evaluate_divergency` in openvino.genai, `tools/who_what_benchmark/whowhatbench/whowhat_metrics.py`. Two things
    are otherwise: generated tokens are compared, the end of text among them, where it encodes texts again; and FDT is where two
    texts part, which it looks for in SequenceMatcher's first block, so that a repetition may make 0 of it.

    Attributes:
        fdt: First divergent token: tokens before it, mean over the prompts. The larger the better.
        fdt_norm: The same as a share of the mean length of the reference's texts; 1 where all are equal.
        sdt: Divergent tokens of a text, those in no block that it shares with the reference's; mean. The smaller the better.
        sdt_norm: Their share of the text's tokens, mean; 0 where all are equal.
        equal: Texts that are the reference's, whole.
        prompts: Texts compared.
        new_tokens: Tokens of a text, at most.
    """

    fdt: float
    fdt_norm: float
    sdt: float
    sdt_norm: float
    equal: int
    prompts: int
    new_tokens: int


def compare_texts(reference: Sequence[Sequence[int]], texts: Sequence[Sequence[int]], new_tokens: int) -> TextDivergence:
    """Compare generated texts with those of a reference.

    Args:
        reference: Token ids of each text, at least one.
        texts: The same of the network that is judged.
        new_tokens: Tokens of a text, at most.

    Returns:
        The comparison.
    """
    pairs = list(zip(reference, texts, strict=True))
    fdt = fmean(_common(expected, found) for expected, found in pairs)
    sdt = [len(found) - _matched(expected, found) for expected, found in pairs]
    return TextDivergence(
        fdt=fdt,
        fdt_norm=fdt / fmean(map(len, reference)),
        sdt=fmean(sdt),
        sdt_norm=fmean(divergent / len(found) for divergent, found in zip(sdt, texts, strict=True)),
        equal=sum(list(expected) == list(found) for expected, found in pairs),
        prompts=len(pairs),
        new_tokens=new_tokens,
    )


def _common(expected: Sequence[int], found: Sequence[int]) -> int:
    """Tokens that two texts begin with."""
    differing = (place for place, (one, other) in enumerate(zip(expected, found, strict=False)) if one != other)
    return next(differing, min(len(expected), len(found)))


def _matched(expected: Sequence[int], found: Sequence[int]) -> int:
    """Tokens in blocks that two texts share, in order."""
    return sum(block.size for block in SequenceMatcher(None, expected, found).get_matching_blocks())


def kl_divergence(reference: "torch.Tensor", logits: "torch.Tensor") -> "torch.Tensor":
    """Kullback-Leibler divergence of next-token distributions from a reference, summed over positions: KL(reference || logits).

    Args:
        reference: [positions, vocabulary].
        logits: The same shape.

    Returns:
        The sum, in nats.
    """
    from torch.nn import functional as F

    p, q = reference.float().log_softmax(-1), logits.float().log_softmax(-1)
    return F.kl_div(q, p, reduction="sum", log_target=True)


def cross_entropy(logits: "torch.Tensor", labels: "torch.Tensor") -> "torch.Tensor":
    """Cross-entropy of the tokens that follow, summed over positions.

    Args:
        logits: [positions, vocabulary].
        labels: [positions].

    Returns:
        The sum, in nats.
    """
    from torch.nn import functional as F

    return F.cross_entropy(logits.float(), labels, reduction="sum")
