"""`lonas-edge bench` itself, on a tiny exported model: real processes, real openvino_genai and PyTorch, and bad input."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_models import HIDDEN, KV_HEADS, LAYERS, VOCAB, TinyModels, TinySource

from lonas_edge.bench.arms import Arm, Case
from lonas_edge.bench.measure import PromptSource
from lonas_edge.bench.run import find_source, sessions
from lonas_edge.bench.session import run_bytes, too_large
from lonas_edge.bench.worker import ArmFailedError, ArmProcess, Placement
from lonas_edge.errors import LonasEdgeError
from lonas_edge.exporting.export import ExportOptions, export
from lonas_edge.exporting.exported import open_exported
from lonas_edge.space.subnetwork import select

SHORT = ("--prompt-len", "8", "--new-tokens", "4", "--rounds", "2", "--warmup", "1", "--starts", "1")
PLACE = Placement((0,), 1)


@pytest.fixture(scope="module")
def source(tiny_models: TinyModels) -> TinySource:
    return tiny_models.source("llama")


@pytest.fixture(scope="module")
def int8(source: TinySource, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The minimal sub-network of the tiny LLaMA, INT8. Not to be changed."""
    folder, opened = tmp_path_factory.mktemp("bench") / "minimal-int8", source.opened()
    export(opened, select(opened.space, "minimal"), folder, ExportOptions(verify=False))
    return folder


@pytest.fixture
def copy(int8: Path, tmp_path: Path) -> Path:
    """A copy that may be damaged."""
    return Path(shutil.copytree(int8, tmp_path / "copy"))


def given(source: TinySource) -> list[str]:
    return ["--adapter", str(source.adapter), "--model", str(source.base)]


