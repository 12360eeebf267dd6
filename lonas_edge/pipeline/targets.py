"""Targets of `compress`: bounds on the KL divergence or a cost, and bounds on a metric of the task."""

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lonas_edge.data.language import question_and_reference, read_examples
from lonas_edge.data.task import SHARE, Task
from lonas_edge.errors import UsageError
from lonas_edge.evaluate.answer_metrics import METRICS, choose_metric, suited
from lonas_edge.pipeline.options import LABEL_METRICS, OWN, SPEARMAN, named_measure
from lonas_edge.pipeline.tasks import Profile
from lonas_edge.search.cost import COSTS, default_cost
from lonas_edge.search.picks import Pick, parse_picks
from lonas_edge.training.options import AUTO

LEAST_EXAMPLES = 50  # held-out examples whose answers say something
_ROUNDING = 1e-9
_FORM = re.compile(r"\s*([a-z0-9]+(?:-[a-z0-9]+)*)\s*>?=\s*(-?(?:[0-9]+\.?[0-9]*|\.[0-9]+))\s*", re.IGNORECASE)
_LEVELS = (0.005, 0.05)  # KL divergences of the candidates, before their recovery: docs/benchmarks/compress.md
_SHARES = (0.1, 0.3, 0.6)  # of what can be removed, in MACs: the candidates of encoders


@dataclass(frozen=True)
class MetricBound(Pick):
    """A bound on the difference of a metric from the unpruned INT8 model, in points; of a user's metric in its unit."""

    @property
    def file(self) -> str:
        """File name: `exact-match-1` for `exact-match>=-1`."""
        return f"{self.measure}-{abs(self.bound):g}"

    def allows(self, difference: float, examples: int) -> bool:
        """Whether a measured difference is within the bound. Of few examples, one answer may be lost, unless the bound is 0."""
        answer = 0.0 if self.measure in (OWN, SPEARMAN) or not self.bound else 100 / examples
        return difference >= min(self.bound, -answer) - _ROUNDING


def _parse_bound(text: str, profile: Profile, metric: str | None) -> MetricBound | None:
    """Parse a target in a metric; None for other targets. `metric` is the value of --metric."""
    name, parsed = named_measure(text), _FORM.fullmatch(text)
    if name not in (*METRICS, OWN, *LABEL_METRICS):
        return None
    if not parsed:
        raise UsageError(f"--target {text.strip()}: expected {name}=-1, in points below the unpruned INT8 model; 0 or less.")
    bound = float(parsed[2])
    known = [*METRICS, OWN] if profile.kind.generates else profile.metrics
    problem = None
    if name not in known:
        problem = f"not a metric of this {profile.name}; bound {', '.join(known)}, kl or a cost"
    elif name == OWN and not metric:
        problem = "pass --metric"
    elif bound > 0:
        problem = "no network is sure to be better than the unpruned INT8 model; expected a bound of 0 or less"
    if problem:
        raise UsageError(f"--target {text.strip()}: {problem}.")
    return MetricBound(f"{name}>={bound:g}", name, bound)


def auto_target(profile: Profile, data: Path, eval_data: Path | None, metric: str | None) -> str:
    """What `auto` stands for: of a language model one point in the metric of answers, where enough of them are held out.

    A bound on the KL divergence says little about answers: 0.15 cost 4 to 9 points on SNIPS (docs/benchmarks/compress.md).
    What a point is in a metric of the user's own is not known.
    """
    if not profile.kind.generates or metric not in (None, AUTO, *METRICS):
        return profile.target
    examples = {json.dumps(example.record()): example for example in read_examples(eval_data or data)[1]}
    references = [text for each in examples.values() if (text := question_and_reference(each)[1]).strip()]
    if (len(references) if eval_data else len(references) // SHARE) < LEAST_EXAMPLES:
        return profile.target
    return f"{metric if metric in METRICS else suited(references)}>=-1"


def parse_targets(targets: Sequence[str], profile: Profile, metric: str | None = None) -> dict[str, Pick]:
    """The picks by target, each in one spelling: `tpot<=0.7x` for `tpot <= 0.70X`."""
    expressions = [profile.target if target == AUTO else target for target in targets]
    bounds = [_parse_bound(text, profile, metric) for text in expressions]
    costs = [name for name, cost in COSTS.items() if not cost.timed or cost.generates == profile.kind.generates]
    others = iter(
        parse_picks([text for text, bound in zip(expressions, bounds, strict=True) if not bound], ["kl", *costs], "--target")
    )
    picks: dict[str, Pick] = {}
    for target, bound in zip(targets, bounds, strict=True):
        pick = bound or next(others)
        name = bound.expression if bound else f"{pick.measure}<={pick.file.removeprefix(pick.measure)[1:]}"
        if name in picks:
            raise UsageError(f"--target {target}: the same bound as {name}. Name it once.")
        picks[name] = pick
    return picks


def candidate_picks(profile: Profile, least: float) -> list[Pick]:
    """The picks whose networks a target in a metric chooses from, the least pruned first.

    Distances of encoders have no common scale, so theirs bound the MACs. `least` is the share of MACs that the smallest network
    has.
    """
    if profile.kind.generates:
        return [Pick(f"kl<={level:g}", "kl", level) for level in _LEVELS]
    shares = [max(round(1 - (1 - least) * share, 3), math.ceil(1000 * least) / 1000) for share in _SHARES]
    return [Pick(f"macs<={share:g}x", "macs", share, relative=True) for share in dict.fromkeys(shares)]


def check_labels(held_out: Task, picks: Iterable[Pick]) -> None:
    """Refuse targets in a metric of encoders where the held-out examples have no labels, or all have the same one."""
    bounds = [pick.expression for pick in picks if isinstance(pick, MetricBound)]
    if bounds and len({example.label for example in held_out.examples}) < 2:
        raise UsageError(
            f"--target {bounds[0]}: {held_out.path}: the held-out examples have no labels, or all have the same one. Pass "
            "labelled examples by --eval-data, or bound kl or a cost."
        )


def check_metrics(held_out: Path, metric: str | None, picks: Iterable[Pick]) -> None:
    """Refuse, before the first step, metrics that do not exist or fail, and metrics of plain texts, which have no answers."""
    bounds = [pick for pick in picks if isinstance(pick, MetricBound)]
    if not (metric or bounds):
        return
    references = [text for example in read_examples(held_out)[1] if (text := question_and_reference(example)[1]).strip()]
    if not references:
        what = f"--target {bounds[0].expression}" if bounds else f"--metric {metric}"
        raise UsageError(f"{what}: plain texts have no answers to score; pass conversations or instructions, or bound kl.")
    for name in filter(None, [metric, *(bound.measure for bound in bounds if bound.measure != OWN)]):
        for score in choose_metric(name, references).figures.values():
            score(references[0], references[0])


def cost_of(picks: Mapping[str, Pick], profile: Profile) -> str:
    """The cost that the search minimizes: the latency that a target bounds, else the size, else the default.

    Raises:
        UsageError: If targets bound several latencies.
    """
    bounded = [pick.measure for pick in picks.values() if pick.measure in COSTS]
    timed = sorted({measure for measure in bounded if COSTS[measure].timed})
    if len(timed) > 1:
        raise UsageError(f"--target bounds {' and '.join(timed)}; one run searches for one of them. Run compress twice.")
    return next(iter([*timed, *bounded]), default_cost(profile.kind))
