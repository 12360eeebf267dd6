"""The search of run-time properties with made-up latencies, and what it leaves in a real exported directory."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import openvino as ov
import pytest
import torch
from tiny_models import VOCAB

from lonas_edge.bench import tune as module
from lonas_edge.bench.arms import Case
from lonas_edge.bench.measure import Measured, Sample, Schedule
from lonas_edge.bench.timing import Timing
from lonas_edge.exporting.exported import open_exported
from lonas_edge.ir import END_TO_END, runtime

TABLE = {"KV_CACHE_PRECISION": ("u8", "f16"), "INFERENCE_PRECISION_HINT": ("f32",), "ENABLE_CPU_PINNING": ("NO",)}
CASE = Case(8, 3)


@pytest.fixture
def folder(copy: Path) -> Path:
    return copy


@pytest.fixture
def made_up(monkeypatch: pytest.MonkeyPatch) -> Callable[[Mapping[str, float], Mapping[str, float], float], None]:
    """Latencies by property value: each multiplies the default's 10 ms a token and 100 ms to the first."""

    def set_up(tpot: Mapping[str, float], ttft: Mapping[str, float], kl: float) -> None:
        def beside(self, best, tried, schedule: Schedule, _what) -> Measured:
            samples = []
            for name, properties in {module.BEST: best, **tried}.items():
                for number in range(schedule.rounds):
                    first, each = 0.1, 0.01
                    for value in properties.values():
                        first, each = first * ttft.get(value, 1), each * tpot.get(value, 1)
                    noise = 1 + 0.001 * number
                    times = tuple(noise * (first + each * index) for index in range(3))
                    samples.append(Sample(name, CASE, number, Timing(times, times[-1])))
            return Measured(samples)

        monkeypatch.setattr(module._Search, "beside", beside)
        monkeypatch.setattr(module._Search, "kl", lambda _self, properties: kl if "u8" in properties.values() else 0.0)
        monkeypatch.setattr(runtime, "candidates", lambda *_: TABLE)

    return set_up


def search(folder: Path, objective: str = "tpot", rounds: int = 8) -> module.Tuned:
    options = module.TuneOptions(CASE, Schedule(rounds=rounds), threads=1, objective=objective)
    return module.tune(open_exported(folder), options, lambda *_: None)


def test_end_to_end_lets_one_metric_pay_for_the_other(made_up: Callable, folder: Path) -> None:
    # 100 + 2 x 10 ms by default; f32: 110 + 2 x 2 = 114 ms; NO beside it: 110 + 2 x 3.6
    made_up({"f32": 0.2, "NO": 1.8}, {"f32": 1.1001}, 0.0)
    assert verdicts(search(folder))["f32"] == "the other metric grows too much"
    found = search(folder, END_TO_END)
    assert found.properties == {"INFERENCE_PRECISION_HINT": "f32"} and verdicts(found)["NO"] == "not faster"
    assert found.speedups["end-to-end"].ratio == pytest.approx(120 / 114, rel=1e-3)
    assert "end to end 1.05 x" in found.speedup_shown()
    kept = runtime.RuntimeProperties.read(folder / "lonas_edge_runtime.json")
    assert kept.objective == "end-to-end" and set(kept.speedups) == {"tpot", "ttft", "end-to-end"}
    assert "end to end 1.05 x" in (folder / "README.md").read_text()


def verdicts(found: module.Tuned) -> dict[str, str]:
    return {trial.value: trial.verdict for trial in found.trials}


def test_the_fastest_value_of_each_property_is_taken(folder: Path, made_up: Callable) -> None:
    made_up({"u8": 0.8, "f16": 0.9, "f32": 1.3, "NO": 0.95}, {}, 0.001)
    found = search(folder)
    assert found.properties == {"KV_CACHE_PRECISION": "u8", "ENABLE_CPU_PINNING": "NO"}
    assert verdicts(found) == {"u8": "taken", "f16": "another value is faster", "f32": "not faster", "NO": "taken"}
    assert found.speedups["tpot"].ratio == pytest.approx(1 / (0.8 * 0.95))
    assert found.speedups["ttft"].ratio == pytest.approx(1.0)


def test_answers_that_change_are_refused(folder: Path, made_up: Callable) -> None:
    made_up({"u8": 0.5}, {}, 0.021)
    found = search(folder)
    assert found.properties == {} and verdicts(found)["u8"] == "changes the answers"
    assert not (folder / "lonas_edge_runtime.json").exists()


