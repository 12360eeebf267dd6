"""A target in a metric, `exact-match>=-1`: choose the most pruned network whose measured difference meets the bound.

The search removes one part after another, and bounds on its KL divergence, of encoders on the MACs, give candidates. One with
fewer removed parts answers better, so a bisection tries few of them, each after its whole recovery: shorter and gradual ones
end far below (docs/benchmarks/recovery.md). Where no pruned network meets the bound, the unpruned one in the weight format is
tried, first recovered, then, of language models, by GPTQ; where both miss it, the result is the unpruned model in INT8.

At last the head is tried in INT4, where the layers are: with a large vocabulary it is much of what a token reads.
"""

import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from lonas_edge.commands import Command
from lonas_edge.data.language import LanguageTask
from lonas_edge.errors import LonasEdgeError
from lonas_edge.evaluate.answer_metrics import identity
from lonas_edge.evaluate.answers import FILE
from lonas_edge.exporting.export import export
from lonas_edge.exporting.options import ExportOptions
from lonas_edge.network.source import Source, open_source
from lonas_edge.pipeline.baselines import NAMES
from lonas_edge.pipeline.measure import answers, distances
from lonas_edge.pipeline.plan import Plan
from lonas_edge.pipeline.record import Trial
from lonas_edge.pipeline.steps import BASELINES, CHOOSE, SEARCH, Step
from lonas_edge.pipeline.targets import MetricBound
from lonas_edge.pipeline.training import train_or_continue
from lonas_edge.progress import Progress
from lonas_edge.schema import Record
from lonas_edge.search import SEARCH as SEARCH_FILE
from lonas_edge.search.picks import Pick
from lonas_edge.search.record import SearchRecord
from lonas_edge.space.selection import SubnetworkRecord
from lonas_edge.space.subnetwork import Subnetwork

CHOICE, TRIALS = "choice.json", "trials.json"
UNPRUNED = Pick("unpruned", "unpruned", 0.0)
HEAD_FORMAT = "int4"
ROUNDED = Pick("gptq", "gptq", 0.0)  # the unpruned network by GPTQ, without a recovery
HEAD = Pick("int4-head", "int4-head", 0.0)  # the chosen network with an INT4 head
LEAST_SAVING = 0.05  # share of the cost that a candidate must save: docs/benchmarks/compress.md


@dataclass(frozen=True)
class ChoiceRecord(Record):
    """How the network of a target in a metric was chosen."""

    NAME: ClassVar = "compress-choice"
    VERSION: ClassVar = 1
    AGAIN: ClassVar = "Run `lonas-edge compress --overwrite`."

    chosen: str | None  # the pick, `UNPRUNED` or `ROUNDED`; None for the unpruned model in INT8
    head_format: str | None  # None where the export's own is kept
    trials: tuple[Trial, ...]  # the least pruned first, that of the head last


@dataclass(frozen=True)
class TrialsRecord(Record):
    """The networks that were tried so far."""

    NAME: ClassVar = "compress-trials"
    VERSION: ClassVar = 1
    AGAIN: ClassVar = ChoiceRecord.AGAIN

    by_adapter: dict[str, Trial]  # by name of the recovered adapter, or of `ROUNDED`; that of an INT4 head with its suffix


def choose(plan: Plan, target: str) -> Step:
    """Choose the network of a target in a metric."""
    bound, paths = plan.picks[target], plan.paths
    assert isinstance(bound, MetricBound)
    folder = paths.choice(bound)

    def work(progress: Progress) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        chosen, trials = _most_pruned(plan, bound, progress)
        head_format = None
        if plan.profile.kind.generates and plan.trained_for:
            chosen, of_gptq = (chosen, None) if chosen or paths.trims else _by_gptq(plan, bound, progress)
            of_head = _with_head(plan, bound, chosen, progress) if chosen else None
            trials = [*filter(None, (of_gptq, *trials, of_head))]
            head_format = HEAD_FORMAT if of_head and _met(plan, bound, of_head) else None
        ChoiceRecord(chosen.expression if chosen else None, head_format, tuple(trials)).write(folder / CHOICE)

    training = plan.recovery_command("CANDIDATE", folder / "CANDIDATE", plan.recovery_options)
    files = {"": paths.baseline("int8"), "data": paths.held_out}
    metric = {"metric": plan.metric_of(bound)} if plan.profile.kind.generates else {}
    commands = [training, Command("lonas-edge eval", None, files, metric)]
    seconds = plan.most_trials * plan.training_seconds(plan.recovery_options, plan.probe.recovery_step)
    inputs = {"metric": identity(plan.metric_of(bound))}
    outputs, folders = (f"choice/{bound.file}/{CHOICE}",), f"choice/{bound.file}"
    return Step(CHOOSE + target, commands, work, outputs, (SEARCH, BASELINES), inputs, folder=folders, estimate=seconds)


