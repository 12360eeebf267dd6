"""Picks: a bound, and the best network under it. `macs<=1.43e12`, `tpot<=0.85x` (x: times the unpruned network), `kl<=0.05`."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from lonas_edge.errors import LonasEdgeError, raise_all
from lonas_edge.search.cost import QUALITIES, CostFunction
from lonas_edge.search.record import Evaluation, front

_FORM = re.compile(r"\s*([a-z]+(?:-[a-z]+)*)\s*<=\s*([0-9]+\.?[0-9]*(?:e[+-]?[0-9]+)?|\.[0-9]+)\s*(x?)\s*", re.IGNORECASE)


@dataclass(frozen=True)
class Pick:
    """A bound on a measure."""

    expression: str
    measure: str  # name of a quality or cost
    bound: float
    relative: bool = False  # whether the bound is a multiple of the maximal network's figure

    @property
    def file(self) -> str:
        """File name: `macs-1.43e12` for `macs<=1.43e12`."""
        short = f"{self.bound:g}"
        number = short if float(short) == self.bound else f"{self.bound:.17g}"
        return f"{self.measure}-{number}{'x' if self.relative else ''}".replace("+", "")

    def limit(self, maximal: float) -> float:
        """Return the bound in the measure's unit."""
        return self.bound * maximal if self.relative else self.bound

    def meets(self, value: float, maximal: float) -> bool:
        """Check whether a figure is within the bound."""
        return value <= self.limit(maximal)


def parse_picks(expressions: Sequence[str], measures: Sequence[str], option: str = "--pick") -> list[Pick]:
    """Parse the values of an option."""
    picks, problems = [], []
    for text in expressions:
        parsed = _FORM.fullmatch(text)
        if not parsed:
            forms = "MEASURE<=NUMBER (times in ms, sizes in bytes) or MEASURE<=NUMBERx, such as 'macs<=0.85x'"
            problems.append(f"{text!r}: expected {forms}; MEASURE is one of {', '.join(measures)}")
            continue
        name = parsed[1].lower()
        if name not in measures:
            problems.append(f"{text!r}: {name} is not measured here; expected one of {', '.join(measures)}")
        elif parsed[3] and name in QUALITIES:
            problems.append(f"{text!r}: x is for costs only; give {name} without x")
        else:
            picks.append(Pick(text.strip(), name, float(parsed[2]), bool(parsed[3])))
    raise_all(f"Invalid {option}:", problems)
    return picks


def resolve(pick: Pick, evaluations: Sequence[Evaluation], value: Callable[[Evaluation], float], maximal: float) -> Evaluation:
    """Find the best network under a bound: the best quality if a cost is bounded, the cheapest if a quality is.

    `value` is the figure of the pick's measure, and `maximal` that of the maximal network.
    """
    met = [evaluation for evaluation in evaluations if pick.meets(value(evaluation), maximal)]
    if not met:
        closest = min(evaluations, key=lambda evaluation: (value(evaluation), evaluation.number))
        figure = f"{value(closest) / maximal:.3g}x" if pick.relative else f"{value(closest):.6g}"
        raise LonasEdgeError(
            f"No network meets {pick.expression}; the closest is {figure} (evaluation {closest.number}). "
            "Relax the bound or raise --evals."
        )
    best = front(met)
    return best[0] if pick.measure in QUALITIES else best[-1]


def check_picks(
    picks: Iterable[Pick], smallest: Sequence[int], largest: Sequence[int], costs: Mapping[str, CostFunction]
) -> None:
    """Refuse a pick below the cost of the smallest network; picks of other measures than `costs` are ignored."""
    for pick in picks:
        if pick.measure not in costs:
            continue
        cost = costs[pick.measure]
        least, most = cost(smallest), cost(largest)
        if not pick.meets(least, most):
            figure = f"{least / most:.3g}x" if pick.relative else f"{least:.6g}"
            raise LonasEdgeError(f"{pick.expression}: the smallest network has {pick.measure} {figure}. Relax the bound.")