def test_the_other_metric_may_grow_a_little_only(folder: Path, made_up: Callable) -> None:
    made_up({"u8": 0.5}, {"u8": 1.2}, 0.0)
    assert verdicts(search(folder))["u8"] == "the other metric grows too much"
    made_up({"u8": 0.5}, {"u8": 1.05}, 0.0)
    assert verdicts(search(folder))["u8"] == "taken"


def test_too_few_rounds_prove_nothing(folder: Path, made_up: Callable) -> None:
    made_up({"u8": 0.5}, {}, 0.0)
    assert verdicts(search(folder, rounds=5))["u8"] == "not surely faster"


def test_what_is_stored_reaches_stock_clients(folder: Path, made_up: Callable) -> None:
    before = (folder / "openvino_model.xml").read_bytes(), (folder / "README.md").read_text()
    logits = runtime.answers(folder, "CPU", {"INFERENCE_PRECISION_HINT": "f32"}, [[3, 4, 5, 6]])
    assert property_of(folder, "KV_CACHE_PRECISION") == "u8"
    made_up({"f16": 0.8, "NO": 0.9}, {}, 0.001)
    search(folder)
    assert property_of(folder, "KV_CACHE_PRECISION") == "f16"  # by the IR alone
    stored = json.loads((folder / "lonas_edge_runtime.json").read_text())
    assert stored["properties"] == {"KV_CACHE_PRECISION": "f16", "ENABLE_CPU_PINNING": "NO"}
    assert stored["in_ir"] == ["KV_CACHE_PRECISION"]
    assert stored["conditions"]["machine"]["threads"] == 1
    card = (folder / "README.md").read_text()
    assert '**{"ENABLE_CPU_PINNING": "NO"})' in card and "`KV_CACHE_PRECISION=f16`" in card
    assert open_exported(folder).properties == stored["properties"]
    assert not list(folder.glob("*.partial")) and not list(folder.glob(".*"))
    # tuned again, it starts from the defaults; where those are best, nothing is left of the first time
    made_up({"u8": 1.2, "f16": 1.2, "NO": 1.1}, {}, 0.0)
    assert search(folder).properties == {}
    assert not (folder / "lonas_edge_runtime.json").exists()
    assert property_of(folder, "KV_CACHE_PRECISION") == "u8"
    assert (folder / "README.md").read_text() == before[1]
    again = runtime.answers(folder, "CPU", {"INFERENCE_PRECISION_HINT": "f32"}, [[3, 4, 5, 6]])
    assert torch.equal(torch.from_numpy(again), torch.from_numpy(logits))


def property_of(folder: Path, name: str) -> str:
    return ov.Core().compile_model(folder / "openvino_model.xml", "CPU").get_property(name).get_type_name()


def test_answers_a_token_at_a_time_are_those_of_one_pass(folder: Path) -> None:
    from openvino_models import F32, model_logits

    ids = torch.randint(2, VOCAB, (2, 9), generator=torch.Generator().manual_seed(0))
    f32 = {**F32, "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}
    whole = model_logits(ov.Core().read_model(folder / "openvino_model.xml"), ids, f32)
    stepwise = torch.from_numpy(runtime.answers(folder, "CPU", f32, ids.tolist()))
    assert stepwise.shape == whole.shape
    assert (stepwise - whole).abs().max() < 1e-4


def test_candidates_are_those_of_the_device() -> None:
    found = runtime.candidates("CPU", 2, 4)
    assert found["INFERENCE_NUM_THREADS"] == ("1", "4")
    assert "f32" in found["INFERENCE_PRECISION_HINT"]
    assert runtime.candidates("NPU", 2, 4) == {}


def test_for_real(run_cli: Callable, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "candidates", lambda *_: {"ENABLE_CPU_PINNING": ("NO",), "KV_CACHE_PRECISION": ("nonsense",)})
    ran = run_cli(
        "bench", folder, "--tune", "--prompt-len", "8", "--new-tokens", "4", "--rounds", "6", "--warmup", "1", "--json"
    )
    assert ran.code == 0, ran.err
    found = json.loads(ran.out)
    refused = [trial for trial in found["trials"] if trial["value"] == "nonsense"]
    assert refused and refused[0]["verdict"].startswith("refused")
    assert {trial["value"] for trial in found["trials"]} == {"NO", "nonsense"}
    assert bool(found["properties"]) == (folder / "lonas_edge_runtime.json").exists()
