"""Whole runs, watched from outside: optimizer, loss, sub-networks, stages."""

import json
import math
from pathlib import Path

import pytest
import torch
from oracle import oracle_logits, read_groups
from tiny_models import TinySource
from training_runs import (
    EXAMPLES,
    TWELVE,
    Tokens,
    Watched,
    active_part,
    cross_entropy,
    plain_adamw,
    run,
    tensors_of,
    write_data,
)


def test_optimizer_leaves_the_inactive_part_unchanged(llama: TinySource, data: Path, tmp_path: Path, watched: Watched) -> None:
    """Bit for bit, moments included, though momentum of earlier steps and weight decay would move it."""
    changes = {"weight_decay": 0.1, "reorder": False, "warmup_steps": 0, "micro_batch_size": 2}
    run(llama, data, tmp_path / "out", **changes)
    assert len(watched.updates) == 8
    would_move, moments_would_change = 0, 0
    for update in watched.updates:
        first, second = (widths for step, widths in watched.passes if step == update.step)
        assert first == second  # in both micro-batches
        groups = read_groups(llama.space, list(first))
        for name, before in update.before.items():
            active = active_part(name, before.shape, *groups)
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
    assert would_move > 1000 and moments_would_change > 1000  # plain AdamW would fail
    final = {name.replace(".default.", "."): value for name, value in watched.updates[-1].after.items()}
    saved = tensors_of(tmp_path / "out")
    assert all(torch.equal(saved[name], value) for name, value in final.items())


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
    networks = [widths for _, widths in watched.passes]
    maximal = tuple(group[0] for group in llama_copy.groups())
    assert set(networks[:6]) == {maximal}
    draws = [set(networks[start : start + 3]) for start in (6, 9, 12, 15)]
    assert all(len(draw) == 1 for draw in draws)
    assert len(set.union(*draws)) == 4
    assert all(w in group[:2] for drawn in networks for w, group in zip(drawn, llama_copy.groups(), strict=True))


def test_logged_loss(llama: TinySource, tmp_path: Path, watched: Watched) -> None:
    """The first step on all examples at once: lora_B is 0, so that the sub-network is the narrowed base."""
    data = write_data(tmp_path / "data.json", EXAMPLES[:8])
    record = run(llama, data, tmp_path / "out", steps=1, batch_size=8, micro_batch_size=2, reorder=False)
    ((_, widths),) = set(watched.passes)
    tokens = [Tokens.of(llama, example) for example in EXAMPLES[:8]]
    expected = cross_entropy(tokens, lambda ids: oracle_logits(llama.base, None, llama.space, list(widths), ids))
    assert record["losses"][0]["loss"] == pytest.approx(expected, abs=1e-4)
