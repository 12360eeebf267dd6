"""Picks: a bound, and what is best under it. `macs<=1.43e12`, `tpot<=0.85x` (x: of the maximal network), `kl<=0.05`."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from lonas_edge.errors import LonasEdgeError, raise_all
from lonas_edge.search.quality import QUALITIES
from lonas_edge.search.record import Evaluation, front

_FORM = re.compile(r"\s*([a-z]+)\s*(<=|>=)\s*([0-9.]+(?:e[+-]?[0-9]+)?)\s*(x?)\s*", re.IGNORECASE)
Value = Callable[[Evaluation], float]  # of one measure


@dataclass(frozen=True)
class Pick:
    """A bound on a measure.

    Attributes:
        expression: As it was given.
        measure: Name of a quality or cost.
        bound: The bound.
        relative: Whether it is a multiple of the maximal network's figure.
        at_least: Whether the figure must be as high (accuracy), rather than as low.
    """

    expression: str
    measure: str
    bound: float
    relative: bool = False
    at_least: bool = False

    @property
    def file(self) -> str:
        """A name for a file: `macs<=1.43e12` is `macs-1.43e12`."""
        return f"{self.measure}-{self.bound:g}{'x' if self.relative else ''}".replace("+", "")

    def limit(self, maximal: float) -> float:
        """The bound in the measure's unit."""
        return self.bound * maximal if self.relative else self.bound

    def meets(self, value: float, maximal: float) -> bool:
        """Whether a figure keeps the bound."""
        return value >= self.limit(maximal) if self.at_least else value <= self.limit(maximal)


def parse_picks(expressions: Sequence[str], measures: Sequence[str]) -> list[Pick]:
    """Read --pick.

    Args:
        expressions: As on the command line.
        measures: Names that this search has.

    Returns:
        The picks.

    Raises:
        LonasEdgeError: If one cannot be read; all are listed.
    """
    found, problems = [], []
    for text in expressions:
        parsed = _FORM.fullmatch(text)
        name = parsed[1].lower() if parsed else ""
        at_least = name in QUALITIES and QUALITIES[name].sign < 0
        if not parsed or not _number(parsed[3]):
            problems.append(f"{text!r}: expected MEASURE<=NUMBER or MEASURE<=NUMBERx, such as 'macs<=0.85x'")
        elif name not in measures:
            problems.append(f"{text!r}: {name} is not measured; this search has {', '.join(measures)}")
        elif (parsed[2] == ">=") != at_least:
            problems.append(f"{text!r}: {name} is to be {'high: >=' if at_least else 'low: <='}")
        elif parsed[4] and name in QUALITIES:
            problems.append(f"{text!r}: x is for costs; a quality is bounded in its unit, {QUALITIES[name].unit}")
        else:
            found.append(Pick(text.strip(), name, float(parsed[3]), bool(parsed[4]), at_least))
    raise_all("--pick cannot be used:", problems)
    return found


def _number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def resolve(
    pick: Pick, evaluations: Sequence[Evaluation], values: Mapping[str, Value], maximal: Evaluation, sign: int
) -> Evaluation:
    """Find the best network under a bound: the best quality under a cost's, the cheapest under a quality's.

    Args:
        pick: The bound.
        evaluations: What was evaluated.
        values: The measures by name.
        maximal: The maximal network, for relative bounds.
        sign: 1 where a lower quality is better, -1 where a higher one is.

    Returns:
        The evaluation.

    Raises:
        LonasEdgeError: If none is under it; the nearest is named.
    """
    value = values[pick.measure]
    whole = value(maximal)
    met = [one for one in evaluations if pick.meets(value(one), whole)]
    if not met:
        nearest = min(evaluations, key=lambda one: (-value(one) if pick.at_least else value(one), one.number))
        share = f" ({value(nearest) / whole:.3g}x)" if pick.relative else ""
        raise LonasEdgeError(
            f"--pick {pick.expression}: nothing meets it; the nearest is evaluation {nearest.number} with {pick.measure} "
            f"{value(nearest):.6g}{share}, quality {nearest.quality:.4g}, cost {nearest.cost:.6g}"
        )
    best = front(met, sign)
    return best[0] if pick.measure in QUALITIES else best[-1]
