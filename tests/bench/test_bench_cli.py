"""`lonas-edge bench` itself, on a tiny exported model: real processes, real openvino_genai and PyTorch, and bad input."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from tiny_models import HIDDEN, KV_HEADS, LAYERS, VOCAB, TinySource

from lonas_edge.bench.worker import Placement

SHORT = ("--prompt-len", "8", "--new-tokens", "4", "--rounds", "2", "--warmup", "1", "--starts", "1")
PLACE = Placement((0,), 1)


def given(source: TinySource) -> list[str]:
    return ["--adapter", str(source.adapter), "--model", str(source.base)]


def test_arms_side_by_side(run_cli: Callable, int8: Path, source: TinySource, tmp_path: Path) -> None:
    arguments = ["bench", int8, *given(source), "--arms", "lora", *SHORT, "--prompt-len", "8,16"]
    ran = run_cli(*arguments, "--output", tmp_path / "out", "--json")
    assert ran.code == 0, ran.err
    found = json.loads(ran.out)  # one document and nothing else
    assert found == json.loads((tmp_path / "out/bench.json").read_text())
    assert [arm["name"] for arm in found["arms"]] == ["subnet", "lora"]
    assert len(found["samples"]) == 2 * 2 * 2 and not found["failures"] and not found["interrupted"]
    assert all(len(sample["token_times"]) == 4 for sample in found["samples"])  # never fewer, EOS or not
    assert {(c["arm"], c["metric"]) for c in found["comparisons"]} == {
        ("lora", metric) for metric in ("ttft", "tpot", "generate_duration")
    }
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert files == {"bench.json", "bench.csv", "bench.md", "distributions.png", "prompt_length.png", "speedup.png"}
    facts = {arm["name"]: arm["facts"] for arm in found["arms"]}
    assert facts["subnet"]["macs_per_token"] == macs(64) and facts["lora"]["macs_per_token"] > macs(128)
    rows = [HIDDEN, HIDDEN // 2, HIDDEN // 2, HIDDEN, 64, 64, HIDDEN]  # INT8: a scale in fp16 and a zero point a row
    stored = facts["subnet"]["macs_per_token"] + 3 * (LAYERS * sum(rows) + VOCAB)
    assert facts["subnet"]["weight_bytes_per_token"] == stored
    assert all(fact["peak_memory_bytes"] > 1e7 and fact["load_seconds"] > 0 for fact in facts.values())
    assert facts["subnet"]["compile_seconds"] > 0 and facts["subnet"]["kv_precision"] == "u8"


def test_what_a_person_sees(run_cli: Callable, int8: Path, copy: Path) -> None:
    ran = run_cli("bench", int8, "--arms", copy, *SHORT, "--no-memory")
    assert ran.code == 0, ran.err
    lines = [line.split() for line in ran.out.splitlines()]
    assert ["8+4", "tokens,", "batch", "1"] in lines
    for name in ("subnet", "copy"):
        latency, arm = (line for line in lines if line[:1] == [name] and line[1:2] != ["over"] and "x" not in line)
        assert all(float(cell) > 0 for cell in latency[1:6]) and latency[6].endswith("%")
        assert arm[1:4] == ["openvino", "int8,", "u8"] and float(arm[-1]) > 0  # no compile time beside that of loading
    (gain,) = (line for line in lines if line[:1] == ["copy"] and "x" in line)
    assert gain[2::2] == ["x", "x", "x"] and all(float(ratio) > 0 for ratio in gain[1::2])
    info = Path("/proc/cpuinfo").read_text().splitlines()
    processor = next(line.split(":", 1)[1].strip() for line in info if line.startswith("model name"))
    told = " ".join(ran.out.split())
    flags = next(line.split() for line in info if line.startswith("flags"))
    known = ("avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16")
    able = f" ({', '.join(name for name in known if name in flags)})" if set(known) & set(flags) else ""
    assert f"{processor}{able}, " in told and "2 rounds in 1 starts, 1 warm-ups each" in told
    assert "warning: 2 rounds give no 95 % interval; 6 are the least." in told
    assert "…" not in ran.out  # nothing is cut off on a terminal of 80 columns


def test_without_memory_the_rest_is_known(run_cli: Callable, int8: Path, source: TinySource) -> None:
    """Only what a run of its own gives is missing."""
    ran = run_cli("bench", int8, *given(source), "--arms", "lora-merged", *SHORT, "--no-memory", "--json")
    found = json.loads(ran.out)
    files = {"subnet": [*int8.glob("openvino_model.*")]}
    files["lora-merged"] = [*source.base.glob("*.safetensors"), source.adapter / "adapter_model.safetensors"]
    sizes = json.loads((int8 / "lonas_edge.json").read_text())["sizes"]
    for arm, kind, kv in zip(found["arms"], ("subnetwork", "unpruned"), ("u8", "f32"), strict=True):
        facts = arm["facts"]
        assert facts["disk_bytes"] == sum(file.stat().st_size for file in files[arm["name"]])
        assert (facts["macs_per_token"], facts["kv_precision"]) == (macs({"subnet": 64}.get(arm["name"], 128)), kv)
        assert facts["parameters"] == sizes[kind]["parameters"] and facts["weight_bytes_per_token"] > facts["macs_per_token"]
        assert facts["peak_memory_bytes"] is facts["compile_seconds"] is None and facts["load_seconds"] > 0
    assert facts["weight_bytes_per_token"] == 4 * (facts["parameters"] - HIDDEN * VOCAB)  # of lora-merged, in fp32
    assert [row["decode_share_of_limit"] > 0 for row in found["rows"]] == [True, True]


def macs(mlp: int) -> int:
    """Of one token: q and o; k and v of half the heads; three matrices of the MLP; the head."""
    attention = HIDDEN * (2 * HIDDEN + 2 * HIDDEN * KV_HEADS // 4)
    return LAYERS * (attention + 3 * HIDDEN * mlp) + HIDDEN * VOCAB


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
        *[
            (["--tune", *option], f"{option[0]}: does nothing with --tune")
            for option in (
                *(["--arms", "subnet"], ["--property", "A=B"], ["--kv-precision", "u8"], ["--output", "x"], ["--gguf", "x"]),
                *(["--model", "x"], ["--adapter", "x"], ["--revision", "x"], ["--torch-dtype", "bf16"], ["--overwrite"]),
                ["--torch-device", "cpu"],
            )
        ],
        (["--tune", "--no-memory"], "--memory/--no-memory: does nothing with --tune"),
        (["--tune", "--prompt-len", "8,16"], "--tune is at one length and batch size"),
        (["--tune", "--batch-size", "1,2"], "--tune is at one length and batch size"),
        (["--objective", "ttft"], "--objective: goes with --tune"),
        (["--tolerance", "0.1"], "--tolerance: goes with --tune"),
        (["--overwrite"], "--overwrite: goes with --output"),
        (["--gguf", "x"], "--gguf: goes with --arms gguf"),
        (["--arms", "unpruned", "--torch-dtype", "fp32"], "--torch-dtype: goes with --arms lora or lora-merged"),
        (["--arms", "unpruned", "--torch-device", "cpu"], "--torch-device: goes with --arms lora or lora-merged"),
        (["--arms", "subnet", "--model", "x"], "--model: goes with --arms lora or lora-merged or unpruned"),
        (["--arms", "subnet", "--adapter", "x"], "--adapter: goes with"),
        (["--arms", "subnet", "--revision", "x"], "--revision: goes with"),
        (["--device", "NPU", "--kv-precision", "u8"], "--kv-precision: is not for an NPU"),
        (["--property", "KV_CACHE_PRECISION=u8", "--kv-precision", "u8"], "--kv-precision: --property says it"),
    ],
)
def test_what_would_do_nothing_is_wrong_usage(run_cli: Callable, int8: Path, options: list[str], told: str) -> None:
    ran = run_cli("bench", int8, *options)
    assert (ran.code, ran.out) == (2, "")
    assert told in " ".join(ran.err.split()), ran.err


@pytest.mark.parametrize(
    ("options", "module", "told"),
    [
        ([], "openvino_genai", "openvino-genai is not installed; pip install 'lonas-edge[bench]'"),
        (["--tune"], "openvino_genai", "openvino-genai is not installed; pip install 'lonas-edge[bench]'"),
        ([], "matplotlib", "matplotlib is not installed; pip install 'lonas-edge[bench]'"),
        (["--arms", "gguf", "--gguf", "x"], "llama_cpp", "llama-cpp is not installed; pip install 'lonas-edge[llama-cpp]'"),
        (["--arms", "subnet,x.gguf"], "llama_cpp", "llama-cpp is not installed; pip install 'lonas-edge[llama-cpp]'"),
    ],
)
def test_an_extra_that_is_missing(
    run_cli: Callable, int8: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], module: str, told: str
) -> None:
    for name in ("openvino_genai", "matplotlib", "llama_cpp", "gguf"):
        monkeypatch.setitem(sys.modules, name, None if name == module else ModuleSpecced(name))
    ran = run_cli("bench", int8, *options)
    assert (ran.code, ran.out) == (1, "")
    assert f"error: {told}" in " ".join(ran.err.split()), ran.err


class ModuleSpecced(ModuleType):
    """As if it were installed."""

    def __init__(self, name: str):
        super().__init__(name)
        self.__spec__ = ModuleSpec(name, None)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--prompt-len", "126"], "126+4 tokens, batch 1: 130 tokens, the context holds 128"),
        (["--device", "TPU"], "--device TPU: not on this machine. Present: CPU, AUTO."),
        (["--device", "AUTO:GPU,CPU"], "--device AUTO:GPU,CPU: not on this machine"),
        (["--threads", "4096"], "--threads 4096: this process may use"),
        (
            ["--arms", "subnet,nothing"],
            "nothing: neither an arm (subnet, lora, lora-merged, unpruned, huge-pages, draft, gguf), a directory",
        ),
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


def test_a_home_is_known(run_cli: Callable, copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(copy.parent))
    (copy.parent / "mine").write_text("mine")
    ran = run_cli("bench", "~/copy", "--arms", "subnet,~/nothing", *SHORT)
    assert f"{copy.parent}/nothing: neither an arm" in "".join(ran.err.split("\n"))
    assert "already exists" in run_cli("bench", "~/copy", "--arms", "subnet", "--output", "~/mine").err


def test_an_output_that_exists_is_refused_first(run_cli: Callable, int8: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    ran = run_cli("bench", int8, "--arms", "subnet", *SHORT, "--output", tmp_path / "mine")
    assert ran.code == 1 and "already exists" in ran.err


def test_a_batch_larger_than_memory_keeps_the_other_results(run_cli: Callable, int8: Path) -> None:
    ran = run_cli("bench", int8, "--arms", "subnet", *SHORT, "--batch-size", "1,100000000", "--no-memory", "--json")
    found = json.loads(ran.out)
    assert ran.code == 1  # not all that was asked for
    assert {row["case"]["batch_size"] for row in found["rows"]} == {1}
    assert "not enough memory" in found["failures"][0]["reason"] and "Choose a smaller" in found["failures"][0]["reason"]


@pytest.mark.slow
def test_ctrl_c_reports_the_rounds_done(int8: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "lonas_edge", "bench", int8, "--arms", "subnet", *SHORT, "--rounds", "100000", "--json"]
    command += ["--output", tmp_path / "out"]
    with subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            deadline, before = time.monotonic() + 120, None
            while (before is None or own(process.pid) < before + 4) and time.monotonic() < deadline:
                time.sleep(0.1)
                if before is None and computed(process.pid) > 1:
                    before = own(process.pid)
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 1, err
    found: dict[str, Any] = json.loads(out)
    assert found["interrupted"] and found["rows"][0]["ttft"]["count"] > 0
    assert "Interrupted" in found["warnings"][0]
    assert "Interrupted" in (tmp_path / "out/bench.md").read_text()


def own(pid: int) -> float:
    """Processor seconds of the parent's: while an arm is loaded it waits, and beside every round it measures the memory."""
    import psutil

    return float(psutil.Process(pid).cpu_times().user)


def computed(pid: int) -> float:
    """Processor seconds of the arm's process."""
    import psutil

    return max((child.cpu_times().user for child in psutil.Process(pid).children()), default=0.0)
