"""`compress` killed again and again gives the result of an undisturbed run."""

import hashlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from pipeline_runs import QUICK, Finished, write_data

TESTS = Path(__file__).parents[1]
KILLS, LONGEST = 30, 14.0  # seconds until a kill; imports take half of it
NUMBERED = re.compile(rb"(_|Model)\d+")  # Constant_15790, Model1056
PROGRAM = """
import json, sys
import pytest
from pipeline_runs import make_quick
make_quick(pytest.MonkeyPatch())
from lonas_edge.cli.compress import compress
compress(**json.loads(sys.argv[1]))
"""


def start(folder: Path, source: Path) -> subprocess.Popen[str]:
    options = {"source": str(source), "data": str(folder / "data.json"), "output": str(folder / "out"), **QUICK}
    path = os.pathsep.join(map(str, (TESTS.parent, TESTS, TESTS / "pipeline")))
    line = [sys.executable, "-c", PROGRAM, json.dumps(options)]
    return subprocess.Popen(
        line, env={**os.environ, "PYTHONPATH": path}, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def hashes(output: Path) -> dict[str, str]:
    """Of the files that no time or path is in, without the numbers that OpenVINO gives to nodes, counted over a process."""
    names = ("*.safetensors", "*.bin", "*.xml", "data/*.jsonl", "subnetworks/*.json", "model/subnetwork.json")
    paths = {path for name in names for path in output.rglob(name)}
    contents = {path: path.read_bytes() for path in sorted(paths)}
    contents |= {path: NUMBERED.sub(rb"\1", content) for path, content in contents.items() if path.suffix == ".xml"}
    return {str(path.relative_to(output)): hashlib.sha256(content).hexdigest() for path, content in contents.items()}


def same(process: subprocess.Popen[str], folder: Path, finished: Finished) -> None:
    """Wait for a run, and compare its files and losses with those of an undisturbed one."""
    _, error = process.communicate(timeout=600)
    assert process.returncode == 0, error
    assert hashes(folder / "out") == hashes(finished.folder / "out")
    record = json.loads((folder / "out" / "compress.json").read_text())
    assert [curve["held_out"][-1] for curve in record["curves"]] == [
        list(curve.held_out[-1]) for curve in finished.record.curves
    ]


@pytest.mark.slow
def test_thirty_kills(finished: Finished, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A run that ends before its kill is compared, and the next one starts in another directory."""
    draw, killed = random.Random(30), 0

    def fresh() -> Path:
        folder = tmp_path_factory.mktemp("killed")  # as deep as that of `finished`: adapters name their base
        write_data(folder / "data.json")
        return folder

    folder = fresh()
    while killed < KILLS:
        process = start(folder, finished.source.base)
        time.sleep(draw.uniform(0, LONGEST))
        if process.poll() is not None:
            same(process, folder, finished)
            folder = fresh()
            continue
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        killed += 1
    same(start(folder, finished.source.base), folder, finished)