def test_arms_side_by_side(run_cli: Callable, int8: Path, source: TinySource, tmp_path: Path) -> None:
    arguments = ["bench", int8, *given(source), "--arms", "lora,lora-merged", *SHORT, "--prompt-len", "8,16"]
    ran = run_cli(*arguments, "--output", tmp_path / "out", "--json")
    assert ran.code == 0, ran.err
    found = json.loads(ran.out)  # one document and nothing else
    assert found == json.loads((tmp_path / "out/bench.json").read_text())
    assert [arm["name"] for arm in found["arms"]] == ["subnet", "lora", "lora-merged"]
    assert len(found["samples"]) == 3 * 2 * 2 and not found["failures"] and not found["interrupted"]
    assert all(len(sample["token_times"]) == 4 for sample in found["samples"])  # never fewer, EOS or not
    assert {(c["arm"], c["metric"]) for c in found["comparisons"]} == {
        (arm, metric) for arm in ("lora", "lora-merged") for metric in ("ttft", "tpot", "generate_duration")
    }
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert files == {"bench.json", "bench.csv", "bench.md", "distributions.png", "prompt_length.png", "speedup.png"}
    facts = {arm["name"]: arm["facts"] for arm in found["arms"]}
    attention = HIDDEN * (2 * HIDDEN + 2 * HIDDEN * KV_HEADS // 4)  # q and o; k and v of half the heads
    for name, mlp in (("subnet", 64), ("lora-merged", 128)):
        assert facts[name]["macs_per_token"] == LAYERS * (attention + 3 * HIDDEN * mlp) + HIDDEN * VOCAB
    assert facts["lora"]["macs_per_token"] > facts["lora-merged"]["macs_per_token"]
    rows = [HIDDEN, HIDDEN // 2, HIDDEN // 2, HIDDEN, 64, 64, HIDDEN]  # INT8: a scale in fp16 and a zero point a row
    stored = facts["subnet"]["macs_per_token"] + 3 * (LAYERS * sum(rows) + VOCAB)
    assert facts["subnet"]["weight_bytes_per_token"] == stored
    assert facts["lora-merged"]["weight_bytes_per_token"] == 4 * (facts["lora-merged"]["parameters"] - HIDDEN * VOCAB)
    assert all(fact["peak_memory_bytes"] > 1e7 and fact["load_seconds"] > 0 for fact in facts.values())
    assert facts["subnet"]["compile_seconds"] > 0 and facts["subnet"]["kv_precision"] == "u8"


def test_what_a_person_sees(run_cli: Callable, int8: Path, tmp_path: Path) -> None:
    ran = run_cli("bench", int8, "--arms", "subnet", *SHORT, "--no-memory")
    assert ran.code == 0, ran.err
    assert "8+4 tokens, batch 1" in ran.out and "TTFT ms" in ran.out and "AMD" in ran.out + "AMD"
    assert max(map(len, ran.out.splitlines())) <= 80


def test_another_directory_and_a_batch(run_cli: Callable, int8: Path, copy: Path) -> None:
    ran = run_cli("bench", int8, "--arms", f"subnet,{copy}", *SHORT, "--batch-size", "1,3", "--no-memory", "--json")
    assert ran.code == 0, ran.err
    found = json.loads(ran.out)
    assert [arm["name"] for arm in found["arms"]] == ["subnet", "copy"]
    assert {row["case"]["batch_size"] for row in found["rows"]} == {1, 3}


def test_rounds_know_their_start(run_cli: Callable, int8: Path, copy: Path) -> None:
    options = ["--rounds", "7", "--starts", "6", "--warmup", "0", "--no-memory", "--json"]
    ran = run_cli("bench", int8, "--arms", f"subnet,{copy}", *SHORT, *options)
    assert ran.code == 0, ran.err
    found = json.loads(ran.out)
    taken = sorted((s["arm"], s["start"], s["round"]) for s in found["samples"])
    assert taken == [(arm, max(0, number - 1), number) for arm in ("copy", "subnet") for number in range(7)]
    assert all((c["speedup"]["rounds"], c["speedup"]["starts"]) == (7, 6) for c in found["comparisons"])
    ran = run_cli("bench", int8, "--arms", f"subnet,{copy}", *SHORT, "--rounds", "6", "--no-memory", "--json")
    assert any("over the rounds of 1 start" in warning for warning in json.loads(ran.out)["warnings"])


def test_given_properties_reach_every_ir(run_cli: Callable, int8: Path, copy: Path) -> None:
    arguments = ["bench", int8, "--arms", f"subnet,{copy}", *SHORT, "--kv-precision", "f16"]
    found = json.loads(run_cli(*arguments, "--property", "INFERENCE_PRECISION_HINT=f32", "--json").out)
    for arm in found["arms"]:
        assert arm["properties"] == {"KV_CACHE_PRECISION": "f16", "INFERENCE_PRECISION_HINT": "f32"}
        assert arm["facts"]["kv_precision"] == "f16"


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--new-tokens", "0"], "must be 2 or more"),
        (["--new-tokens", "1"], "must be 2 or more"),
        (["--prompt-len", "many"], "expected whole numbers"),
        (["--batch-size", "0"], "must be 1 or more"),
        (["--property", "X"], "expected NAME=VALUE"),
        (["--rounds", "0"], "rounds"),
    ],
)
def test_wrong_usage(run_cli: Callable, int8: Path, options: list[str], told: str) -> None:
    ran = run_cli("bench", int8, "--arms", "subnet", *options)
    assert ran.code == 2 and told in " ".join(ran.err.split())


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--prompt-len", "126"], "126+4 tokens, batch 1: 130 tokens, the context holds 128"),
        (["--device", "TPU"], "--device TPU: not on this machine. Present: CPU, AUTO."),
        (["--device", "AUTO:GPU,CPU"], "--device AUTO:GPU,CPU: not on this machine"),
        (["--threads", "4096"], "--threads 4096: this process may use"),
        (["--arms", "subnet,gguf"], "gguf: --gguf names the file"),
        (["--arms", "subnet,nothing"], "nothing: no such directory"),
        (["--arms", "subnet,lora"], "a directory whose place is not recorded. Name it with --adapter"),
        (["--arms", "subnet,lora", "--adapter", "/nowhere"], "/nowhere: no such directory"),
    ],
)
def test_bad_input(run_cli: Callable, int8: Path, options: list[str], told: str) -> None:
    ran = run_cli("bench", int8, "--arms", "subnet", *SHORT, *options)
    assert (ran.code, ran.out) == (1, "")
    assert told in " ".join(ran.err.split()), ran.err


def test_a_damaged_directory_and_none(run_cli: Callable, copy: Path, source: TinySource) -> None:
    (copy / "openvino_model.bin").write_bytes(b"short")
    assert "expected at least" in run_cli("bench", copy, "--arms", "subnet").err
    assert "expected a directory that `lonas-edge export` wrote" in " ".join(run_cli("bench", source.base).err.split())


