"""Whole runs, watched from outside: optimizer, loss, sub-networks, stages."""

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from oracle import oracle_logits, read_groups
from tiny_models import TinySource
from training_runs import (
    EXAMPLES,
    RECORD,
    TWELVE,
    Tokens,
    Watched,
    active_part,
    cross_entropy,
    difference,
    divergence,
    plain_adamw,
    run,
    tensors_of,
    write_data,
)


@pytest.mark.parametrize("sampling", ["random", "sandwich"])
def test_optimizer_leaves_the_inactive_part_alone(
    sampling: str, llama: TinySource, data: Path, tmp_path: Path, watched: Watched
) -> None:
    """Bit for bit, moments included, though momentum of earlier steps and weight decay would move it.

    A sandwich has all of the adapter active in every step: that of its maximal network.
    """
    changes = {"weight_decay": 0.1, "reorder": False, "warmup_steps": 0, "micro_batch_size": 2, "sampling": sampling}
    run(llama, data, tmp_path / "out", **changes)
    assert len(watched.updates) == 8
    would_move, moments_would_change = 0, 0
    for update in watched.updates:
        networks = [widths for step, widths in watched.passes if step == update.step]
        assert len(networks) == 2 * (3 if sampling == "sandwich" else 1)
        assert networks[: len(networks) // 2] == networks[len(networks) // 2 :]  # both micro-batches alike
        groups = [read_groups(llama.space, list(widths)) for widths in set(networks)]
        for name, before in update.before.items():
            active = torch.stack([active_part(name, before.shape, *group) for group in groups]).any(0)
            assert sampling == "random" or active.all()
            expected, state = plain_adamw(update, name, 0.1)
            after, state_after = update.after[name], update.states_after[name]
            assert torch.equal(after[~active], before[~active])
            assert torch.equal(after[active], expected[active])
            assert not torch.equal(after[active], before[active])
            for moment in ("exp_avg", "exp_avg_sq"):
                earlier = update.states[name].get(moment, torch.zeros_like(before))
                assert torch.equal(state_after[moment][~active], earlier[~active])
                assert torch.equal(state_after[moment][active], state[moment][active])
                if update.step or ".lora_B." in name:  # lora_A has no gradient while lora_B is 0
                    assert not torch.equal(state_after[moment][active], earlier[active])
                moments_would_change += int((state[moment] != earlier)[~active].sum())
            would_move += int((expected != before)[~active].sum())
    if sampling == "random":  # the test has teeth
        assert would_move > 1000
        assert moments_would_change > 1000
    final = {name.replace(".default.", "."): value for name, value in watched.updates[-1].after.items()}
    saved = tensors_of(tmp_path / "out")
    assert all(torch.equal(saved[name], value) for name, value in final.items())


def test_gradient_norm_is_that_of_the_active_part(llama: TinySource, data: Path, tmp_path: Path, watched: Watched) -> None:
    record = run(llama, data, tmp_path / "out", steps=3, max_grad_norm=0.5)
    for update, logged in zip(watched.updates, record["losses"], strict=True):
        norm = math.sqrt(sum(gradient.square().sum().item() for gradient in update.gradients.values()))
        assert logged["grad_norm"] > 0.5
        assert norm == pytest.approx(0.5, abs=1e-4)


@pytest.mark.parametrize(
    ("sampling", "distill", "micro_batch_size"),
    [("random", 0.0, 2), ("random", 0.4, None), ("sandwich", 0.0, None), ("sandwich", 0.4, 2)],
)
def test_logged_loss_by_hand(
    sampling, distill: float, micro_batch_size: int | None, llama: TinySource, tmp_path: Path, watched: Watched, choose
) -> None:
    """The first step on all examples at once: lora_B is 0, so that each sub-network is the narrowed base."""
    examples = EXAMPLES[:8]
    changes = {"sampling": sampling, "distill": distill, "micro_batch_size": micro_batch_size}
    data = write_data(tmp_path / "data.json", examples)
    record = run(llama, data, tmp_path / "out", steps=1, batch_size=8, reorder=False, **changes)
    micro_batches = 1 if micro_batch_size is None else 4
    networks = [widths for _, widths in watched.passes][: len(watched.passes) // micro_batches]
    assert [widths for _, widths in watched.passes] == networks * micro_batches
    maximal = tuple(choose(llama, "maximal"))
    if sampling == "sandwich":
        assert networks[:2] == [maximal, tuple(choose(llama, "minimal"))]
    assert len(networks) == (3 if sampling == "sandwich" else 1)
    tokens = [Tokens.of(llama, example) for example in examples]

    def network(widths: Sequence[int]) -> Callable[[torch.Tensor], torch.Tensor]:
        return lambda ids: oracle_logits(llama.base, None, llama.space, list(widths), ids)

    losses = []
    for widths in networks:
        share = distill if widths != maximal else 0.0
        kl = divergence(tokens, network(maximal), network(widths)) if share else 0.0
        losses.append((1 - share) * cross_entropy(tokens, network(widths)) + share * kl)
    assert record["losses"][0]["loss"] == pytest.approx(sum(losses) / len(losses), abs=1e-4)


@pytest.mark.parametrize("changes", [{}, {"sampling": "sandwich", "distill": 0.5}])
def test_micro_batches_give_the_same_adapter(changes: dict[str, Any], llama: TinySource, data: Path, tmp_path: Path) -> None:
    for name, size in (("whole", None), ("halves", 2)):
        run(llama, data, tmp_path / name, steps=4, micro_batch_size=size, **changes)
    assert difference(tmp_path / "halves", tmp_path / "whole") < 1e-5


def test_sandwich_trains_three_networks_a_step(llama: TinySource, data: Path, tmp_path: Path, watched, choose) -> None:
    run(llama, data, tmp_path / "out", steps=5, sampling="sandwich")
    assert [step for step, _ in watched.passes] == [step for step in range(5) for _ in range(3)]
    networks = [widths for _, widths in watched.passes]
    assert set(networks[0::3]) == {tuple(choose(llama, "maximal"))}
    assert set(networks[1::3]) == {tuple(choose(llama, "minimal"))}
    assert len(set(networks[2::3])) == 5
    assert all(width in allowed for drawn in networks for width, allowed in zip(drawn, llama.groups(), strict=True))


def test_every_width_is_drawn(llama: TinySource, data: Path, tmp_path: Path, watched: Watched) -> None:
    """Each group for itself: 30 draws miss one of 3 widths with probability 3 (2/3)^30 < 1e-4."""
    run(llama, data, tmp_path / "out", steps=30, batch_size=1, save_steps=100)
    assert len(watched.passes) == 30
    for index, allowed in enumerate(llama.groups()):
        assert {widths[index] for _, widths in watched.passes} == set(allowed)
    assert len({widths[3:6] for _, widths in watched.passes}) > 10  # of 27


def test_stages(llama_copy: TinySource, tmp_path: Path, watched: Watched) -> None:
    """Learning rate, widths and draws of two stages, from NNCF's schedule: 3 steps an epoch."""
    content = json.loads(llama_copy.space.read_text())
    content["bootstrapNAS"]["training"]["schedule"]["list_stage_descriptions"] = [
        {"epochs": 2, "epochs_lr": 4, "init_lr": 0.01, "width_indicator": 1},
        {"epochs": 4, "epochs_lr": 3, "init_lr": 0.02, "width_indicator": 2, "sample_rate": 3},
    ]
    llama_copy.space.write_text(json.dumps(content))
    data = write_data(tmp_path / "data.json", TWELVE)
    record = run(llama_copy, data, tmp_path / "out", steps=None, lr=None, warmup_steps=4)
    assert record["steps"] == 18
    expected = []
    for step in range(18):
        lr, time, whole = (0.01, step, 12) if step < 6 else (0.02, step - 6, 9)
        expected.append(lr / 2 * (1 + math.cos(math.pi * min(1, time / whole))) * min(1, (step + 1) / 4))
    assert expected[4:8] == pytest.approx([0.0075, 0.0062940952, 0.02, 0.0193969262])
    assert expected[15:] == [0, 0, 0]
    assert [entry["learning_rate"] for entry in record["losses"]] == pytest.approx(expected, abs=1e-12)
    assert [update.lr for update in watched.updates] == pytest.approx(expected, abs=1e-12)
    networks = [widths for _, widths in watched.passes]
    maximal = tuple(group[0] for group in llama_copy.groups())
    assert set(networks[:6]) == {maximal}
    draws = [set(networks[start : start + 3]) for start in (6, 9, 12, 15)]
    assert all(len(draw) == 1 for draw in draws)
    assert len(set.union(*draws)) == 4
    assert all(w in group[:2] for drawn in networks for w, group in zip(drawn, llama_copy.groups(), strict=True))
    assert json.loads((tmp_path / "out" / RECORD).read_text()) == record


@pytest.mark.parametrize(
    ("changes", "steps", "warmup"),
    [
        ({"steps": None, "epochs": 2}, 20, 1),  # 40 examples in batches of 4, 5 % of warm-up
        ({"steps": None, "epochs": 0.5, "batch_size": 16}, 2, 0),  # half of ceil(40 / 16) = 3, rounded to even
        ({"steps": 7, "epochs": 2}, 7, 0),
    ],
)
def test_number_of_steps(changes: dict[str, Any], steps: int, warmup: int, llama: TinySource, data: Path, tmp_path) -> None:
    record = run(llama, data, tmp_path / "out", save_steps=100, **{"warmup_steps": None, **changes})
    assert (record["steps"], record["warmup_steps"]) == (steps, warmup)
    assert len(record["losses"]) == steps
