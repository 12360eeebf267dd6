"""The search of runtime properties with made-up latencies, and what it stores in a real exported directory."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import openvino as ov
import pytest
import torch
from fake_variants import Fakes
from tiny_models import VOCAB

from lonas_edge.bench import tune as module
from lonas_edge.bench.measure import Schedule
from lonas_edge.bench.options import TuneOptions
from lonas_edge.bench.variants import Case, Variant
from lonas_edge.bench.worker import VariantFailedError
from lonas_edge.errors import LonasEdgeError
from lonas_edge.exporting.exported import open_exported
from lonas_edge.ir import END_TO_END, runtime

TABLE = {"KV_CACHE_PRECISION": ("u8", "f16"), "INFERENCE_PRECISION_HINT": ("f32",), "ENABLE_CPU_PINNING": ("NO",)}


@pytest.fixture
def folder(copy: Path) -> Path:
    return copy


@pytest.fixture
def made_up(monkeypatch: pytest.MonkeyPatch, fakes: Fakes) -> Callable[[Mapping[str, float], Mapping[str, float], float], None]:
    """Set TPOT and TTFT factors by property value (over 10 and 100 ms), and the KL divergence of u8."""

    def set_up(tpot: Mapping[str, float], ttft: Mapping[str, float], kl: float) -> None:
        def times(variant: Variant) -> tuple[float, float]:
            first, each = 0.1, 0.01
            for value in variant.properties.values():
                first, each = first * ttft.get(value, 1), each * tpot.get(value, 1)
            return first, each

        fakes.times = times
        monkeypatch.setattr(module._Search, "kl", lambda _self, properties: kl if "u8" in properties.values() else 0.0)
        monkeypatch.setattr(runtime, "candidates", lambda *_: TABLE)

    return set_up


def search(folder: Path, objective: str = "tpot", rounds: int = 8) -> module.Tuned:
    options = TuneOptions(Case(8, 3), Schedule(rounds, 8, 0), threads=1, objective=objective)
    return module.tune(open_exported(folder), options, lambda *_: None)


def verdicts(tuned: module.Tuned) -> dict[str, str]:
    return {trial.value: trial.verdict for trial in tuned.trials}


def test_the_fastest_value_of_each_property_is_chosen(folder: Path, made_up: Callable, fakes: Fakes) -> None:
    made_up({"u8": 0.8, "f16": 0.9, "f32": 1.3, "NO": 0.95}, {}, 0.001)
    tuned = search(folder)
    assert tuned.properties == {"KV_CACHE_PRECISION": "u8", "ENABLE_CPU_PINNING": "NO"}
    assert verdicts(tuned) == {"u8": "chosen", "f16": "another value is faster", "f32": "not faster", "NO": "chosen"}
    assert tuned.ratios["tpot"].value == pytest.approx(0.8 * 0.95)
    assert tuned.ratios["ttft"].value == pytest.approx(1.0)
    assert "TPOT 0.76x [0.76, 0.76]" in tuned.summary() and "mean KL 0.0010 nats" in tuned.summary()
    assert {"KV_CACHE_PRECISION": "u8", "INFERENCE_PRECISION_HINT": "f32"} in [v.properties for v in fakes.started]


def test_end_to_end_includes_both_metrics(made_up: Callable, folder: Path) -> None:
    # 100 + 2 x 10 ms by default; f32: 110 + 2 x 2 = 114 ms; NO in addition: 110 + 2 x 3.6
    made_up({"f32": 0.2, "NO": 1.8}, {"f32": 1.1001}, 0.0)
    assert verdicts(search(folder))["f32"] == "TTFT grows by more than 10%"
    tuned = search(folder, END_TO_END)
    assert tuned.properties == {"INFERENCE_PRECISION_HINT": "f32"} and verdicts(tuned)["NO"] == "not faster"
    assert tuned.ratios["end-to-end"].value == pytest.approx(114 / 120, rel=1e-3)
    stored = runtime.RuntimeProperties.read(folder / "lonas_edge_runtime.json")
    assert stored.objective == "end-to-end" and set(stored.ratios) == {"tpot", "ttft", "end-to-end"}
    assert "end to end 0.95x" in (folder / "README.md").read_text()


def test_values_that_are_refused(folder: Path, made_up: Callable, fakes: Fakes) -> None:
    made_up({"u8": 0.5}, {}, 0.021)
    tuned = search(folder)
    assert tuned.properties == {} and verdicts(tuned)["u8"] == "KL above 0.02"
    assert not (folder / "lonas_edge_runtime.json").exists()
    made_up({"u8": 0.5}, {}, float("nan"))
    assert verdicts(search(folder))["u8"] == "KL above 0.02"
    made_up({"u8": 0.5}, {"u8": 1.2}, 0.0)
    assert verdicts(search(folder))["u8"] == "TTFT grows by more than 10%"
    made_up({"u8": 0.5}, {"u8": 1.05}, 0.0)
    assert verdicts(search(folder))["u8"] == "chosen"
    made_up({"u8": 0.5}, {}, 0.0)
    assert verdicts(search(folder, rounds=5))["u8"] == "not significantly faster"  # too few rounds
    fakes.fails["u8", "load"] = VariantFailedError("nonsense")
    assert verdicts(search(folder))["u8"] == "refused: u8: nonsense"


def test_defaults_that_fail(folder: Path, made_up: Callable, fakes: Fakes) -> None:
    """Without a baseline there is nothing to compare with; properties that fail together are not stored."""
    made_up({"u8": 0.5}, {}, 0.0)
    fakes.fails[module.BEST, "load"] = VariantFailedError("SIGFPE")
    with pytest.raises(LonasEdgeError, match=r"does not run with the default properties: .*SIGFPE"):
        search(folder)
    fakes.fails = {("tuned", "load"): VariantFailedError("too much")}
    with pytest.raises(LonasEdgeError, match=r"do not work together: .*KV_CACHE_PRECISION.*too much"):
        search(folder)
    assert not (folder / "lonas_edge_runtime.json").exists()


def test_stock_clients_use_stored_properties(folder: Path, made_up: Callable) -> None:
    before = (folder / "openvino_model.xml").read_bytes(), (folder / "README.md").read_text()
    logits = runtime.answers(folder, "CPU", {"INFERENCE_PRECISION_HINT": "f32"}, [[3, 4, 5, 6]])
    assert property_of(folder, "KV_CACHE_PRECISION") == "u8"
    made_up({"f16": 0.8, "NO": 0.9}, {}, 0.001)
    search(folder)
    assert property_of(folder, "KV_CACHE_PRECISION") == "f16"  # from the IR alone
    stored = json.loads((folder / "lonas_edge_runtime.json").read_text())
    assert stored["properties"] == {"KV_CACHE_PRECISION": "f16", "ENABLE_CPU_PINNING": "NO"}
    assert stored["in_ir"] == ["KV_CACHE_PRECISION"]
    assert stored["conditions"]["machine"]["threads"] == 1
    card = (folder / "README.md").read_text()
    assert '**{"ENABLE_CPU_PINNING": "NO"})' in card and "`KV_CACHE_PRECISION=f16`" in card
    assert open_exported(folder).properties == stored["properties"]
    assert not list(folder.glob("*.partial")) and not list(folder.glob(".*"))
    # a second search starts from the defaults; if they are best, it removes the stored properties
    made_up({"u8": 1.2, "f16": 1.2, "NO": 1.1}, {}, 0.0)
    assert search(folder).properties == {}
    assert not (folder / "lonas_edge_runtime.json").exists()
    assert property_of(folder, "KV_CACHE_PRECISION") == "u8"
    assert (folder / "README.md").read_text() == before[1]
    again = runtime.answers(folder, "CPU", {"INFERENCE_PRECISION_HINT": "f32"}, [[3, 4, 5, 6]])
    assert torch.equal(torch.from_numpy(again), torch.from_numpy(logits))


def property_of(folder: Path, name: str) -> str:
    return ov.Core().compile_model(folder / "openvino_model.xml", "CPU").get_property(name).get_type_name()


def test_logits_token_by_token_equal_those_of_one_pass(folder: Path) -> None:
    from openvino_models import F32, model_logits

    ids = torch.randint(2, VOCAB, (2, 9), generator=torch.Generator().manual_seed(0))
    f32 = {**F32, "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}
    expected = model_logits(ov.Core().read_model(folder / "openvino_model.xml"), ids, f32)
    stepwise = torch.from_numpy(runtime.answers(folder, "CPU", f32, ids.tolist()))
    assert stepwise.shape == expected.shape
    assert (stepwise - expected).abs().max() < 1e-4


def test_candidates_are_those_of_the_device() -> None:
    candidates = runtime.candidates("CPU", 2, 4)
    assert candidates["INFERENCE_NUM_THREADS"] == ("1", "4")
    assert "f32" in candidates["INFERENCE_PRECISION_HINT"]
    assert runtime.candidates("NPU", 2, 4) == {}
