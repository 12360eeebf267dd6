"""Memory of KV caches and of generations, by hand."""

import json
from pathlib import Path

import pytest

from lonas_edge.bench.arms import Arm, Case
from lonas_edge.bench.memory import config_of, kv_bytes, run_bytes
from lonas_edge.bench.session import too_large

SMOLLM2 = {
    "model_type": "llama",
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "hidden_size": 576,
}


def test_memory_of_a_run_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    config = {"model_type": "llama", "num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 64}
    config |= {"intermediate_size": 128, "vocab_size": 100}
    expected = 3 * (2 * 2 * 64 * 12 * 2 + 4 * 8 * (64 + 256) + 400)
    assert run_bytes(config, Case(8, 4, 3)) == expected
    memory = type("Memory", (), {"available": expected - 1})
    monkeypatch.setattr("lonas_edge.bench.session.psutil.virtual_memory", lambda: memory)
    arm = Arm("subnet", "ir", Path(), "CPU")
    assert list(too_large([arm], config, [Case(8, 4, 3), Case(8, 4, 2)])) == [("subnet", Case(8, 4, 3))]


def test_kv_cache_of_smollm2_by_hand() -> None:
    assert kv_bytes(SMOLLM2, 100, "f16") == 2 * 30 * 192 * 100 * 2
    assert kv_bytes(SMOLLM2, 100, "f32") == 2 * kv_bytes(SMOLLM2, 100, "f16") == 4 * kv_bytes(SMOLLM2, 100, "u8")
    assert kv_bytes({**SMOLLM2, "head_dim": 128}, 1, "f16") == 2 * 30 * 3 * 128 * 2


def test_each_arm_has_its_own_cache(tmp_path: Path) -> None:
    """Half of the layers have no attention in one arm's model."""
    config = {**SMOLLM2, "removed_blocks": [f"model.layers.{layer}.self_attn" for layer in range(15)]}
    for name, content in (("cut", config), ("whole", SMOLLM2)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(content))
    cut, whole = (config_of(Arm(name, "ir", tmp_path / name), SMOLLM2) for name in ("cut", "whole"))
    assert kv_bytes(whole, 100, "f16") == 2 * kv_bytes(cut, 100, "f16")
    assert config_of(Arm("gguf", "gguf", tmp_path / "a.gguf"), SMOLLM2) is SMOLLM2
