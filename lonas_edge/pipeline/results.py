"""Measure the networks of a run, and make its record."""

import math
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lonas_edge.commands import to_argv
from lonas_edge.data.language import LanguageTask
from lonas_edge.evaluate import answers
from lonas_edge.exporting.manifest import MANIFEST, Manifest
from lonas_edge.ir import WEIGHTS
from lonas_edge.network.location import TRAINING
from lonas_edge.network.source import Source
from lonas_edge.network.training_record import TrainingRecord
from lonas_edge.network.vocabulary_record import vocabulary_of
from lonas_edge.pipeline import measure
from lonas_edge.pipeline.baselines import LORA, Baseline, compared, compares_gptq, gptq_command, gptq_seconds
from lonas_edge.pipeline.choice import CHOICE, ChoiceRecord
from lonas_edge.pipeline.defaults import cost_settings
from lonas_edge.pipeline.measure import Qualities
from lonas_edge.pipeline.plan import Plan, trained_for
from lonas_edge.pipeline.record import Candidate, CompressRecord, Curve, Latency, Network, Quality
from lonas_edge.pipeline.stages import RECOVER
from lonas_edge.progress import Progress
from lonas_edge.search import SEARCH
from lonas_edge.search.record import SearchRecord

_CURVE_POINTS = 200
LEAST_EXAMPLES = 50  # held-out examples whose answers say something


def make_record(plan: Plan, folders: Mapping[str, str], here: Mapping[str, Any], progress: Progress) -> CompressRecord:
    """Measure baselines and compressed networks.

    Args:
        plan: The run, whose other steps are done.
        folders: The directory in the output of each target.
        here: The machine.
        progress: Reports what is being done.
    """
    paths, options, case = plan.paths, plan.options, cost_settings(plan.options).case
    ours = "compressed INT4" if trained_for(options) else "compressed INT8"
    stored = {each.name: each for each in compared(plan) if paths.baseline(each.folder).exists()}
    measured = {name: paths.baseline(each.folder) for name, each in stored.items()}
    targets = {f"{ours} ({target})" if len(plan.picks) > 1 else ours: target for target in plan.picks}
    measured |= {name: paths.model(plan.picks[target]) for name, target in targets.items()}
    trimmed = vocabulary_of(Path(paths.student)) if paths.trims else None
    tokens = trimmed.tokens_per_text if trimmed else 1.0
    latencies, bench = measure.latencies(measured, case, dict.fromkeys(targets, tokens), progress)
    source = plan.unpruned
    data = source.open_data(paths.held_out, options.prompt, labels=True)
    if isinstance(data, LanguageTask):
        qualities = measure.losses(measured, data, source.base.folder, progress)
        log = paths.work / answers.FILE
        answered, samples = measure.answers(measured, data, plan.metrics, log, progress)
        if answered:
            for name, latency in measure.answer_times(measured, data, source.base.folder, progress).items():
                latencies[name]["answer"] = latency
        metric, qualities = next(iter(answered), None), {**answered, **qualities}
    else:
        qualities, samples, metric = measure.distances(measured, data, paths.baseline("fp32"), progress), [], None
    networks = []
    for name, exported in measured.items():
        quality = {each: values[name] for each, values in qualities.items()}
        target = targets.get(name)
        networks.append(_network(source, name, exported, target, folders, stored.get(name), quality, latencies[name]))
    choices = {target: ChoiceRecord.read(paths.choice(bound) / CHOICE) for target, bound in plan.bounds.items()}
    search = SearchRecord.read(paths.work / "search" / SEARCH)
    return CompressRecord(
        task=plan.defaults.name,
        source=(plan.source.adapter or plan.source.base).name,
        base=source.base.name,
        data=options.data.name,
        examples=dict(plan.counts),
        options={
            **{name: str(value) if isinstance(value, Path) else value for name, value in vars(options).items()},
            "target": list(plan.picks),
            "precision": plan.probe.precision,
            "evals": plan.search_options.evals,
            "folders": {plan.picks[target].file: name for target, name in folders.items()},
        },
        sha256=dict(plan.hashes),
        machine=dict(here),
        versions=dict(bench.conditions["versions"]),
        cost=search.cost,
        steps=(),
        networks=tuple(networks),
        curves=_curves(plan),
        candidates=candidates_of(search, _searched_for(plan, choices)),
        samples=tuple(samples),
        metric=metric,
        trials={target: choice.trials for target, choice in choices.items()},
        prompt_len=case.prompt_len,
        new_tokens=case.new_tokens,
        tokens_per_text=tokens,
        warnings=(*bench.warnings, *_remarks(plan, targets, qualities)),
    )


