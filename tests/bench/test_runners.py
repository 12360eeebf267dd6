"""Runners in this process: openvino_genai, OpenVINO and PyTorch; what they pass to the libraries; their facts."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import openvino_genai
import pytest
import torch
from optimum.intel import OVModelForSequenceClassification
from peft import PeftModel
from tiny_bert import TinyBert, oracle_hidden, oracle_logits
from tiny_models import TinySource
from transformers import AutoModelForCausalLM

from lonas_edge.bench.runners import (
    ClassifierRunner,
    GenaiRunner,
    TorchClassifierRunner,
    TorchRunner,
    generate_greedy,
    timing_of_genai,
)
from lonas_edge.bench.variants import Timing, Variant
from lonas_edge.exporting.export import ExportOptions, export
from lonas_edge.network.source import open_source

IDS = [[5, 6, 7, 8], [9, 10, 11, 12]]


def check(timing: Timing, new_tokens: int) -> None:
    assert len(timing.token_times) == new_tokens  # never fewer: the end token does not stop it
    assert list(timing.token_times) == sorted(timing.token_times) and 0 < timing.ttft <= timing.end_to_end


def test_openvino_genai(int8: Path) -> None:
    runner = GenaiRunner(Variant("subnet", "ir", int8, "CPU", properties={"KV_CACHE_PRECISION": "f16"}), 1)
    check(runner.run(IDS, 4), 4)
    facts = runner.facts()
    assert facts == {
        "disk_bytes": sum(file.stat().st_size for file in int8.glob("openvino_model.*")),
        "kv_precision": "f16",
    }


@pytest.mark.parametrize("merged", [False, True])
def test_pytorch(source: TinySource, merged: bool) -> None:
    runner = TorchRunner(Variant("lora", "torch", source.base, "cpu", "fp32", source.adapter, merged), 1)
    logits = []
    runner._model.register_forward_hook(lambda _module, _inputs, output: logits.append(output.logits[:, -1]))
    check(runner.run(IDS, 4), 4)
    base = AutoModelForCausalLM.from_pretrained(source.base, dtype=torch.float32)
    parameters = sum(p.numel() for p in base.parameters())
    model, ids = PeftModel.from_pretrained(base, source.adapter).eval(), torch.tensor(IDS)
    for seen in logits:  # without a KV cache
        with torch.no_grad():
            expected = model(input_ids=ids).logits[:, -1]
        assert torch.allclose(seen, expected, atol=1e-4)
        ids = torch.cat([ids, expected.argmax(-1, keepdim=True)], 1)
    assert len(logits) == 4
    facts = runner.facts()
    assert facts["kv_precision"] == "f32" and (facts["parameters"] == parameters) is merged
    files = [*source.base.glob("*.safetensors"), source.adapter / "adapter_model.safetensors"]
    assert facts["disk_bytes"] == sum(file.stat().st_size for file in files)


def test_an_ir_classifier(tiny_bert: TinyBert, tmp_path: Path) -> None:
    """One pass: all tokens attended, one segment, as in optimum-intel."""
    opened = tiny_bert.source().opened()
    export(opened, opened.select("minimal"), tmp_path / "ir", ExportOptions("int8", verify=False))
    f32 = {"INFERENCE_PRECISION_HINT": "f32"}
    runner = ClassifierRunner(Variant("subnet", "ir-classifier", tmp_path / "ir", "CPU", properties=f32), 1)
    timing = runner.run(IDS, 0)
    assert timing.token_times == () and timing.end_to_end > 0
    model = OVModelForSequenceClassification.from_pretrained(tmp_path / "ir", ov_config=f32)
    ids = torch.tensor(IDS)
    expected = model(input_ids=ids, attention_mask=torch.ones_like(ids), token_type_ids=torch.zeros_like(ids)).logits
    assert np.abs(runner._loaded.get_output_tensor(0).data - np.asarray(expected)).max() < 1e-5
    assert runner.facts()["kv_precision"] == ""


@pytest.mark.parametrize("task", ["classifier", "embedding"])
def test_an_encoder_with_unequal_layers(task: str, tiny_bert: TinyBert, materialize: Callable[..., Path]) -> None:
    """transformers' class cannot open it: MLPs of three widths."""
    source = tiny_bert.source(2, headless=False) if task == "classifier" else tiny_bert.embedder()
    widths = [64, 64, 64, 8, 8, 8, 96, 64, 128]
    base = materialize(open_source(str(source.base), nncf_config=source.space), widths)
    if task == "embedding":
        shutil.copyfile(source.base / "modules.json", base / "modules.json")
        shutil.copytree(source.base / "1_Pooling", base / "1_Pooling")
    adapter = {"precision": "fp32", "adapter": source.adapter}
    runner, found = TorchClassifierRunner(Variant("lora", "torch-classifier", base, **adapter), 1), []
    runner._model.register_forward_hook(lambda _module, _inputs, output: found.append(output))
    assert runner.run(IDS, 0).end_to_end > 0
    ids = torch.tensor(IDS)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "token_type_ids": torch.zeros_like(ids)}
    if task == "classifier":
        actual, expected = found[0].logits, oracle_logits(source.base, source.adapter, source.space, widths, inputs)
    else:
        actual, expected = found[0].last_hidden_state, oracle_hidden(source, widths, inputs)
    assert (actual - expected).abs().max() < 1e-4


