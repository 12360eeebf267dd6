"""Picks: a bound, and the best network under it. `macs<=1.43e12`, `tpot<=0.85x` (x: times the unpruned network), `kl<=0.05`.

`tpot=0.85x` is the same: a shell would take `<` for a redirection.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from lonas_edge.errors import LonasEdgeError, UsageError, raise_all
from lonas_edge.search.cost import QUALITIES, CostFunction
from lonas_edge.search.record import Evaluation, Named, front

_FORM = re.compile(r"\s*([a-z]+(?:-[a-z]+)*)\s*<?=\s*([0-9]+\.?[0-9]*(?:e[+-]?[0-9]+)?|\.[0-9]+)\s*(x?)\s*", re.IGNORECASE)


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
            forms = "MEASURE=NUMBER (times in ms, sizes in bytes) or MEASURE=NUMBERx, such as macs=0.85x"
            problems.append(f"{text!r}: expected {forms}; MEASURE is one of {', '.join(measures)}")
            continue
        name = parsed[1].lower()
        if name not in measures:
            problems.append(f"{text!r}: {name} is not measured here; expected one of {', '.join(measures)}")
        elif parsed[3] and name in QUALITIES:
            problems.append(f"{text!r}: x is for costs only; give {name} without x")
        else:
            expression = text.strip() if "<" in text else text.strip().replace("=", "<=")
            picks.append(Pick(expression, name, float(parsed[2]), bool(parsed[3])))
    raise_all(f"Invalid {option}:", problems, error=UsageError)
    return picks


def resolve_picks(
    picks: Iterable[Pick],
    evaluations: Sequence[Evaluation],
    costs: Mapping[str, CostFunction],
    maximal: Sequence[int],
    reached: Sequence[Evaluation] | None = None,
) -> tuple[tuple[Named, ...], list[str]]:
    """Find the best network under each bound: the best quality if a cost is bounded, the cheapest if a quality is.

    Args:
        picks: The picks.
        evaluations: All evaluations.
        costs: Costs by name; other measures are the quality.
        maximal: Widths of the maximal network.
        reached: Evaluations that may meet a bound on a cost; all if None.

    Returns:
        The networks, and an error for each pick that no network meets.
    """
    networks, errors = [], []
    for pick in picks:
        offered = evaluations
        if cost := costs.get(pick.measure):
            offered = evaluations if reached is None else reached
            unpruned, figures = cost(maximal), [cost(evaluation.widths) for evaluation in offered]
        else:
            unpruned, figures = 0.0, [evaluation.quality for evaluation in offered]
        met = [evaluation for evaluation, figure in zip(offered, figures, strict=True) if pick.meets(figure, unpruned)]
        if met:
            best = front(met)[-1 if cost else 0]
            networks.append(Named(f"pick:{pick.expression}", best.number, pick.file))
            continue
        least = min(figures)
        figure = f"{least / unpruned:.3g}x" if pick.relative else f"{least:.6g}"
        closest = f"the closest is {figure} (evaluation {offered[figures.index(least)].number})"
        errors.append(f"No network meets {pick.expression}; {closest}. Relax the bound or raise --evals.")
    return tuple(networks), errors


def check_picks(picks: Iterable[Pick], named: Mapping[str, Sequence[int]], costs: Mapping[str, CostFunction]) -> None:
    """Refuse a pick below the cost of the smallest network; `named` are `Dimensions.named`, other measures are ignored."""
    for pick in picks:
        if pick.measure not in costs:
            continue
        cost = costs[pick.measure]
        least, most = cost(named["minimal"]), cost(named["maximal"])
        if not pick.meets(least, most):
            figure = f"{least / most:.3g}x" if pick.relative else f"{least:.6g}"
            raise LonasEdgeError(f"{pick.expression}: the smallest network has {pick.measure} {figure}. Relax the bound.")
