"""Precisions, gradient checkpointing, CUDA."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from oracle import oracle_logits
from tiny_models import TinySource
from training_runs import difference, logits_of, run, run_killed, tensors_of

from lonas_edge.network.source import open_source
from lonas_edge.network.super_network import load_super_network


def test_bf16_on_a_cpu(llama: TinySource, data: Path, tmp_path: Path, choose: Callable, ids: torch.Tensor, watched) -> None:
    record = run(llama, data, tmp_path / "out", dtype="bf16", warmup_steps=0)
    assert record["precision"] == "bf16"
    losses = [entry["loss"] for entry in record["losses"]]
    assert all(map(math.isfinite, losses))
    assert losses[-1] < losses[0]
    assert watched.autocast == {torch.bfloat16}
    assert {p.dtype for p in watched.model.parameters() if not p.requires_grad} == {torch.bfloat16}
    assert {p.dtype for _, p in watched.parameters()} == {torch.float32}  # the optimizer's steps are not rounded away
    assert {tensor.dtype for tensor in tensors_of(tmp_path / "out").values()} == {torch.float32}
    widths = choose(llama, "unequal:6")
    network = load_super_network(open_source(str(tmp_path / "out")))
    network.activate(widths)
    expected = oracle_logits(llama.base, tmp_path / "out", llama.space, widths, ids)
    assert (logits_of(network.model, ids) - expected).abs().max() < 1e-4


@pytest.mark.parametrize("changes", [{}, {"weight_format": "int4_sym"}])
def test_gradient_checkpointing_changes_nothing(changes, llama: TinySource, data: Path, tmp_path: Path, monkeypatch) -> None:
    run(llama, data, tmp_path / "plain", steps=4, **changes)
    calls = []
    checkpoint = torch.utils.checkpoint.checkpoint
    monkeypatch.setattr("transformers.modeling_utils.checkpoint", lambda *a, **k: calls.append(1) or checkpoint(*a, **k))
    run(llama, data, tmp_path / "checkpointed", steps=4, gradient_checkpointing=True, **changes)
    assert difference(tmp_path / "plain", tmp_path / "checkpointed") < 1e-5
    assert len(calls) >= 4 * 3  # every layer


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device (and CUDA_VISIBLE_DEVICES)")
@pytest.mark.parametrize("changes", [{}, {"gradient_checkpointing": True}, {"weight_format": "int4_sym"}])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_cuda(
    precision: str, changes: dict[str, Any], llama: TinySource, data: Path, tmp_path: Path, choose: Callable, ids
) -> None:
    output = tmp_path / "out"
    record = run(llama, data, output, device="cuda", dtype=precision, warmup_steps=0, micro_batch_size=2, **changes)
    assert record["precision"] == precision
    assert record["device"] == torch.cuda.get_device_name()
    losses = [entry["loss"] for entry in record["losses"]]
    assert all(map(math.isfinite, losses))
    assert losses[-1] < losses[0]
    network = load_super_network(open_source(str(output)))
    for name in ("heuristic", "minimal", "unequal:6"):
        widths = choose(llama, name)
        network.activate(widths)
        expected = oracle_logits(llama.base, output, llama.space, widths, ids)
        assert (logits_of(network.model, ids) - expected).abs().max() < 1e-4, name


@pytest.mark.parametrize(("bf16", "expected"), [(6e11, "bf16"), (1e11, "fp32")])
def test_auto_takes_the_faster_precision_and_keeps_it(
    bf16: float, expected: str, llama: TinySource, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A resumed training keeps its precision, even if the measurement changes."""
    speeds = {"fp32": 1e11, "bf16": bf16}
    monkeypatch.setattr("lonas_edge.network.modeling.matrix_speed", lambda dtype, _size: speeds[dtype])
    run_killed(llama, data, tmp_path / "out", at=5, dtype="auto")
    speeds["bf16"] = 7e11 - bf16
    record = run(llama, data, tmp_path / "out", resume=True, dtype="auto")
    assert (record["precision"], record["resumed_from_step"]) == (expected, 3)
