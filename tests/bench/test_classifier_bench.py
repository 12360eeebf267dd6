"""`bench` of a classifier: one pass a text, its latency and sequences a second, in the arms that there are of one."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from optimum.intel import OVModelForSequenceClassification
from peft import PeftModel
from tiny_bert import TinyBert
from transformers import AutoModelForSequenceClassification

from lonas_edge.bench.arms import Arm, Case
from lonas_edge.bench.making import make_arms
from lonas_edge.bench.options import BenchOptions
from lonas_edge.bench.runners import ClassifierRunner, TorchClassifierRunner
from lonas_edge.bench.timing import Timing
from lonas_edge.errors import LonasEdgeError
from lonas_edge.exporting.exported import open_exported

SHORT = ("--rounds", 2, "--starts", 1, "--warmup", 0)
IDS = [[2, 17, 9, 3], [2, 40, 41, 3]]


@pytest.fixture(scope="module")
def exported(tiny_bert: TinyBert, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The heuristic sub-network of the tiny classifier, as an fp32 IR."""
    from lonas_edge.exporting.export import ExportOptions, export

    folder = tmp_path_factory.mktemp("exported") / "subnet"
    source = tiny_bert.source().opened()
    export(source, source.select("heuristic"), folder, ExportOptions("fp32"))
    return folder


def test_arms_side_by_side(
    run_cli: Callable, exported: Path, tiny_bert: TinyBert, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lonas_edge.bench.making.apart", lambda work, *given: work(*given))  # apart: `test_making`
    source = tiny_bert.source()
    given = ("--model", source.base, "--adapter", source.adapter)
    ran = run_cli("bench", exported, *given, *SHORT, "--batch-size", "1,3", "--output", tmp_path / "out", "--json")
    report = json.loads(ran.out)
    assert ran.code == 0, [one["reason"] for one in report["failures"]]
    cases = [{"prompt_len": 64, "new_tokens": 0, "batch_size": batch} for batch in (1, 3)]  # no longer than the context
    assert [(row["arm"], row["case"]) for row in report["rows"]] == [
        (arm, case) for case in cases for arm in ("subnet", "lora", "unpruned")
    ]
    for row in report["rows"]:
        assert (row["ttft"], row["tpot"], row["decode_limit_ms"]) == (None, None, None)
        own = [one for one in report["samples"] if (one["arm"], one["batch_size"]) == (row["arm"], row["case"]["batch_size"])]
        seconds = [one["end_to_end"] for one in own]
        assert len(own) == 2 and all(one["token_times"] == [] and one["ttft"] is None for one in own)
        assert row["generate_duration"]["mean"] == pytest.approx(1e3 * sum(seconds) / 2)
        assert row["throughput"]["mean"] == pytest.approx(row["case"]["batch_size"] * sum(1 / one for one in seconds) / 2)
    assert {one["metric"] for one in report["comparisons"]} == {"generate_duration"}
    frameworks = {arm["name"]: arm["framework"] for arm in report["arms"]}
    assert frameworks == {"subnet": "openvino", "lora": "pytorch", "unpruned": "openvino"}
    assert all(arm["facts"]["kv_precision"] == "" and arm["facts"]["peak_memory_bytes"] for arm in report["arms"])
    names = {file.name for file in (tmp_path / "out").iterdir()}
    assert {"bench.json", "bench.csv", "bench.md", "distributions.png", "speedup.png"} <= names
    told = (tmp_path / "out/bench.md").read_text()
    assert "| arm | latency ms | p90 | sequences/s |" in told and "TPOT" not in told and "KV cache" not in told


def test_what_a_person_sees(run_cli: Callable, exported: Path) -> None:
    ran = run_cli("bench", exported, "--arms", "subnet", "--prompt-len", "16", *SHORT, "--no-memory")
    assert ran.code == 0, ran.err
    assert "16 tokens, batch 1" in ran.out and "sequences/s" in ran.out and "TTFT" not in ran.out


@pytest.mark.parametrize(
    ("options", "code", "told"),
    [
        (["--new-tokens", "8"], 2, "--new-tokens: "),
        (["--kv-precision", "u8"], 2, "--kv-precision: "),
        (["--prompt-len", "65"], 1, "longer than the model's context"),
        (["--tune"], 1, "a sequence classifier; expected a causal language model"),
    ],
)
def test_what_a_classifier_has_not(options: list[str], code: int, told: str, run_cli: Callable, exported: Path) -> None:
    ran = run_cli("bench", exported, *options)
    assert ran.code == code and told in ran.err, ran.err


def test_no_arm_in_llama_cpp(exported: Path, tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    options = BenchOptions(arms=("gguf",), gguf=tmp_path / "model.gguf")
    with pytest.raises(LonasEdgeError, match=r"gguf: llama\.cpp runs language models, and .* is a sequence classifier"):
        make_arms(open_exported(exported), options, lambda *_: None)
    with pytest.raises(LonasEdgeError, match=r"model\.gguf: .* is a sequence classifier"):
        make_arms(open_exported(exported), BenchOptions(arms=(f"{tmp_path}/model.gguf",)), lambda *_: None)


def test_the_ir_is_given_the_text_whole(exported: Path) -> None:
    """The pass that is timed answers what optimum-intel's does: all tokens seen, one segment."""
    runner = ClassifierRunner(
        Arm("subnet", "ir-classifier", exported, "CPU", properties={"INFERENCE_PRECISION_HINT": "f32"}), 1
    )
    timing = runner.run(IDS, 0)
    assert timing.token_times == () and timing.end_to_end > 0
    model = OVModelForSequenceClassification.from_pretrained(exported, ov_config={"INFERENCE_PRECISION_HINT": "f32"})
    ids = torch.tensor(IDS)
    expected = model(input_ids=ids, attention_mask=torch.ones_like(ids), token_type_ids=torch.zeros_like(ids)).logits
    assert np.abs(runner._loaded.get_output_tensor(0).data - np.asarray(expected)).max() < 1e-5


def test_pytorch_has_the_adapter_and_its_head(tiny_bert: TinyBert, monkeypatch: pytest.MonkeyPatch) -> None:
    """The adapter's own classifier answers, not one that was begun at random."""
    source = tiny_bert.source()
    arm = Arm("lora", "torch-classifier", source.base, precision="fp32", adapter=source.adapter, outputs=2)
    runner = TorchClassifierRunner(arm, 1)
    seen = []
    runner._model.register_forward_hook(lambda _module, _inputs, output: seen.append(output.logits))
    assert isinstance(runner.run(IDS, 0), Timing)
    base = AutoModelForSequenceClassification.from_pretrained(source.base, num_labels=2)
    plain = PeftModel.from_pretrained(base, source.adapter).eval()
    with torch.no_grad():
        expected = plain(input_ids=torch.tensor(IDS)).logits
    assert torch.equal(seen[0], expected)
    assert Case(4, 0, 2).__str__() == "4 tokens, batch 2"
