"""A target in a metric of answers, `exact-match>=-1`: choose the most pruned network whose measured difference meets the bound.

The search removes one block after another, and bounds on its KL divergence give candidates. A candidate with fewer removed
blocks answers better, so a bisection tries few of them, each after a short recovery. The chosen one gets a whole recovery.
The unpruned network in the weight format is the last resort but one; where even that misses the bound, the result is the
unpruned model in INT8.
"""

import math
import shutil
from dataclasses import dataclass, replace
from typing import ClassVar

from lonas_edge.commands import Command
from lonas_edge.data.language import LanguageTask
from lonas_edge.evaluate.answer_metrics import identity
from lonas_edge.evaluate.answers import FILE
from lonas_edge.exporting.export import export
from lonas_edge.exporting.options import ExportOptions
from lonas_edge.network.source import open_source
from lonas_edge.pipeline.baselines import NAMES
from lonas_edge.pipeline.measure import answers
from lonas_edge.pipeline.plan import Plan
from lonas_edge.pipeline.record import Trial
from lonas_edge.pipeline.steps import BASELINES, CHOOSE, SEARCH, Step
from lonas_edge.pipeline.targets import MetricBound, candidate_picks
from lonas_edge.pipeline.training import train_or_continue
from lonas_edge.progress import Progress
from lonas_edge.schema import Record
from lonas_edge.search.picks import Pick
from lonas_edge.space.selection import SubnetworkRecord
from lonas_edge.training.options import TrainOptions

CHOICE = "choice.json"
UNPRUNED = Pick("unpruned", "unpruned", 0.0)
_SHORT, _LEAST_STEPS = 4, 8  # a short recovery has a quarter of the steps, and eight at least


@dataclass(frozen=True)
class ChoiceRecord(Record):
    """How the network of a target in a metric was chosen."""

    NAME: ClassVar = "compress-choice"
    VERSION: ClassVar = 1
    AGAIN: ClassVar = "Run `lonas-edge compress --overwrite`."

    chosen: str | None  # the pick, or `UNPRUNED`; None for the unpruned model in INT8
    trials: tuple[Trial, ...]  # the least pruned first


def choose(plan: Plan, target: str) -> Step:
    """Choose the network of a target in a metric."""
    bound, paths, options = plan.picks[target], plan.paths, plan.recovery_options
    assert isinstance(bound, MetricBound)
    assert options.steps
    folder, steps = paths.choice(bound), min(options.steps, max(_LEAST_STEPS, math.ceil(options.steps / _SHORT)))
    short = replace(options, steps=steps, eval_steps=steps, save_steps=steps)

    def work(progress: Progress) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        SubnetworkRecord.of(plan.start.select("maximal")).write(paths.subnetwork(bound))
        candidates, known = _candidates(plan), _known_trials(plan, bound)
        trials, low, high = dict[int, Trial](), -1, len(candidates)
        while high - low > 1:  # candidates up to `low` meet the bound, those from `high` on do not
            middle = (low + high) // 2
            pick = candidates[middle]
            trials[middle] = known.get(pick.expression) or _try(plan, bound, pick, short, progress)
            low, high = (middle, high) if trials[middle].difference.value >= bound.bound else (low, middle)
        chosen = candidates[low] if low >= 0 else None
        if chosen and chosen is not UNPRUNED:
            SubnetworkRecord.of(plan.network(chosen)).write(paths.subnetwork(bound))
        record = ChoiceRecord(chosen.expression if chosen else None, tuple(trials[index] for index in sorted(trials)))
        record.write(folder / CHOICE)
        for pick in candidates:
            shutil.rmtree(folder / pick.file, ignore_errors=True)

    training = plan.recovery_command("CANDIDATE", folder / "CANDIDATE", short)
    files = {"": paths.baseline("int8"), "data": paths.held_out}
    commands = [training, Command("lonas-edge eval", None, files, {"metric": plan.metric_of(bound)})]
    seconds = len(bin(len(candidate_picks()))[2:]) * plan.training_seconds(short, plan.probe.recovery_step)
    inputs = {"metric": identity(plan.metric_of(bound))}
    outputs, folders = (f"choice/{bound.file}/{CHOICE}",), f"choice/{bound.file}"
    return Step(CHOOSE + target, commands, work, outputs, (SEARCH, BASELINES), inputs, folder=folders, estimate=seconds)


def keeps_int8(plan: Plan, pick: Pick) -> bool:
    """Whether no network met a bound, so that the result is the unpruned model in INT8."""
    return isinstance(pick, MetricBound) and ChoiceRecord.read(plan.paths.choice(pick) / CHOICE).chosen is None


def _known_trials(plan: Plan, bound: MetricBound) -> dict[str, Trial]:
    """The trials of earlier targets in the same metric, by pick."""
    files = [plan.paths.choice(each) / CHOICE for each in plan.bounds.values() if each.measure == bound.measure]
    return {trial.pick: trial for file in files if file.exists() for trial in ChoiceRecord.read(file).trials}


def _candidates(plan: Plan) -> list[Pick]:
    """The networks to try, each once, the least pruned first; the unpruned one, too, where it is not the baseline itself."""
    candidates = {plan.start.select("maximal").canonical: UNPRUNED}
    for pick in candidate_picks():
        candidates.setdefault(plan.network(pick).canonical, pick)
    return list(candidates.values())[0 if plan.trained_for or plan.paths.trims else 1 :]


def _try(plan: Plan, bound: MetricBound, pick: Pick, options: TrainOptions, progress: Progress) -> Trial:
    """Train a candidate for a short time, export it, and score its answers; continues where it was stopped."""
    paths, network = plan.paths, bound if pick is UNPRUNED else pick
    folder = paths.choice(bound) / pick.file
    recovered, exported = folder / "recovered", folder / "model"

    def report(what: str, done: float | None) -> None:
        progress(f"{pick.expression}: {what}", done)

    if not recovered.exists():
        train_or_continue(plan.open_recovery(network), recovered, options, report)
    if not exported.exists():
        source = open_source(str(recovered), paths.student)
        stored = ExportOptions(weight_format=str(plan.options.weight_format), verify=False)
        export(source, source.select(None), exported, stored, report)
    data = plan.open_data(paths.held_out)
    assert isinstance(data, LanguageTask)
    measured = {NAMES["int8"]: paths.baseline("int8"), pick.file: exported}
    qualities, _ = answers(measured, data, [plan.metric_of(bound)], paths.work / FILE, report)
    difference = next(iter(qualities.values()))[pick.file].difference
    assert difference
    chosen = plan.network(network)
    share = plan.start.sizes(chosen).linear_weights / plan.start.sizes(plan.start.unpruned).linear_weights
    described = f"{len(chosen.removed)} blocks removed" if chosen.removed else f"{share:.2f}x linear weights"
    described = "unpruned" if pick is UNPRUNED else described
    report(f"{described}, {difference.value:+.3g} [{difference.low:+.3g}, {difference.high:+.3g}]\nnext", None)
    return Trial(pick.expression, described, difference)