def _most_pruned(plan: Plan, bound: MetricBound, progress: Progress) -> tuple[Pick | None, list[Trial]]:
    """The most pruned candidate within a bound, by bisection, None if there is none; and the trials, the least pruned first."""
    candidates, trials, low = _candidates(plan), dict[int, Trial](), -1
    high = len(candidates)
    while high - low > 1:  # candidates up to `low` meet the bound, those from `high` on do not
        middle = (low + high) // 2
        pick, network = candidates[middle]
        SubnetworkRecord.of(network).write(plan.paths.subnetwork(bound))
        known, adapter = _known_trials(plan, bound), plan.adapter(network).name
        trials[middle] = known.get(adapter) or _try(plan, bound, pick, progress)
        TrialsRecord({**known, adapter: trials[middle]}).write(plan.paths.choice(bound) / TRIALS)
        low, high = (middle, high) if _met(plan, bound, trials[middle]) else (low, middle)
    chosen, network = candidates[low] if low >= 0 else (None, plan.start.select("maximal"))
    SubnetworkRecord.of(network).write(plan.paths.subnetwork(bound))
    return chosen, [trials[index] for index in sorted(trials)]


def _met(plan: Plan, bound: MetricBound, trial: Trial) -> bool:
    return bound.allows(trial.difference.value, plan.counts["held_out"])


def _by_gptq(plan: Plan, bound: MetricBound, progress: Progress) -> tuple[Pick | None, Trial | None]:
    """Try the unpruned network by GPTQ."""
    trial = _try_on_data(plan, bound, ROUNDED, None, progress)
    return ROUNDED if trial and _met(plan, bound, trial) else None, trial


def _with_head(plan: Plan, bound: MetricBound, chosen: Pick, progress: Progress) -> Trial | None:
    """Try the chosen network with an INT4 head."""
    return _try_on_data(plan, bound, HEAD, None if chosen == ROUNDED else plan.adapter(plan.network(bound)), progress)


def unpruned_export(plan: Plan, pick: Pick) -> ExportOptions | None:
    """How the unpruned model is exported where no recovered network met a bound; None where one is the result."""
    record = _choice(plan, pick)
    if record is None or record.chosen not in (None, ROUNDED.expression):
        return None
    if record.chosen is None:
        return ExportOptions(weight_format="int8", prompt=plan.options.template)
    return rounded(plan, record.head_format)


def export_options(plan: Plan, pick: Pick) -> ExportOptions:
    """How the network of a target is exported."""
    record = _choice(plan, pick)
    if record and record.head_format:
        return rounded(plan, record.head_format)
    return unpruned_export(plan, pick) or ExportOptions(weight_format=str(plan.options.weight_format))


def rounded(plan: Plan, head_format: str | None = None) -> ExportOptions:
    """The options of an export by GPTQ: of layers that were not trained for the format, and of a head in four bits."""
    calibration, prompt = plan.paths.train, plan.options.template
    return ExportOptions(
        weight_format=str(plan.options.weight_format), head_format=head_format, calibration=calibration, prompt=prompt
    )


def _choice(plan: Plan, pick: Pick) -> ChoiceRecord | None:
    """The choice of a target in a metric; None for another target."""
    return ChoiceRecord.read(plan.paths.choice(pick) / CHOICE) if isinstance(pick, MetricBound) else None


def _known_trials(plan: Plan, bound: MetricBound) -> dict[str, Trial]:
    """The trials in the same metric, also of an interrupted run, by name of the adapter."""
    files = [plan.paths.choice(each) / TRIALS for each in plan.bounds.values() if each.measure == bound.measure]
    return {name: trial for file in files if file.exists() for name, trial in TrialsRecord.read(file).by_adapter.items()}


