"""The report from made-up measurements: figures by hand, schema, CSV, Markdown, plots, warnings."""

import csv
import json
from pathlib import Path

import pytest

from lonas_edge.bench import report as module
from lonas_edge.bench.arms import Arm, Case, Facts
from lonas_edge.bench.measure import Measured, Sample
from lonas_edge.bench.plots import write_plots
from lonas_edge.bench.report import Report, arm_report, comparisons, rows, to_csv, to_markdown, warnings, write
from lonas_edge.bench.statistics import Speedup
from lonas_edge.bench.timing import Timing
from lonas_edge.errors import LonasEdgeError

SMOLLM2 = {
    "model_type": "llama",
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "hidden_size": 576,
}
CASES = [Case(128, 11), Case(256, 11)]
SECRET = "/somewhere/private"


def timing(ttft: float, tpot: float, tokens: int = 11) -> Timing:
    times = tuple(ttft + tpot * index for index in range(tokens))
    return Timing(times, times[-1])


@pytest.fixture
def made() -> Report:
    facts = Facts(1.5, 0.5, 400_000_000, 120_000_000, 100_000_000, 90_000_000, 100_000_000, "f16")
    arms = [
        arm_report(Arm("subnet", "ir", Path(f"{SECRET}/int8"), "CPU", "int8", properties={"KV_CACHE_PRECISION": "f16"}), facts),
        arm_report(Arm("lora", "torch", Path(f"{SECRET}/base"), "cpu", "fp32"), None),
    ]
    samples = []
    for case in CASES:
        for number in range(6):
            noise = 1 + 0.01 * number
            samples.append(Sample("subnet", case, number, timing(0.1 * noise, 0.01 * noise)))
            samples.append(Sample("lora", case, number, timing(0.8 * noise, 0.06 * noise)))
    sessions = [Measured(samples, {("lora", CASES[1]): "lora: not enough memory"})]
    compared = comparisons(sessions, ["subnet", "lora"], CASES)
    machine = {"processor": "P", "memory_bytes": 8e9, "device": "CPU", "device_name": "P", "date": "2026-01-01"}
    conditions = {
        "machine": machine,
        "threads": 2,
        "cores": [0, 1],
        "schedule": {"rounds": 6, "warmup": 1, "starts": 2},
        "versions": {},
    }
    return Report(
        model={"base": {"name": "base"}, "subnetwork": {"name": "heuristic"}},
        conditions=conditions,
        load={"others": 0.01, "stolen": 0.0},
        bandwidth=20e9,
        arms=arms,
        rows=rows(sessions, arms, CASES, {arm.name: SMOLLM2 for arm in arms}, 20e9),
        comparisons=compared,
        speculations=[],
        failures=module.failures(sessions),
        warnings=[],
        interrupted=False,
        samples=module.samples(sessions),
    )


def test_figures_by_hand(made: Report) -> None:
    subnet, lora = made.rows[2:]
    assert (subnet.arm, lora.arm, subnet.case) == ("subnet", "lora", CASES[1])
    assert subnet.ttft.p50 == pytest.approx(102.5)  # milliseconds
    assert subnet.tpot.mean == pytest.approx(10.25)
    assert subnet.throughput.max == pytest.approx(11 / 0.2)
    # 100 MB of weights and the KV cache at half the generation, over 20 GB/s
    expected = 1e3 * (100e6 + 2 * 30 * 192 * (256 + 5.5) * 2) / 20e9
    assert subnet.decode_limit_ms == pytest.approx(expected)
    assert subnet.decode_share_of_limit == pytest.approx(expected / 10.25)
    assert lora.decode_limit_ms is None
    gains = {(c.arm, c.case, c.metric): c.speedup for c in made.comparisons}
    assert gains["lora", CASES[0], "ttft"].ratio == pytest.approx(8.0)
    assert gains["lora", CASES[0], "tpot"].ratio == pytest.approx(6.0)
    assert {c.arm for c in made.comparisons} == {"lora"}


def test_files(made: Report, tmp_path: Path) -> None:
    write(made, tmp_path)
    content = json.loads((tmp_path / "bench.json").read_text())
    assert content["schema"] == "lonas-edge/bench/1"
    assert Report.read(tmp_path / "bench.json") == made
    assert content["rows"][0]["ttft"]["p99"] == pytest.approx(made.rows[0].ttft.p99)
    assert len(content["samples"]) == 24 and content["samples"][0]["token_times"]
    lines = list(csv.DictReader((tmp_path / "bench.csv").open()))
    assert [(line["arm"], line["input_size"]) for line in lines] == [(r.arm, str(r.case.prompt_len)) for r in made.rows]
    assert float(lines[1]["speedup_ttft"]) == pytest.approx(8.0) and lines[0]["speedup_ttft"] == ""
    assert float(lines[0]["tpot_p90"]) == pytest.approx(made.rows[0].tpot.p90)
    assert lines[0]["peak_memory_bytes"] == "400000000" and lines[1]["peak_memory_bytes"] == ""
    markdown = (tmp_path / "bench.md").read_text()
    assert "8.00 x [8.00, 8.00]" in markdown and "lora: not enough memory" in markdown and "20.0 GB/s" in markdown
    for path in tmp_path.iterdir():
        assert SECRET not in path.read_text(), path