def test_an_output_that_exists_is_refused_first(run_cli: Callable, int8: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    ran = run_cli("bench", int8, "--arms", "subnet", *SHORT, "--output", tmp_path / "mine")
    assert ran.code == 1 and "exists and is kept as it is" in ran.err


def test_another_adapter_is_refused(int8: Path, source: TinySource, tiny_models: TinyModels) -> None:
    other = tiny_models.adapter("llama", lora_alpha=4)
    with pytest.raises(LonasEdgeError, match=r"(?s)not exported from these.*adapter: .*adapter_config\.json: expected SHA-256"):
        find_source(open_exported(int8), str(source.base), str(other), None)
    assert find_source(open_exported(int8), str(source.base), str(source.adapter), None).adapter is not None


def test_a_batch_larger_than_memory_keeps_the_other_results(run_cli: Callable, int8: Path) -> None:
    ran = run_cli("bench", int8, "--arms", "subnet", *SHORT, "--batch-size", "1,100000000", "--no-memory", "--json")
    found = json.loads(ran.out)
    assert ran.code == 1  # not all that was asked for
    assert {row["case"]["batch_size"] for row in found["rows"]} == {1}
    assert "not enough memory" in found["failures"][0]["reason"] and "Choose a smaller" in found["failures"][0]["reason"]


def test_memory_of_a_run_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    config = {"num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 64, "intermediate_size": 128, "vocab_size": 100}
    expected = 3 * (2 * 2 * 64 * 12 * 2 + 4 * 8 * (64 + 256) + 400)
    assert run_bytes(config, Case(8, 4, 3)) == expected
    memory = type("Memory", (), {"available": expected - 1})
    monkeypatch.setattr("lonas_edge.bench.session.psutil.virtual_memory", lambda: memory)
    arm = Arm("subnet", "ir", Path(), "CPU")
    assert list(too_large([arm], config, [Case(8, 4, 3), Case(8, 4, 2)])) == [("subnet", Case(8, 4, 3))]


def test_arms_that_do_not_fit_together_are_paired() -> None:
    arms = [Arm(name, "ir", Path(), bytes_estimate=5 * 10**9) for name in ("subnet", "lora", "unpruned")]
    assert [[a.name for a in group] for group in sessions(arms, 30 * 10**9)] == [["subnet", "lora", "unpruned"]]
    assert [[a.name for a in group] for group in sessions(arms, 12 * 10**9)] == [["subnet", "lora"], ["subnet", "unpruned"]]


class TestProcess:
    """An arm's own process."""

    def test_a_killed_process_is_told(self, int8: Path) -> None:
        with ArmProcess(Arm("subnet", "ir", int8, "CPU"), PLACE) as process:
            process.wait_loaded()
            assert len(process.run(PromptSource(VOCAB, 0).next(Case(8, 4)), 4).token_times) == 4
            assert process.pid
            os.kill(process.pid, signal.SIGKILL)
            with pytest.raises(ArmFailedError, match="subnet: its process was killed; most likely memory ran out"):
                process.run([[1, 2]], 4)
            assert not process.alive

    def test_an_arm_that_cannot_be_loaded(self, copy: Path) -> None:
        (copy / "openvino_model.xml").write_text("nonsense</net>")
        with (
            ArmProcess(Arm("subnet", "ir", copy, "CPU"), PLACE) as process,
            pytest.raises(ArmFailedError, match="subnet: RuntimeError"),
        ):
            process.wait_loaded()

    def test_the_prefix_cache_is_off(self, int8: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """By default LLMPipeline answers a repeated prompt from its cache; `benchmarks/bench_of_bench.py` has the seconds."""
        import openvino_genai

        from lonas_edge.bench.runners import GenaiRunner

        seen: dict[str, Any] = {}
        monkeypatch.setattr(openvino_genai, "LLMPipeline", lambda *_args, **options: seen.update(options))
        GenaiRunner(Arm("subnet", "ir", int8, "CPU", properties={"KV_CACHE_PRECISION": "u8"}), 3)
        assert seen["scheduler_config"].enable_prefix_caching is False
        assert seen["scheduler_config"].max_num_batched_tokens > 100_000  # the prompt in one pass
        assert (seen["KV_CACHE_PRECISION"], seen["INFERENCE_NUM_THREADS"]) == ("u8", "3")


def test_ctrl_c_reports_the_rounds_done(int8: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "lonas_edge", "bench", int8, "--arms", "subnet", *SHORT, "--rounds", "100000", "--json"]
    command += ["--output", tmp_path / "out"]
    with subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            deadline = time.monotonic() + 60
            while not loading(process.pid) and time.monotonic() < deadline:
                time.sleep(0.1)
            time.sleep(8)  # it loads in one
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 1, err
    found: dict[str, Any] = json.loads(out)
    assert found["interrupted"] and found["rows"][0]["ttft"]["count"] > 0
    assert "Interrupted" in found["warnings"][0]
    assert "Interrupted" in (tmp_path / "out/bench.md").read_text()


def loading(pid: int) -> bool:
    """Whether the arm's process has its libraries."""
    import psutil

    return any(child.memory_info().rss > 1e8 for child in psutil.Process(pid).children())