def _candidates(plan: Plan) -> list[tuple[Pick, Subnetwork]]:
    """The networks to try, each once, the least pruned first; the unpruned one, too, where it is not the baseline itself.

    One that saves hardly anything by the search is not worth its recovery, and may still cost accuracy.
    """
    search = SearchRecord.read(plan.paths.work / "search" / SEARCH_FILE)
    costs = {each.file: search.evaluations[each.evaluation].cost / search.unpruned_cost for each in search.picks}
    maximal = plan.start.select("maximal")
    candidates = {maximal.canonical: (UNPRUNED, maximal)}
    for pick in plan.candidates:
        network = plan.network(pick)
        if costs[pick.file] <= 1 - LEAST_SAVING:
            candidates.setdefault(network.canonical, (pick, network))
    return list(candidates.values())[0 if plan.tries_unpruned else 1 :]


def _try(plan: Plan, bound: MetricBound, pick: Pick, progress: Progress) -> Trial:
    """Recover a candidate, and score it; continues where it was stopped."""

    def report(what: str, done: float | None) -> None:
        progress(f"{pick.expression}: {what}", done)

    source = open_source(str(recovered_adapter(plan, bound, report)), plan.paths.student)
    return _score(plan, bound, pick, source, ExportOptions(weight_format=str(plan.options.weight_format)), report)


def _score(plan: Plan, bound: MetricBound, pick: Pick, source: Source, options: ExportOptions, report: Progress) -> Trial:
    """Export a network, and score it on the held-out examples."""
    paths, network, exported = plan.paths, plan.network(bound), plan.paths.choice(bound) / "model"
    shutil.rmtree(exported, ignore_errors=True)
    export(source, source.select(None), exported, replace(options, verify=False), report)
    data, measured = plan.open_data(paths.held_out), {NAMES["int8"]: paths.baseline("int8"), pick.file: exported}
    if isinstance(data, LanguageTask):
        qualities, _ = answers(measured, data, [plan.metric_of(bound)], paths.work / FILE, report)
        quality = next(iter(qualities.values()))
        if not quality[NAMES["int8"]].value:
            raise LonasEdgeError(
                f"{plan.metric_of(bound)} of the unpruned model is 0 on the held-out examples, so a target in it bounds "
                "nothing. Choose another --metric, train longer (--epochs), or bound the KL: --target kl=0.005."
            )
        difference = quality[pick.file].difference
    else:
        difference = distances(measured, data, None, report)[bound.measure][pick.file].difference
    shutil.rmtree(exported)
    assert difference
    share = plan.start.sizes(network).linear_weights / plan.start.sizes(plan.start.unpruned).linear_weights
    architecture = plan.start.architecture
    layers = {architecture.split(name)[0] for name in network.removed}
    whole = len(network.removed) == sum(architecture.split(name)[0] in layers for name in architecture.blocks)
    count, what = (len(layers), "layer") if whole else (len(network.removed), "block")
    removed = f"{count} {what}{'s' * (count > 1)} removed, " if count else ""
    names = {UNPRUNED: "unpruned", ROUNDED: "unpruned by GPTQ", HEAD: "the chosen one with an INT4 head"}
    described = names.get(pick) or f"{removed}{share:.2f}x linear weights"
    report(f"{described}, {difference.value:+.3g} [{difference.low:+.3g}, {difference.high:+.3g}]\nnext", None)
    return Trial(pick.expression, described, difference)


def _try_on_data(plan: Plan, bound: MetricBound, pick: Pick, adapter: Path | None, progress: Progress) -> Trial | None:
    """Score an export by GPTQ, of a recovered network or the unpruned one: its layers, or its head (`HEAD`), too.

    A failure, such as too few examples, costs this trial, not the run.
    """
    known, options = _known_trials(plan, bound), rounded(plan, HEAD_FORMAT if pick == HEAD else None)
    key = f"{adapter.name if adapter else ROUNDED.file}{'-head' if pick == HEAD else ''}"
    try:
        if key not in known:
            source = open_source(str(adapter), plan.paths.student) if adapter else plan.unpruned
            known[key] = _score(plan, bound, pick, source, options, progress)
    except LonasEdgeError as error:
        if isinstance(error.__cause__, KeyboardInterrupt):
            raise
        progress(f"GPTQ failed: {error}\nnext", None)
        return None
    TrialsRecord(known).write(plan.paths.choice(bound) / TRIALS)
    return known[key]


def recovered_adapter(plan: Plan, pick: Pick, progress: Progress) -> Path:
    """Recover the network of a pick, continue that, or find its adapter, which targets and trials of one network share."""
    adapter = plan.adapter(plan.network(pick))
    if not adapter.exists():
        train_or_continue(plan.open_recovery(pick), adapter, plan.recovery_options, progress)
    return adapter
