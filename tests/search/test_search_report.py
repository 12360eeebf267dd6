"""CSV, plots and tables of an artificial search."""

import csv
import json
import random
from pathlib import Path

import matplotlib

from lonas_edge.search import results
from lonas_edge.search.record import Evaluation, Named, SearchRecord, front

WIDTHS, GROUPS = (1536, 1344, 1152, 960, 768), 30


def made_up() -> SearchRecord:
    """A search whose cost and quality follow from the widths; maximal, heuristic and minimal come first."""
    draw, evaluated = random.Random(1), list[Evaluation]()
    networks = [tuple([WIDTHS[level]] * GROUPS) for level in (0, 2, 4)]
    networks += [tuple(draw.choices(WIDTHS, k=GROUPS)) for _ in range(37)]
    for number, widths in enumerate(networks):
        kept = sum(widths) / (GROUPS * WIDTHS[0])
        quality = 0.6 * (1 - kept) ** 1.3 * (1 if number < 3 else draw.uniform(0.5, 1.2))
        evaluated.append(
            Evaluation(number, widths, quality, 8 + 4.2 * kept, 1.5, "warm-start:maximal" if not number else "nsga2")
        )
    members = front(evaluated)
    named = [Named(name, number) for number, name in enumerate(("maximal", "heuristic", "minimal"))]
    named += [Named(f"front:{level}", member.number, f"front-{level:02}") for level, member in enumerate(members, 1)]
    return SearchRecord(
        study="search",
        model="smollm2-135m",
        identity={},
        data="train.json",
        unseen=True,
        quality="kl",
        cost="tpot",
        units={"kl": "nats", "tpot": "ms"},
        settings={"weight_format": "int8", "device": "CPU", "prompt_len": 256, "new_tokens": 64},
        sensitivity=(),
        evaluations=tuple(evaluated),
        front=tuple(member.number for member in members),
        named=tuple(named),
        picks=(Named("pick:tpot<=0.85x", members[1].number, "a"), Named("pick:kl<=0.05", members[-1].number, "b")),
        conditions={"processor": "Intel(R) Xeon(R) Processor", "date": "2026-11-25"},
        seconds=300.0,
    )


def test_the_csv_has_a_line_for_each_evaluation_in_order() -> None:
    record = made_up()
    rows = list(csv.DictReader(results.to_csv(record).splitlines()))
    assert [int(row["evaluation"]) for row in rows] == list(range(40))
    for row, network in zip(rows, record.evaluations, strict=True):
        assert (float(row["tpot"]), float(row["kl"])) == (network.cost, network.quality)
        assert (tuple(json.loads(row["widths"])), row["origin"]) == (network.widths, network.origin)


def test_the_same_record_gives_the_same_files(tmp_path: Path) -> None:
    record, names = made_up(), ("search_progression.csv", "search_progression.png", "front.png")
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        results.write_plots(record, tmp_path / folder)
    assert sorted(path.name for path in (tmp_path / "one").iterdir()) == sorted(names)
    assert all((tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes() for name in names)
    for name in names[1:]:
        image = matplotlib.image.imread(tmp_path / "one" / name)  # [height, width, channels]
        assert min(image.shape[:2]) > 500 and image.std() > 0.05


def test_the_table() -> None:
    record = made_up()
    table = results.table(record)
    assert table.headings == ["network", "kl, nats", "TPOT, ms", "origin"]
    assert len(table.rows) == len(record.named) + len(record.picks)
    assert table.rows[0] == ["maximal", "0", "12.2", "warm-start:maximal"]
