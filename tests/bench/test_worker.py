"""An arm's own process, and the same on systems that are not Linux."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
from systems import KILL
from tiny_models import VOCAB

from lonas_edge.bench.arms import Arm, Case
from lonas_edge.bench.measure import PromptSource
from lonas_edge.bench.worker import ArmFailedError, ArmProcess, Placement, apart
from lonas_edge.errors import LonasEdgeError

PLACE = Placement((0,), 1)


class TestProcess:
    """An arm's own process."""

    def test_a_killed_process_is_told(self, int8: Path) -> None:
        with ArmProcess(Arm("subnet", "ir", int8, "CPU"), PLACE) as process:
            process.wait_loaded()
            assert len(process.run(PromptSource(VOCAB, 0).next(Case(8, 4)), 4).token_times) == 4
            assert process.pid
            psutil.Process(process.pid).kill()
            with pytest.raises(ArmFailedError, match="subnet: its process was killed; most likely memory ran out"):
                process.run([[1, 2]], 4)
            assert not process.alive

    def test_an_arm_that_cannot_be_loaded(self, copy: Path) -> None:
        (copy / "openvino_model.xml").write_text("nonsense</net>")
        with (
            ArmProcess(Arm("subnet", "ir", copy, "CPU"), PLACE) as process,
            pytest.raises(ArmFailedError, match=r"subnet: .*openvino_model\.xml: damaged"),
        ):
            process.wait_loaded()

    @pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
    def test_its_environment_is_its_own(self, int8: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("KEPT", "as it is")
        monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
        variables = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1", "KEPT": "another"}
        with ArmProcess(Arm("huge-pages", "ir", int8, "CPU", environment=variables), PLACE) as process:
            process.wait_loaded()  # before its exec has ended, the file is empty
            seen = Path(f"/proc/{process.pid}/environ").read_bytes().split(b"\0")
            assert {f"{name}={value}".encode() for name, value in variables.items()} <= set(seen)
            assert "GLIBC_TUNABLES" not in os.environ and os.environ["KEPT"] == "as it is"

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

    def test_what_is_known_without_its_peak_memory(self, int8: Path) -> None:
        with ArmProcess(Arm("subnet", "ir", int8, "CPU", properties={"KV_CACHE_PRECISION": "f16"}), PLACE) as process:
            process.wait_loaded()
            found = process.facts()
            assert set(found) == {"macs_per_token", "weight_bytes_per_token", "kv_precision", "disk_bytes"}
            assert found["disk_bytes"] == sum(path.stat().st_size for path in int8.glob("openvino_model.*"))
            assert found["kv_precision"] == "f16"
            assert len(process.run([[1, 2]], 2).token_times) == 2  # it goes on


class TestApart:
    """A function in a process of its own."""

    def test_its_result_and_its_process(self) -> None:
        assert apart(os.getpid) != os.getpid()
        assert apart(divmod, 7, 2) == (3, 1)

    def test_its_output_is_not_ours(self, capfd: pytest.CaptureFixture[str]) -> None:
        apart(print, "hello")
        apart(os.system, "echo hello; echo hello >&2")
        assert capfd.readouterr() == ("", "")

    def test_its_errors_are_told(self, tmp_path: Path) -> None:
        with pytest.raises(LonasEdgeError, match=f"FileNotFoundError: .*{tmp_path.name}/nothing"):
            apart(os.listdir, tmp_path / "nothing")
        with pytest.raises(LonasEdgeError, match="most likely memory ran out"):
            apart(signal.raise_signal, KILL)

    @pytest.mark.parametrize("seconds", [0.05, 0.5, 2])
    def test_ctrl_c_ends_it(self, seconds: float) -> None:
        """While the process starts, while it imports, and while it works."""
        code = f"""
import multiprocessing, os, signal, threading, time
from lonas_edge.bench import worker
worker._GRACE_SECONDS = 0.1
signal.signal(signal.SIGINT, signal.default_int_handler)
threading.Timer({seconds}, os.kill, (os.getpid(), signal.SIGINT)).start()
try:
    worker.apart(time.sleep, 100_000)
except KeyboardInterrupt:
    print("told", multiprocessing.active_children())
"""
        ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100, check=False)
        assert (ran.returncode, ran.stdout, ran.stderr) == (0, "told []\n", "")


class TestOtherSystems:
    """What only Linux has is not asked for elsewhere."""

    @pytest.mark.parametrize("affinity", [True, False])
    def test_an_arm_is_set_up(self, tmp_path: Path, affinity: bool) -> None:
        """As on Windows (with affinity) and macOS (without): neither prctl nor /proc is touched."""
        (tmp_path / "log").touch()
        code = f"""
import ctypes, os, psutil, signal, sys
from pathlib import Path
from lonas_edge.bench import worker
sys.platform, ctypes.CDLL = "other", None
Path.write_text = None
if not {affinity}:
    del psutil.Process.cpu_affinity
worker._detach(Path({str(tmp_path / "log")!r}), -1)
worker._place(worker.Placement((0,), 3))
print(os.environ["OMP_NUM_THREADS"], signal.getsignal(signal.SIGINT).name, os.sched_getaffinity(0) == {{0}})
"""
        ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert ran.stdout == ""
        only_one = affinity or os.sched_getaffinity(0) == {0}
        assert (tmp_path / "log").read_text().split() == ["3", "SIG_IGN", str(only_one)]
