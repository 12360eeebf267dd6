"""An artificial device: the latency of a network follows from its widths; nothing is exported or measured."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest

from lonas_edge.exporting.export import ExportOptions
from lonas_edge.network.source import Source
from lonas_edge.search import latency_table
from lonas_edge.space.subnetwork import Subnetwork


class Device:
    """Replaces exports and measurements.

    Attributes:
        exported: Widths, weight format and directory of each export.
        runs: Runtime properties of the networks of each run.
        arguments: The other arguments of each run.
    """

    def __init__(self, seconds: Callable[[Sequence[int]], float], classifier: bool = False) -> None:
        """`seconds` is the TTFT of a network, or the latency of a classifier; TPOT is a tenth of it."""
        self.seconds, self.classifier = seconds, classifier
        self.exported: list[tuple[tuple[int, ...], str, Path]] = []
        self.runs: list[list[Mapping[str, str]]] = []
        self.arguments: list[tuple[object, ...]] = []

    def install(self, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
        """Replace the functions, and the user's cache."""
        monkeypatch.setattr(latency_table, "run_in_process", lambda _, *arguments: self.export(*arguments))
        monkeypatch.setattr(latency_table, "ir_latencies", self.measure)
        monkeypatch.setattr(latency_table, "CACHE", cache)

    def export(self, _source: Source, subnetwork: Subnetwork, folder: Path, options: ExportOptions) -> None:
        assert not options.verify
        self.exported.append((subnetwork.widths, options.weight_format, folder))
        folder.mkdir(parents=True)
        (folder / "widths.json").write_text(json.dumps(subnetwork.widths))

    def measure(self, irs: Sequence[tuple[Path, Mapping[str, str]]], *arguments: object, **_: object) -> list[dict[str, float]]:
        self.runs.append([properties for _, properties in irs])
        self.arguments.append(arguments)
        times = [self.seconds(json.loads((folder / "widths.json").read_text())) for folder, _ in irs]
        return [{"latency": time} if self.classifier else {"ttft": time, "tpot": time / 10} for time in times]
