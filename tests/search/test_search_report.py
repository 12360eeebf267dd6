"""CSV, plots and tables of a made-up search: what is in them. How they look was looked at."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import matplotlib
import pytest
from records import made_up, with_measured

from lonas_edge.search import report
from lonas_edge.search.latency_table import Curve, FormatTable, Identity, LatencyTable
from lonas_edge.search.record import Measured


def drawn(record: report.SearchRecord, which: str) -> list[str]:
    """All texts of a plot's first axes."""
    axis = getattr(report, which)(record).axes[0]
    return [
        axis.get_title(),
        axis.get_xlabel(),
        axis.get_ylabel(),
        *(text.get_text() for text in axis.get_legend().get_texts()),
    ]


def test_the_csv_has_a_line_for_each_evaluation_in_order() -> None:
    record = made_up(20)
    rows = list(csv.DictReader(report.to_csv(record).splitlines()))
    assert [int(row["evaluation"]) for row in rows] == list(range(20))
    for row, one, area in zip(rows, record.evaluations, record.hypervolume, strict=True):
        assert (float(row["tpot"]), float(row["kl"]), float(row["hypervolume"])) == (one.cost, one.quality, area)
        assert (tuple(json.loads(row["widths"])), row["weight_format"], row["origin"]) == (one.widths, "int8", one.origin)
    rows = list(csv.DictReader(report.to_csv(replace(record, hypervolume=())).splitlines()))
    assert len(rows) == 20 and not any(row["hypervolume"] for row in rows)


@pytest.mark.parametrize("formats", [("int8",), ("int8", "int4")])
def test_the_same_record_gives_the_same_files(formats: tuple[str, ...], tmp_path: Path) -> None:
    record, again = with_measured(made_up(40, formats=formats)), tmp_path / "again"
    again.mkdir()
    files = report.write(record, tmp_path)
    report.write(record, again)
    assert [file.name for file in files] == ["search_progression.csv", "search_progression.png", "front.png"]
    assert [file.read_bytes() for file in files] == [(again / file.name).read_bytes() for file in files]
    assert matplotlib.get_backend().lower() == "agg"
    for file in files[1:]:
        image = matplotlib.image.imread(file)  # [height, width, channels]
        assert min(image.shape[:2]) > 500 and image.std() > 0.05


def test_one_evaluation_is_drawn(tmp_path: Path) -> None:
    """Of an interrupted search: no hypervolume, nothing beside it."""
    record = made_up(3)
    record = replace(record, evaluations=record.evaluations[:1], front=(0,), named=record.named[:1], picks=(), hypervolume=())
    assert all(path.stat().st_size > 1000 for path in report.write(record, tmp_path)[1:])


def test_plots_say_what_they_show() -> None:
    record = with_measured(made_up(40))
    texts = drawn(record, "_front")
    assert "smollm2-135m" in texts[0] and "CPU (Intel(R) Xeon(R) Processor), 256+64 tokens" in texts[0]
    assert texts[1:3] == ["TPOT in ms", "KL from the maximal network in nats (lower is better)"]
    assert [text.split(":")[0] for text in texts[5:8]] == ["maximal", "heuristic", "minimal"]
    assert (
        texts[5] == "maximal: 12.2 ms, 0 nats" and texts[8].startswith("tpot<=0.85x: ") and texts[10] == "measured in the end"
    )
    assert texts[3:5] == ["evaluated (40)", f"front ({len(record.front)})"]
    counted = drawn(made_up(40, "macs", ("int8", "int4")), "_front")
    assert counted[0] == "smollm2-135m: 40 networks, int8, int4" and counted[1] == "MACs (GMACs)"
    assert "maximal: 36.6 GMACs, 0 nats, int8" in counted


def test_the_progression_colours_evaluations_by_their_order() -> None:
    record = made_up(40)
    [points, *_] = report._progression(record).axes[0].collections
    assert list(points.get_array()) == list(range(1, 41))
    assert [tuple(place) for place in points.get_offsets()] == [(one.cost, one.quality) for one in record.evaluations]


def test_a_network_that_answers_nothing_does_not_press_the_front_flat() -> None:
    record = made_up(40)
    far = replace(record.evaluations[20], quality=50.0)
    record = replace(record, evaluations=(*record.evaluations[:20], far, *record.evaluations[21:]))
    axis = report._front(record).axes[0]
    assert axis.get_ylim()[1] < 1 and "1 networks lie beyond" in axis.get_xlabel()


def test_prediction_beside_measurement_in_the_table() -> None:
    record = with_measured(made_up(40))
    [(_, headings, rows), damage] = report.tables(record)
    heuristic = next(row for row in rows if row[0] == "heuristic")
    assert headings[-2:] == ["TTFT ms (/ predicted)", "TPOT ms (/ predicted)"] and heuristic[-2:] == [
        "139.38 (1.00 x)",
        "11.60 (1.04 x)",
    ]
    assert len(rows) == len(record.named) + len(record.picks) and next(row for row in rows if row[0] == "maximal")[-1] == ""
    assert report.ratio(record.measured[0], "tpot") == pytest.approx(1.04)
    assert report.ratio(replace(record.measured[0], predicted_tpot=None), "tpot") is None
    assert len(damage[2]) == 4 and all(len(row[1]) == 30 for row in damage[2])
    assert damage[2][-1][1][-1] == "█" and damage[2][0][1][12] == "▁"  # the dearest; the cheapest, 3 orders below
    assert len(report.tables(replace(record, table=None))) == 1


def test_a_latency_table_as_rows() -> None:
    identity = Identity("0", "CPU", "a processor", "a processor", 2, 24, 2, 256, 64, {}, 2, 1, (), None)
    curve = Curve((8, 4), (20.0, 10.5), (2.0, 1.25))
    table = LatencyTable(identity, "2026-11-25", 100.0, 12, 4, {"int8": FormatTable({}, {"mlp": curve})})
    title, _, rows = report.latency_shown(table)
    assert "CPU (a processor), 2 threads, 256+64 tokens, batch 1, 12 rounds in 4 starts" in title
    assert rows == [["mlp", "8", "int8", "20.00", "2.000"], ["mlp", "4", "int8", "10.50", "1.250"]]


def test_a_classifiers_times() -> None:
    """One time, that of a pass, wherever a language model has two."""
    identity = Identity("0", "CPU", "a processor", "a processor", 2, 24, 2, 128, 0, {}, 2, 8, (), None)
    curve = Curve((8, 4), latency=(20.0, 10.5))
    table = LatencyTable(identity, "2026-11-26", 100.0, 12, 4, {"int8": FormatTable({}, {"heads": curve})})
    title, headings, rows = report.latency_shown(table)
    assert "128 tokens, batch 8, 12 rounds" in title and headings == ["all layers", "width", "format", "latency ms"]
    assert rows == [["heads", "8", "int8", "20.000"], ["heads", "4", "int8", "10.500"]]
    record = made_up(40, "latency")
    record = replace(record, settings={**record.settings, "prompt_len": 128, "new_tokens": 0, "batch_size": 8})
    found = Measured("maximal", 0, "int8", latency=24.4, predicted_latency=12.2)
    record = replace(record, measured=(found,))
    [(_, headings, rows), _damage] = report.tables(record)
    assert headings[-1] == "latency ms (/ predicted)" and "TTFT" not in " ".join(headings)
    assert next(row[-1] for row in rows if row[0] == "maximal") == "24.40 (2.00 x)"
    texts = drawn(record, "_front")
    assert "128 tokens, batch 8" in texts[0] and texts[1] == "latency in ms" and "measured in the end" in texts
