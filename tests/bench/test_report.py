"""The report of a made-up measurement: figures, schema, CSV, Markdown, plots, warnings."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from lonas_edge.bench import record as module
from lonas_edge.bench.measure import Measurement, Sample
from lonas_edge.bench.record import BenchRecord, Comparison, compare, describe_variant, find_warnings, make_rows
from lonas_edge.bench.report import text_table, write
from lonas_edge.bench.statistics import Ratio
from lonas_edge.bench.variants import Case, Facts, Timing, Variant
from lonas_edge.network.vocabulary_record import VocabularyRecord

CASES = [Case(128, 11), Case(256, 11)]
SECRET = "/somewhere/private"
MACHINE = {"processor": "P", "memory_bytes": 8e9, "device": "CPU", "device_name": "P", "date": "2026-01-01"}


def timing(ttft: float, tpot: float, tokens: int = 11) -> Timing:
    times = tuple(ttft + tpot * index for index in range(tokens))
    return Timing(times, times[-1])


@pytest.fixture
def made() -> BenchRecord:
    facts = Facts(1.5, 400_000_000, 120_000_000, 100_000_000, "f16")
    subnet = Variant("subnet", "ir", Path(f"{SECRET}/int8"), "CPU", "int8", properties={"KV_CACHE_PRECISION": "f16"})
    lora = Variant("lora", "torch", Path(f"{SECRET}/base"), "cpu", "fp32")
    variants = [describe_variant(subnet, facts), describe_variant(lora, None)]
    samples = []
    for case in CASES:
        for number in range(6):
            noise = 1 + 0.01 * number
            samples.append(Sample("subnet", case, number, timing(0.1 * noise, 0.01 * noise)))
            samples.append(Sample("lora", case, number, timing(0.5 * noise, 0.04 * noise)))
    measurement = Measurement(samples, {("lora", CASES[1]): "lora: not enough memory"})
    schedule = {"rounds": 6, "warmup": 1, "starts": 2}
    return BenchRecord(
        model={"base": {"name": "base"}, "subnetwork": {"name": "heuristic"}},
        conditions={"machine": MACHINE, "threads": 2, "cores": [0, 1], "schedule": schedule, "versions": {}},
        load={"others": 0.01, "stolen": 0.0},
        variants=variants,
        rows=make_rows(measurement, variants, CASES),
        comparisons=compare(measurement, ["lora"], CASES),
        failures=module.failures(measurement),
        warnings=[],
        interrupted=False,
        samples=samples,
    )


def test_figures(made: BenchRecord) -> None:
    subnet, lora = made.rows[2:]
    assert (subnet.variant, lora.variant, subnet.case) == ("subnet", "lora", CASES[1])
    assert subnet.ttft and subnet.ttft.p50 == pytest.approx(102.5)  # milliseconds
    assert subnet.tpot and subnet.tpot.mean == pytest.approx(10.25)
    assert subnet.throughput.max == pytest.approx(11 / 0.2)
    ratios = {(c.variant, c.baseline, c.case, c.metric): c.ratio.value for c in made.comparisons}
    assert ratios["subnet", "lora", CASES[0], "ttft"] == pytest.approx(0.1 / 0.5)
    assert ratios["subnet", "lora", CASES[0], "tpot"] == pytest.approx(0.01 / 0.04)
    assert ratios["subnet", "lora", CASES[0], "generate_duration"] == pytest.approx(0.2 / 0.9)


def test_a_classifier_has_one_metric() -> None:
    case = Case(128, 0)
    samples = [Sample(name, case, n, Timing((), s)) for n in range(6) for name, s in (("subnet", 0.5), ("lora", 2.0))]
    measurement = Measurement(samples)
    variants = [describe_variant(Variant("subnet", "ir-classifier", Path(), "CPU"), None)]
    (row,) = make_rows(measurement, variants, [case])
    assert (row.ttft, row.tpot, row.generate_duration.p50, row.throughput.p50) == (None, None, 500.0, 2.0)
    (comparison,) = compare(measurement, ["lora"], [case])
    assert (comparison.metric, comparison.ratio.value) == ("generate_duration", pytest.approx(0.25))


def test_files(made: BenchRecord, tmp_path: Path) -> None:
    write(made, tmp_path)
    content = json.loads((tmp_path / "bench.json").read_text())
    assert content["schema"] == "lonas-edge/bench/1"
    assert BenchRecord.read(tmp_path / "bench.json") == made
    assert len(content["samples"]) == 24 and len(content["samples"][0]["timing"]["token_times"]) == 11
    markdown = (tmp_path / "bench.md").read_text()
    widths = [line.count("|") for line in markdown.splitlines() if line.startswith("|")]
    assert widths == [7] * 4 + [5] * 3 + [7] * 4 + [5] * 3 + [8] * 4
    assert "0.20x [0.20, 0.20]" in markdown and "lora: not enough memory" in markdown
    for path in tmp_path.glob("bench.*"):
        assert SECRET not in path.read_text(), path


@pytest.mark.parametrize(
    ("ratio", "load", "interrupted", "warnings"),
    [
        (Ratio(2.0, 1.95, 2.05, 24, 8), {"others": 0.02, "stolen": 0.03}, False, []),
        (Ratio(2.0, 1.8, 2.2, 24, 8), {}, False, ["TTFT, 128+11 tokens (up to ±10%)"]),
        (Ratio(2.0, 1.95, 2.05, 24, 8), {"others": 0.06, "stolen": 0.05}, False, ["other programs used 6%"]),
        (Ratio(2.0, None, None, 4, 2), {}, False, ["4 rounds give no 95 % interval; at least 6"]),
        (Ratio(2.0, 1.95, 2.05, 24, 8), {}, True, ["Interrupted"]),
        (Ratio(2.0, 1.95, 2.05, 15, 5), {}, False, ["lora, 128+11 tokens: 5 of 8 starts"]),
    ],
)
def test_warnings(ratio: Ratio, load: dict[str, float], interrupted: bool, warnings: list[str]) -> None:
    actual = find_warnings([Comparison("subnet", "lora", CASES[0], "ttft", ratio)], load, interrupted, 24, 8)
    assert len(actual) == len(warnings)
    assert all(part in warning for part, warning in zip(warnings, actual, strict=True))


def test_noise_is_stated_once_for_each_figure() -> None:
    """The widest interval over all baselines; TPOT is not noisy."""
    noisy, wider, narrow = Ratio(2.0, 1.8, 2.2, 24, 8), Ratio(2.0, 1.6, 2.4, 24, 8), Ratio(2.0, 1.95, 2.05, 24, 8)
    given = (("lora", "ttft", noisy), ("other", "ttft", wider), ("third", "ttft", noisy), ("lora", "tpot", narrow))
    comparisons = [Comparison("subnet", name, CASES[0], metric, ratio) for name, metric, ratio in given]
    [warning] = find_warnings(comparisons, {}, False, 24, 8)
    assert "±5%: TTFT, 128+11 tokens (up to ±20%). Use more" in warning


def test_vocabularies_are_compared_by_text(made: BenchRecord, tmp_path: Path) -> None:
    """A trimmed one splits a text into more tokens: times per token do not compare."""
    VocabularyRecord("base", None, {}, 288, {}, 1.25, (0, 1)).write(tmp_path / "vocabulary.json")
    assert (Variant("a", "ir", tmp_path).tokens_per_text, Variant("b", "ir", tmp_path / "none").tokens_per_text) == (1.25, 1.0)
    assert text_table(made, CASES[0]) is None
    subnet, lora = made.variants
    trimmed = replace(made, variants=[replace(subnet, tokens_per_text=1.25), replace(lora, tokens_per_text=1.0)])
    texts = text_table(trimmed, CASES[0])
    headings, [[name, ttft, tpot, _]] = texts.headings, texts.rows
    assert headings[:3] == ["subnet vs, for equal texts", "TTFT", "TPOT"] and name == "lora"
    assert (ttft.split()[0], tpot.split()[0]) == ("0.25x", "0.31x")  # 1.25 x 0.1 / 0.5, 1.25 x 0.01 / 0.04
    other = replace(made, variants=[replace(subnet, tokens_per_text=1.0), replace(lora, tokens_per_text=1.25)])
    assert text_table(other, CASES[0]).rows[0][1].startswith("0.16x")  # 0.2 / 1.25
    write(trimmed, tmp_path)
    assert "| subnet vs, for equal texts |" in (tmp_path / "bench.md").read_text()