@pytest.fixture
def pipeline(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Options of the last `LLMPipeline`."""
    options: dict[str, Any] = {}
    monkeypatch.setattr(openvino_genai, "LLMPipeline", lambda *_arguments, **given: options.update(given))
    return options


def test_the_prefix_cache_is_off(int8: Path, pipeline: dict[str, Any]) -> None:
    GenaiRunner(Variant("subnet", "ir", int8, "CPU", properties={"KV_CACHE_PRECISION": "u8"}), 3)
    assert pipeline["scheduler_config"].enable_prefix_caching is False
    assert pipeline["scheduler_config"].max_num_batched_tokens > 100_000  # the prompt in one pass
    assert (pipeline["KV_CACHE_PRECISION"], pipeline["INFERENCE_NUM_THREADS"]) == ("u8", "3")


def test_an_npu_gets_numbers_and_no_scheduler(int8: Path, pipeline: dict[str, Any]) -> None:
    """openvino_genai refuses lengths as text, and its static pipeline has no scheduler. It was never run on an NPU."""
    properties = {"MAX_PROMPT_LEN": "48", "MIN_RESPONSE_LEN": "8", "GENERATE_HINT": "BEST_PERF"}
    GenaiRunner(Variant("subnet", "ir", int8, "NPU", properties=properties), 2)
    expected = {"MAX_PROMPT_LEN": 48, "MIN_RESPONSE_LEN": 8, "GENERATE_HINT": "BEST_PERF", "PERFORMANCE_HINT": "LATENCY"}
    assert pipeline == expected


def test_greedy_generation_records_known_durations() -> None:
    """The clock is an injected one."""
    now, durations = [100.0], iter([0.010, 0.020, 0.030])
    seen: list[int] = []

    def prefill() -> int:
        now[0] += 0.5
        return 1

    def decode(token: int) -> int:
        seen.append(token)
        now[0] += next(durations)
        return token + 1

    timing = generate_greedy(prefill, decode, 4, lambda: now[0])
    assert seen == [1, 2, 3]  # each token is the input of the next step
    assert timing.token_times == pytest.approx((0.5, 0.51, 0.53, 0.56))
    assert (timing.ttft, timing.tpot, timing.end_to_end) == pytest.approx((0.5, 0.02, 0.56))  # the mean of the three


def test_units_of_openvino_genai() -> None:
    """m_times_to_first_token is in microseconds, m_new_token_times in milliseconds on another clock."""
    timing = timing_of_genai(250_000.0, [9_000.0, 9_010.0, 9_030.0], 0.3, 3)
    assert timing.ttft == pytest.approx(0.25)
    assert timing.tpot == pytest.approx(0.015)
    assert timing.token_times == pytest.approx((0.25, 0.26, 0.28))


def test_a_step_of_a_draft_has_several_tokens() -> None:
    """TPOT is the time between first and last step over the tokens between them."""
    timing = timing_of_genai(250_000.0, [9_000.0, 9_010.0, 9_040.0], 0.3, 5)
    assert timing.token_times == pytest.approx((0.25, 0.26, 0.27, 0.28, 0.29))
    assert (timing.ttft, timing.tpot) == pytest.approx((0.25, 0.01))