def test_what_is_no_report_is_refused(made: Report, tmp_path: Path) -> None:
    """Each fault of a damaged one is named; versions that are not read say how to get one that is."""
    content = json.loads(json.dumps(made.to_json()))
    with pytest.raises(LonasEdgeError, match="written by a newer"):
        Report.from_json({**content, "schema": "lonas-edge/bench/99"}, "bench.json")
    del content["rows"][0]["ttft"]["p50"]
    content["samples"][3]["token_times"][1] = "soon"
    with pytest.raises(LonasEdgeError, match=r"(?s)bench.json: not a bench.*rows\.0\.ttft\.p50.*samples\.3\.token_times\.1"):
        Report.from_json(content, "bench.json")


def test_plots(made: Report, tmp_path: Path) -> None:
    files = write_plots(made, tmp_path)
    assert [path.name for path in files] == ["distributions.png", "prompt_length.png", "speedup.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size > 10_000 for path in files)


def test_one_arm_of_one_length_has_no_lines_and_no_bars(made: Report, tmp_path: Path) -> None:
    alone = [row for row in made.rows if row.arm == "subnet" and row.case == CASES[0]]
    files = write_plots(Report(**{**vars(made), "rows": alone, "comparisons": []}), tmp_path)
    assert [path.name for path in files] == ["distributions.png"]


def test_tables_in_markdown_have_their_headings(made: Report) -> None:
    lines = [line for line in to_markdown(made).splitlines() if line.startswith("|")]
    widths = [line.count("|") for line in lines]
    assert widths == [8] * 4 + [5] * 3 + [8] * 4 + [5] * 3 + [8] * 4
    assert to_csv(made).splitlines()[0].split(",")[:7] == [
        *("arm", "framework", "device", "precision", "batch_size", "input_size", "output_size")
    ]


@pytest.mark.parametrize(
    ("gain", "load", "interrupted", "told"),
    [
        (Speedup(2.0, 1.95, 2.05, 24, 8), {"others": 0.02, "stolen": 0.03}, False, []),
        (Speedup(2.0, 1.8, 2.2, 24, 8), {}, False, ["TTFT against lora (±10%)"]),
        (
            Speedup(2.0, 1.95, 2.05, 24, 8),
            {"others": 0.06, "stolen": 0.05},
            False,
            ["6% of the processor was used by other programs"],
        ),
        (Speedup(2.0, None, None, 4, 2), {}, False, ["4 rounds give no 95 % interval; 6 are the least"]),
        (Speedup(2.0, 1.95, 2.05, 24, 8), {}, True, ["Interrupted"]),
        (Speedup(2.0, 1.95, 2.05, 15, 5), {}, False, ["with lora, 128+11 tokens, batch 1 (5 of 8): those intervals"]),
    ],
)
def test_warnings(gain: Speedup, load: dict[str, float], interrupted: bool, told: list[str]) -> None:
    found = warnings([module.Comparison("lora", CASES[0], "ttft", gain)], load, interrupted, 24, 8)
    assert len(found) == len(told)
    assert all(part in warning for part, warning in zip(told, found, strict=True))


@pytest.mark.parametrize(("starts", "told"), [(1, "the rounds of 1 start of"), (5, "the rounds of 5 starts of")])
def test_few_starts_are_told_once_for_all(starts: int, told: str) -> None:
    gain = Speedup(2.0, 1.95, 2.05, 24, starts)
    found = warnings([module.Comparison(arm, CASES[0], "ttft", gain) for arm in ("lora", "gguf")], {}, False, 24, starts)
    assert len(found) == 1 and told in found[0] and "With --starts 6 or more it is" in found[0]


def test_arms_with_all_their_starts_are_not_spoken_of() -> None:
    gains = {"lora": Speedup(2.0, 1.95, 2.05, 9, 3), "unpruned": Speedup(1.1, 1.08, 1.12, 24, 8)}
    (told,) = warnings([module.Comparison(a, CASES[0], "ttft", g) for a, g in gains.items()], {}, False, 24, 8)
    assert "lora" in told and "unpruned" not in told and "--starts" not in told


def test_pairs_come_from_the_session_that_both_were_in() -> None:
    """`subnet` was measured beside each of two arms, at other times."""
    case = CASES[0]
    first = [Sample("subnet", case, n, timing(1.0, 0.1)) for n in range(6)] + [
        Sample("lora", case, n, timing(4.0, 0.4)) for n in range(6)
    ]
    second = [Sample("subnet", case, n, timing(2.0, 0.2)) for n in range(6)] + [
        Sample("unpruned", case, n, timing(2.4, 0.24)) for n in range(6)
    ]
    found = comparisons([Measured(first), Measured(second)], ["subnet", "lora", "unpruned"], [case])
    ratios = {(c.arm, c.metric): c.speedup.ratio for c in found}
    assert ratios["lora", "ttft"] == pytest.approx(4.0)
    assert ratios["unpruned", "ttft"] == pytest.approx(1.2)
