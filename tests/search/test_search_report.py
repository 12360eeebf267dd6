"""CSV, plots and tables of an artificial search."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import matplotlib
from records import made_up

from lonas_edge.search import report


def test_the_csv_has_a_line_for_each_evaluation_in_order() -> None:
    record = made_up(20)
    rows = list(csv.DictReader(report.to_csv(record).splitlines()))
    assert [int(row["evaluation"]) for row in rows] == list(range(20))
    for row, network, area in zip(rows, record.evaluations, record.hypervolume, strict=True):
        assert (float(row["tpot"]), float(row["kl"]), float(row["hypervolume"])) == (network.cost, network.quality, area)
        assert (tuple(json.loads(row["widths"])), row["origin"]) == (network.widths, network.origin)


def test_the_same_record_gives_the_same_files(tmp_path: Path) -> None:
    record, names = made_up(40), ("search_progression.csv", "search_progression.png", "front.png")
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        report.write(record, tmp_path / folder)
    assert sorted(path.name for path in (tmp_path / "one").iterdir()) == sorted(names)
    assert all((tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes() for name in names)
    assert matplotlib.get_backend().lower() == "agg"
    for name in names[1:]:
        image = matplotlib.image.imread(tmp_path / "one" / name)  # [height, width, channels]
        assert min(image.shape[:2]) > 500 and image.std() > 0.05


def test_one_broken_network_does_not_flatten_the_front() -> None:
    record = made_up(40)
    far = replace(record.evaluations[20], quality=50.0)
    record = replace(record, evaluations=(*record.evaluations[:20], far, *record.evaluations[21:]))
    assert report.draw_front(record).axes[0].get_ylim()[1] < 1


def test_the_table() -> None:
    record = made_up(40)
    table = report.table(record)
    assert table.headings == ["network", "kl, nats", "TPOT, ms", "origin"]
    assert len(table.rows) == len(record.named) + len(record.picks)
    assert table.rows[0] == ["maximal", "0", "12.2", "warm-start:maximal"]
