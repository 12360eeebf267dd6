"""A made-up search, as its record: no network was ever asked."""

import random
from dataclasses import replace

from lonas_edge.exporting.manifest import Origin
from lonas_edge.search.record import (
    Evaluation,
    Measured,
    Named,
    Scored,
    Searched,
    SearchRecord,
    Table,
    front,
    hypervolume,
)

WIDTHS = (1536, 1344, 1152, 960, 768)
GROUPS = 30


def made_up(evaluations: int = 200, cost: str = "tpot", formats: tuple[str, ...] = ("int8",), seed: int = 1) -> SearchRecord:
    """A search of 30 groups whose cost and quality follow from the widths; maximal, heuristic and minimal come first."""
    draw = random.Random(seed)
    networks = [tuple([WIDTHS[place]] * GROUPS) for place in (0, 2, 4)]
    while len(networks) < evaluations:
        bound = draw.uniform(0, 4.99)
        networks.append(tuple(WIDTHS[int(draw.uniform(0, bound))] for _ in range(GROUPS)))
    found = []
    for number, widths in enumerate(networks):
        name = formats[0] if number < 3 else draw.choice(formats)
        kept = sum(widths) / (GROUPS * WIDTHS[0])
        quality = 0.6 * (1 - kept) ** 1.3 * (1 if number in (0, 1, 2) else draw.uniform(0.5, 1.2)) + 0.05 * formats.index(name)
        price = (8 + 4.2 * kept) * (0.8 if name == "int4" else 1) * {"tpot": 1, "ttft": 12}.get(cost, 3e9)
        origin = ("seed:maximal", "seed:heuristic", "seed:minimal")[number] if number < 3 else "nsga2"
        found.append(Evaluation(number, widths, name, quality, price, 1.5, origin))
    members = front(found)
    named = [Named(name, number) for number, name in enumerate(("maximal", "heuristic", "minimal"))]
    named += [Named(f"front:{place}", one.number, f"front-{place:02}") for place, one in enumerate(members, 1)]
    picks = [Named(f"pick:{cost}<=0.85x", members[2].number, "a"), Named("pick:kl<=0.05", members[-3].number, "b")]
    damage = tuple(tuple(0.002 * place**2 * (1 + (group - 12) ** 2) for place in range(5)) for group in range(GROUPS))
    return SearchRecord(
        study="search",
        searched=Searched(Origin("smollm2-135m", None, {}), None, "0" * 64),
        data=Scored("train.json", "0" * 64, 64, "alpaca", True),
        quality="kl",
        cost=cost,
        units={"kl": "nats", cost: "ms"},
        settings={"weight_formats": list(formats), "device": "CPU", "prompt_len": 256, "new_tokens": 64, "threads": None},
        fixed=(),
        table=Table(damage),
        evaluations=tuple(found),
        front=tuple(one.number for one in members),
        named=tuple(named),
        picks=tuple(picks),
        hypervolume=tuple(hypervolume([(one.quality, one.cost) for one in found], (0, found[2].cost), (0.6, found[0].cost))),
        conditions={"processor": "Intel(R) Xeon(R) Processor", "date": "2026-11-25"},
        seconds={"evaluations": 300.0},
        finished=True,
    )


def with_measured(record: SearchRecord) -> SearchRecord:
    """Its heuristic network and the front's first, measured 4 % slower than predicted."""
    found = []
    for name, number in (("heuristic", 1), ("front:1", record.front[0])):
        one = record.evaluations[number]
        found.append(Measured(name, number, one.weight_format, 12.5 * one.cost, 1.04 * one.cost, 12.5 * one.cost, one.cost))
    return replace(record, measured=tuple(found))