def _searched_for(plan: Plan, choices: Mapping[str, ChoiceRecord]) -> dict[str, str]:
    """The targets by the expression of the search's pick."""
    found = dict[str, str]()
    for target, pick in plan.picks.items():
        expression = (choices[target].chosen if target in choices else None) or pick.expression
        found[expression] = f"{found[expression]}, {target}" if expression in found else target
    return found


def _remarks(plan: Plan, targets: Mapping[str, str], qualities: Qualities) -> list[str]:
    """State what was not compared, which targets in a metric were missed, and where examples are too few to tell."""
    remarks, count = [], plan.counts["held_out"]
    failure = plan.paths.work / "gptq.txt"
    if plan.defaults.kind.generates and not compares_gptq(plan):
        minutes, commands = math.ceil(gptq_seconds(plan) / 60), shlex.join(to_argv(gptq_command(plan)))
        remarks.append(f"GPTQ of optimum-intel was not compared; it takes about {minutes} min: {commands}")
    elif failure.exists() and (reason := failure.read_text(encoding="utf-8")):
        remarks.append(f"GPTQ of optimum-intel failed: {reason}.")
    if count < LEAST_EXAMPLES and plan.defaults.kind.generates:
        remarks.append(f"{count} held-out examples say little about answers; {LEAST_EXAMPLES} or more are better.")
    for target, bound in plan.bounds.items():
        figures = qualities.get(bound.measure) or next(iter(qualities.values()))
        difference = next(figures[name].difference for name, each in targets.items() if each == target)
        assert difference
        half = (difference.high - difference.low) / 2
        if difference.value < bound.bound:
            remarks.append(f"{target} is missed: {difference.value:+.3g}. The unpruned INT8 file loses nothing.")
        if bound.bound and half > abs(bound.bound):
            needed = math.ceil(count * (half / bound.bound) ** 2 / 100) * 100
            remarks.append(f"{target}: {count} held-out examples leave ± {half:.2g}; it takes about {needed:,} to tell.")
    return remarks


def _network(
    source: Source,
    name: str,
    exported: Path,
    target: str | None,
    folders: Mapping[str, str],
    stored: Baseline | None,
    quality: dict[str, Quality],
    latency: dict[str, Latency],
) -> Network:
    """Describe a measured network: that of a target, or the unpruned one of `source` in a format."""
    manifest = Manifest.read(exported / MANIFEST) if target else None
    sizes = manifest.sizes.subnetwork if manifest else source.sizes(source.unpruned)
    return Network(
        name=name,
        folder=folders[target] if target else None,
        weight_format=stored.stored if stored else manifest.weight_format if manifest else "",
        file_bytes=(exported / WEIGHTS).stat().st_size,
        parameters=sizes.parameters,
        quality=quality,
        latency=latency,
        removed=manifest.layers if manifest else (),
        target=target,
    )


def _curves(plan: Plan) -> tuple[Curve, ...]:
    """The losses of the trainings; the adapter of an unpruned network was not trained further."""
    folders = {LORA: Path(plan.paths.unpruned)} if plan.paths.trains_lora else {}
    folders |= {RECOVER + target: plan.paths.recovered(pick) for target, pick in plan.picks.items()}
    curves = []
    for name, folder in folders.items():
        record = TrainingRecord.read(folder / TRAINING) if (folder / TRAINING).exists() else None
        if record and (name == LORA or record.recovered):
            losses = [(entry.step, entry.loss) for entry in record.losses if entry.loss is not None]
            held_out = [(entry.step, entry.loss) for entry in record.eval_data.losses] if record.eval_data else []
            distilled = record.teacher is not None and plan.defaults.kind.generates  # encoders learn their held-out loss
            curves.append(Curve(name, tuple(losses[:: max(1, len(losses) // _CURVE_POINTS)]), tuple(held_out), distilled))
    return tuple(curves)


def candidates_of(record: SearchRecord, targets: Mapping[str, str]) -> tuple[Candidate, ...]:
    """The evaluated networks; `targets` maps the expressions of picks to targets."""
    unpruned = next(record.evaluations[entry.evaluation].cost for entry in record.named if entry.name == "maximal")
    picked: dict[int, tuple[str, ...]] = {}
    for entry in record.picks:
        expression = entry.name.removeprefix("pick:")
        picked[entry.evaluation] = (*picked.get(entry.evaluation, ()), targets.get(expression, expression))
    return tuple(
        Candidate(each.cost / unpruned, each.quality, each.number in record.front, picked.get(each.number, ()))
        for each in record.evaluations
    )
