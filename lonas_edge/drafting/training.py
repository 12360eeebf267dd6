"""Train a draft on a model's answers, in a loop that a kill does not lose.

The softmax is over the tokens of the data and a random choice of others: over a whole vocabulary it would take two thirds of
the time. Examples of a step follow from the seed and its number alone, so that a continued run is the same run.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F
from torch.optim.lr_scheduler import LambdaLR

from lonas_edge.drafting.answers import Answered
from lonas_edge.drafting.copying import Copies, Encoded
from lonas_edge.progress import Progress

BATCH, STEPS, EVERY = 32, 1200, 50  # examples of a step; steps at most; steps between evaluations
_BATCH_TOKENS = 16_384  # of a step at most, padding included: long prompts make smaller batches
_PATIENCE = 250  # steps without a better agreement that end the training
_ENOUGH = 0.995  # agreement that ends it: ten proposed tokens then give 10.7 tokens a pass, of 11 at most
_WARM_UP = 30  # steps
_RATE, _EMBEDDING_RATE, _BETAS = 3e-3, 1e-3, (0.9, 0.98)
_OTHERS = 4096  # random tokens of a softmax
_EVALUATED = 8  # examples of a batch with a complete softmax


@dataclass(frozen=True)
class Best:
    """The best draft so far: the steps until then, its agreement with held-out answers, its weights."""

    steps: int
    agreement: float
    weights: dict[str, torch.Tensor]

    @classmethod
    def of(cls, network: Any, steps: int, held_out: Sequence[Answered]) -> "Best":
        """Measure a network and copy its weights."""
        return cls(steps, agreement(network, held_out), {name: each.clone() for name, each in network.state_dict().items()})


def train_draft(
    network: Any,
    answered: Sequence[Answered],
    held_out: Sequence[Answered],
    tokenizer: Any,
    seed: int,
    checkpoint: Path,
    progress: Progress,
) -> Best:
    """Train a network until its agreement with held-out answers no longer rises, or is 99.5 %; it gets the best weights.

    A killed training continues from the file `checkpoint`.
    """
    optimizer, copies, step = _optimizer(network), Copies(answered, tokenizer), 0
    schedule = LambdaLR(optimizer, lambda step: min((step + 1) / _WARM_UP, 1 - step / STEPS))
    known = torch.tensor(sorted({token for each in answered for token in each.prompt + each.answer}))
    longest = max(len(each.prompt) + len(each.answer) for each in answered)
    size = max(1, min(BATCH, _BATCH_TOKENS // longest, len(answered)))
    parts = {"network": network, "optimizer": optimizer, "schedule": schedule}
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        step, best = saved["step"], Best(**saved["best"])
        for name, part in parts.items():
            part.load_state_dict(saved[name])
    else:
        best = Best.of(network, 0, held_out)
    while step < STEPS and step - best.steps < _PATIENCE and best.agreement < _ENOUGH:
        progress(f"Training the draft, {best.agreement:.1%} of held-out tokens predicted", step / STEPS)
        draw = random.Random(f"{seed}/{step}")
        hidden, targets = _hidden(network, _examples(draw.sample(answered, size), copies, draw))
        others = torch.Generator().manual_seed(draw.getrandbits(63))
        loss = sampled_loss(hidden, targets, network.model.embed_tokens.weight, known, others)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        step += 1
        if step % EVERY == 0:
            best = max(best, Best.of(network, step, held_out), key=lambda each: each.agreement)
            states = {name: part.state_dict() for name, part in parts.items()}
            partial = checkpoint.with_suffix(".partial")
            torch.save({"step": step, "best": vars(best), **states}, partial)
            partial.replace(checkpoint)
    network.load_state_dict(best.weights)
    return best


def _optimizer(network: Any) -> torch.optim.Optimizer:
    embedding = network.model.embed_tokens.weight
    others = [parameter for parameter in network.parameters() if parameter is not embedding]
    return torch.optim.AdamW([{"params": others, "lr": _RATE}, {"params": [embedding], "lr": _EMBEDDING_RATE}], betas=_BETAS)


def _examples(chosen: Sequence[Answered], copies: Copies, draw: random.Random) -> list[Encoded]:
    """Encode examples; in one half of them, values are replaced."""
    half = len(chosen) // 2
    return [*(copies.replace(each, draw) for each in chosen[:half]), *map(Encoded.of, chosen[half:])]


def _hidden(network: Any, examples: Sequence[Encoded]) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute the hidden states [tokens, hidden] that predict the tokens of the answers, and return these [tokens]."""
    lengths = [len(each.tokens) for each in examples]
    ids = torch.zeros(len(examples), max(lengths), dtype=torch.long)
    learned = torch.zeros_like(ids, dtype=torch.bool)
    for row, each in enumerate(examples):
        ids[row, : len(each.tokens)] = torch.tensor(each.tokens)
        learned[row, each.start : len(each.tokens)] = True
    mask = torch.arange(ids.shape[1]) < torch.tensor(lengths)[:, None]
    states = network.model(input_ids=ids, attention_mask=mask.long(), use_cache=False).last_hidden_state
    return states[:, :-1][learned[:, 1:]], ids[learned]


def sampled_loss(
    hidden: torch.Tensor, targets: torch.Tensor, table: torch.Tensor, known: torch.Tensor, draw: torch.Generator
) -> torch.Tensor:
    """Cross-entropy over the known tokens and random others, which stand for all others.

    Args:
        hidden: Hidden states [tokens, hidden].
        targets: The tokens that follow them [tokens].
        table: The tied head [vocabulary, hidden].
        known: The tokens of the data.
        draw: Draws the others.
    """
    vocabulary, known = len(table), torch.unique(torch.cat([known, targets]))
    others = torch.unique(torch.randint(vocabulary, (min(_OTHERS, vocabulary),), generator=draw))
    others = others[~torch.isin(others, known)]
    weight = math.log((vocabulary - len(known)) / len(others)) if len(others) else 0.0  # of each in the sum over all
    logits = torch.cat([hidden @ table[known].T, hidden @ table[others].T + weight], 1)
    return F.cross_entropy(logits, torch.searchsorted(known, targets))


@torch.inference_mode()
def agreement(network: Any, held_out: Sequence[Answered]) -> float:
    """Share of the tokens of held-out answers that are the network's most likely ones after the tokens before them."""
    right = total = 0
    for start in range(0, len(held_out), _EVALUATED):
        hidden, targets = _hidden(network, list(map(Encoded.of, held_out[start : start + _EVALUATED])))
        right += int(((hidden @ network.model.embed_tokens.weight.T).argmax(-1) == targets).sum())
        total += len(targets)
    return right / total
