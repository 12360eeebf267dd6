"""CSV, plots and tables of an artificial search."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import matplotlib
from records import made_up, with_measured

from lonas_edge.search import report
from lonas_edge.search.record import Measured


def drawn(record: report.SearchRecord) -> list[str]:
    """All texts of the plot of the front."""
    axis = report._front(record).axes[0]
    legend = [text.get_text() for text in axis.get_legend().get_texts()]
    return [axis.get_title(), axis.get_xlabel(), axis.get_ylabel(), *legend]


def test_the_csv_has_a_line_for_each_evaluation_in_order() -> None:
    record = made_up(20)
    rows = list(csv.DictReader(report.to_csv(record).splitlines()))
    assert [int(row["evaluation"]) for row in rows] == list(range(20))
    for row, network, area in zip(rows, record.evaluations, record.hypervolume, strict=True):
        assert (float(row["tpot"]), float(row["kl"]), float(row["hypervolume"])) == (network.cost, network.quality, area)
        assert (tuple(json.loads(row["widths"])), row["origin"]) == (network.widths, network.origin)


def test_the_same_record_gives_the_same_files(tmp_path: Path) -> None:
    record, names = with_measured(made_up(40)), ("search_progression.csv", "search_progression.png", "front.png")
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        report.write(record, tmp_path / folder)
    assert sorted(path.name for path in (tmp_path / "one").iterdir()) == sorted(names)
    assert all((tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes() for name in names)
    assert matplotlib.get_backend().lower() == "agg"
    for name in names[1:]:
        image = matplotlib.image.imread(tmp_path / "one" / name)  # [height, width, channels]
        assert min(image.shape[:2]) > 500 and image.std() > 0.05


def test_labels_of_the_front() -> None:
    record = with_measured(made_up(40))
    texts = drawn(record)
    assert "smollm2-135m: 40 networks, int8" in texts[0] and "CPU (Intel(R) Xeon(R) Processor), 256+64 tokens" in texts[0]
    assert texts[1:3] == ["TPOT in ms", "KL from the unpruned network in nats (lower is better)"]
    other = replace(record, units={**record.units, "kl": "squared distance"})
    assert drawn(other)[2] == "squared distance from the unpruned network (lower is better)"
    assert texts[3:5] == ["evaluated (40)", f"Pareto front ({len(record.front)})"]
    assert texts[5] == "maximal: 12.2 ms, 0 nats" and texts[8].startswith("tpot<=0.85x: ") and texts[10] == "measured"
    assert drawn(made_up(40, "macs"))[1] == "MACs (GMACs)" and "maximal: 36.6 GMACs, 0 nats" in drawn(made_up(40, "macs"))


def test_measured_end_to_end_times() -> None:
    """TTFT and 63 more tokens, in the table and as the end of the line of each measured network."""
    made = made_up(40, "latency")
    record = replace(made, cost="end-to-end", units={"kl": "nats", "end-to-end": "ms"})
    record = replace(record, measured=(Measured("heuristic", 1, 100.0, 5.0, 90.0, 4.0),))
    [lines] = [line.get_xdata() for line in report._front(record).axes[0].lines if line.get_marker() == "x"]
    assert list(lines) == [100.0 + 63 * 5.0]
    networks, _ = report.tables(record)
    headings, rows = networks.headings, networks.rows
    assert headings[2] == "end-to-end time, ms"
    assert next(row for row in rows if row[0] == "heuristic")[-2:] == ["5.00 (1.25 x)", "100.00 (1.11 x)"]


def test_one_broken_network_does_not_flatten_the_front() -> None:
    record = made_up(40)
    far = replace(record.evaluations[20], quality=50.0)
    record = replace(record, evaluations=(*record.evaluations[:20], far, *record.evaluations[21:]))
    axis = report._front(record).axes[0]
    assert axis.get_ylim()[1] < 1 and "1 networks are outside of this plot" in axis.get_xlabel()


def test_tables() -> None:
    record = with_measured(made_up(40))
    networks, sensitivity = report.tables(record)
    headings, rows = networks.headings, networks.rows
    assert headings[-2:] == ["measured TPOT, ms (/ predicted)", "measured TTFT, ms (/ predicted)"]
    assert next(row for row in rows if row[0] == "heuristic")[-2:] == ["11.60 (1.04 x)", "139.38 (1.00 x)"]
    assert len(rows) == len(record.named) + len(record.picks) and next(row for row in rows if row[0] == "maximal")[-1] == ""
    assert len(sensitivity.rows) == 4 and all(len(row[1]) == 30 for row in sensitivity.rows)
    assert sensitivity.rows[-1][1][-1] == "█" and sensitivity.rows[0][1][12] == "▁", "the most sensitive; 3 orders below"


def test_a_classifier_has_one_latency() -> None:
    record = made_up(40, "latency")
    record = replace(record, settings={**record.settings, "prompt_len": 128, "new_tokens": 0, "batch_size": 8})
    record = replace(record, measured=(Measured("maximal", 0, latency=24.4, predicted_latency=12.2),))
    networks, _ = report.tables(record)
    headings, rows = networks.headings, networks.rows
    assert headings[-1] == "measured latency, ms (/ predicted)" and "TTFT" not in " ".join(headings)
    assert next(row[-1] for row in rows if row[0] == "maximal") == "24.40 (2.00 x)"
    texts = drawn(record)
    assert "128 tokens, batch 8" in texts[0] and texts[1] == "latency in ms" and "measured" in texts
