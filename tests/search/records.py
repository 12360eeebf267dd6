"""The record of an artificial search."""

import random

from lonas_edge.search.record import Evaluation, Named, Scored, SearchRecord, front, hypervolume

WIDTHS = (1536, 1344, 1152, 960, 768)
GROUPS = 30


def made_up(evaluations: int = 200, cost: str = "tpot", seed: int = 1) -> SearchRecord:
    """A search of 30 groups whose cost and quality follow from the widths; maximal, heuristic and minimal come first."""
    draw = random.Random(seed)
    networks = [tuple([WIDTHS[level]] * GROUPS) for level in (0, 2, 4)]
    while len(networks) < evaluations:
        bound = draw.uniform(0, 4.99)
        networks.append(tuple(WIDTHS[int(draw.uniform(0, bound))] for _ in range(GROUPS)))
    evaluated: list[Evaluation] = []
    for number, widths in enumerate(networks):
        kept = sum(widths) / (GROUPS * WIDTHS[0])
        quality = 0.6 * (1 - kept) ** 1.3 * (1 if number < 3 else draw.uniform(0.5, 1.2))
        price = (8 + 4.2 * kept) * {"tpot": 1, "latency": 1}.get(cost, 3e9)
        origin = f"warm-start:{('maximal', 'heuristic', 'minimal')[number]}" if number < 3 else "nsga2"
        evaluated.append(Evaluation(number, widths, quality, price, 1.5, origin))
    members = front(evaluated)
    named = [Named(name, number) for number, name in enumerate(("maximal", "heuristic", "minimal"))]
    named += [Named(f"front:{level}", member.number, f"front-{level:02}") for level, member in enumerate(members, 1)]
    picks = [Named(f"pick:{cost}<=0.85x", members[2].number, "a"), Named("pick:kl<=0.05", members[-3].number, "b")]
    settings = {"weight_format": "int8", "device": "CPU", "prompt_len": 256, "new_tokens": 64}
    return SearchRecord(
        study="search",
        model="smollm2-135m",
        identity={},
        data=Scored("train.json", "0" * 64, 64, "alpaca", True),
        quality="kl",
        cost=cost,
        units={"kl": "nats", cost: "ms"},
        settings=settings,
        fixed=(),
        sensitivity=tuple(tuple(0.002 * level**2 * (1 + (group - 12) ** 2) for level in range(5)) for group in range(GROUPS)),
        evaluations=tuple(evaluated),
        front=tuple(member.number for member in members),
        named=tuple(named),
        picks=tuple(picks),
        hypervolume=tuple(
            hypervolume(
                [(member.quality, member.cost) for member in evaluated], (0, evaluated[2].cost), (0.6, evaluated[0].cost)
            )
        ),
        conditions={"processor": "Intel(R) Xeon(R) Processor", "date": "2026-11-25"},
        seconds={"evaluations": 300.0},
    )
