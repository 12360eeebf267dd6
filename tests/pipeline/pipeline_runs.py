"""Compressions of a tiny model: data, fast measurements, a finished run."""

import json
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from device import Device
from tiny_models import TinySource

from lonas_edge.bench.statistics import Interval
from lonas_edge.bench.variants import Case
from lonas_edge.commands import Command
from lonas_edge.evaluate import generated
from lonas_edge.exporting.export import export
from lonas_edge.exporting.manifest import MANIFEST
from lonas_edge.exporting.options import ExportOptions
from lonas_edge.ir.write import ACTIVATION_GROUP, remove_property
from lonas_edge.network.source import open_source
from lonas_edge.output import OutputDirectory
from lonas_edge.pipeline import baselines, measure, run
from lonas_edge.pipeline.options import CompressOptions
from lonas_edge.pipeline.record import CompressRecord, Latency
from lonas_edge.pipeline.steps import Step
from lonas_edge.pipeline.training import Probe
from lonas_edge.search import results

PROBE = Probe("fp32", 0.1, 0.2, 0.01, 12.0, 16, 16, 10**9)
QUICK: dict[str, Any] = {
    "target": "weights<=0.95x", "weight_format": "int8_sym", "template": "question", "recovery_steps": 4,
    "prompt_len": 8, "new_tokens": 4, "draft": "none",
}  # fmt: skip
_cache = tempfile.TemporaryDirectory()  # of latency tables
_baselines: dict[tuple[bytes, str], dict[str, bytes]] = {}


def write_data(path: Path, count: int = 96) -> Path:
    """Sums as instruction data."""
    rows = [{"instruction": f"What is {n // 8} plus {n % 8}?", "output": str(n // 8 + n % 8)} for n in range(count)]
    path.write_text(json.dumps(rows))
    return path


def timed(*given: Any) -> Probe:
    """The figures of `PROBE` for the batches of a run."""
    batch, micro_batch = given[3]
    return replace(PROBE, batch=batch, micro_batch=micro_batch)


def make_quick(monkeypatch: pytest.MonkeyPatch, whole: bool = False) -> None:
    """No timed steps, an artificial device for the search, and baselines by our own export instead of optimum-cli.

    A `whole` run measures latencies once, generates whole answers, draws and writes the report; others do none of these.
    """
    monkeypatch.setattr(run, "time_steps", timed)
    Device(lambda widths: 1.0 + sum(width > 0 for width in widths)).install(monkeypatch, Path(_cache.name))
    monkeypatch.setattr(measure, "ROUNDS", 1)
    if not whole:
        monkeypatch.setattr(measure, "latencies", equal_latencies)
        monkeypatch.setattr(measure, "ANSWER_TOKENS", 2)
        monkeypatch.setattr(generated, "_FEWEST", 2)
        monkeypatch.setattr(generated, "_ROOM", 0)
        monkeypatch.setattr(run, "write_report", lambda *_given: None)
        monkeypatch.setattr(results, "write_plots", lambda *_given: None)
    monkeypatch.setattr(baselines, "run_optimum", own_baseline)
    monkeypatch.setattr(baselines, "_SHARE", 0.0)  # no GPTQ


def equal_latencies(folders: Mapping[str, Path], case: Case, *_given: Any) -> tuple[dict[str, Any], Any]:
    one = Interval(1.0, 1.0, 1.0)
    names = ("ttft", "tpot") if case.new_tokens else ("latency",)
    times = {name: {each: Latency(one, one, (1.0,)) for each in names} for name in folders}
    return times, SimpleNamespace(conditions={"versions": {"lonas-edge": "0"}}, warnings=["Noisy."])


def own_baseline(command: Command, _guards: Any) -> None:
    """Export a baseline; the files of equal weights are made once."""
    merged, output, weight_format = command.paths["model"], command.paths[""], command.settings.get("--weight-format", "int4")
    key = (merged / "model.safetensors").read_bytes(), weight_format
    with OutputDirectory(output).open() as folder:  # complete or missing, as of `run_optimum`: tests kill runs
        if key not in _baselines:
            opened = open_source(str(merged))
            export(opened, opened.select("maximal"), folder / "made", ExportOptions(weight_format=weight_format))
            (folder / "made" / MANIFEST).unlink()  # stock files have neither
            remove_property(folder / "made", ACTIVATION_GROUP)
            files = [path for path in (folder / "made").rglob("*") if path.is_file()]
            _baselines[key] = {str(path.relative_to(folder / "made")): path.read_bytes() for path in files}
            shutil.rmtree(folder / "made")
        for name, content in _baselines[key].items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)


@dataclass(frozen=True)
class Finished:
    """A finished run: its folder, with `out`, and its record. Not to be changed; `copied` makes a copy."""

    folder: Path
    source: TinySource
    record: CompressRecord

    def copied(self, folder: Path) -> Path:
        """Copy data and output; return the output."""
        shutil.copytree(self.folder, folder, dirs_exist_ok=True)
        return folder / "out"


def plan_steps(source: Path, folder: Path, data: Path, *, model: Path | None = None, **options: Any) -> dict[str, Step]:
    """The steps of a dry run by name."""
    planned: dict[str, Step] = {}
    paths = {"source": str(source), "model": model and str(model)}
    chosen = CompressOptions(
        **{**paths, "data": data, "output": folder / "out", "prompt_len": 8, "dry_run": True, "draft": "none", **options}
    )
    run.compress_model(chosen, announce=lambda steps, _: planned.update({step.name: step for step in steps}))
    return planned


def forbidden(*_given: object, **_options: object) -> None:
    """Stands for a step that must not run."""
    raise AssertionError("a finished step was repeated")
