"""Measure the networks of a run, and make its record."""

import math
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lonas_edge.commands import to_argv
from lonas_edge.data.language import LanguageTask
from lonas_edge.evaluate import answers
from lonas_edge.evaluate.targets import DRAFTED
from lonas_edge.exporting.manifest import MANIFEST, Manifest
from lonas_edge.ir import WEIGHTS
from lonas_edge.network.location import TRAINING
from lonas_edge.network.training_record import TrainingRecord
from lonas_edge.network.vocabulary_record import vocabulary_of
from lonas_edge.pipeline import measure
from lonas_edge.pipeline.baselines import add_activation_groups, compared, compares_gptq, gptq_command, gptq_seconds
from lonas_edge.pipeline.choice import CHOICE, ChoiceRecord, unpruned_export
from lonas_edge.pipeline.drafts import draft_remarks, drafted
from lonas_edge.pipeline.measure import Qualities
from lonas_edge.pipeline.plan import Plan
from lonas_edge.pipeline.record import Candidate, CompressRecord, Curve, Latency, Network
from lonas_edge.pipeline.steps import LORA, RECOVER
from lonas_edge.pipeline.targets import LEAST_EXAMPLES
from lonas_edge.pipeline.tasks import cost_settings
from lonas_edge.progress import Progress
from lonas_edge.search import SEARCH
from lonas_edge.search.record import SearchRecord

_CURVE_POINTS = 200


def make_record(plan: Plan, here: Mapping[str, Any], progress: Progress) -> CompressRecord:
    """Measure baselines and compressed networks.

    Args:
        plan: The run, whose other steps are done.
        here: The machine.
        progress: Reports what is being done.
    """
    paths, options, case = plan.paths, plan.options, cost_settings(plan.options).case
    add_activation_groups(plan)
    stored = {each.name: paths.baseline(each.folder) for each in compared(plan)}
    measured = {name: folder for name, folder in stored.items() if folder.exists()}
    targets = {_name(plan, target): target for target in plan.picks}
    measured |= {name: paths.model(plan.picks[target]) for name, target in targets.items()}
    draft_rows = drafted(plan, measured, next(iter(targets)))
    first, *others = measured.items()
    answering = dict([first, *draft_rows.items(), *others])
    trimmed = vocabulary_of(Path(paths.student)) if paths.trims else None
    tokens = trimmed.tokens_per_text if trimmed else 1.0
    trimmed_rows = [name for name, target in targets.items() if not unpruned_export(plan, plan.picks[target])]
    equal = dict.fromkeys((each for each in answering if each.removesuffix(DRAFTED) in trimmed_rows), tokens)
    latencies, bench = measure.latencies(measured, case, equal, progress)
    source = plan.unpruned
    data = plan.open_data(paths.held_out)
    if isinstance(data, LanguageTask):
        qualities = measure.losses(measured, data, source.base.folder, progress)
        log = paths.work / answers.FILE
        answered, samples = measure.answers(answering, data, plan.metrics, log, progress, paths.draft)
        if answered:
            for name, times in measure.answer_times(answering, data, source.base.folder, paths.draft, equal, progress).items():
                latencies[name] = {**latencies.get(name, {}), **times}
        metric, qualities = next(iter(answered), None), {**answered, **qualities}
    else:
        qualities, samples, metric = measure.distances(measured, data, paths.baseline("fp32"), progress), [], None
    choices = {target: ChoiceRecord.read(paths.choice(bound) / CHOICE) for target, bound in plan.bounds.items()}
    search = SearchRecord.read(paths.work / "search" / SEARCH)
    return CompressRecord(
        task=plan.profile.name,
        source=(plan.source.adapter or plan.source.base).name,
        base=source.base.name,
        data=options.data.name,
        examples=dict(plan.counts),
        options=_options(plan),
        sha256=dict(plan.hashes),
        machine=dict(here),
        versions=dict(bench.conditions["versions"]),
        cost=search.cost,
        steps=(),
        networks=_networks(plan, {**measured, **draft_rows}, targets, qualities, latencies),
        curves=_curves(plan),
        candidates=_candidates(plan, search, choices),
        samples=tuple(samples),
        metric=metric,
        trials={target: choice.trials for target, choice in choices.items()},
        prompt_len=case.prompt_len,
        new_tokens=case.new_tokens,
        tokens_per_text=tokens,
        warnings=(*bench.warnings, *_remarks(plan, targets, qualities), *draft_remarks(plan)),
    )


def _name(plan: Plan, target: str) -> str:
    """The name of a target's network in tables."""
    unpruned, width = unpruned_export(plan, plan.picks[target]), "INT4" if plan.trained_for else "INT8"
    name = f"compressed {width}"
    if unpruned:
        name = f"unpruned {width} by GPTQ" if unpruned.calibration else "unpruned INT8"
    return f"{name} ({target})" if unpruned or len(plan.picks) > 1 else name


def _options(plan: Plan) -> dict[str, Any]:
    """The options of a run with its defaults."""
    written = {name: str(value) if isinstance(value, Path) else value for name, value in vars(plan.options).items()}
    return written | {
        "target": list(plan.picks),
        "epochs": plan.lora_options.epochs if plan.paths.trains_lora else plan.options.epochs,
        "recovery_steps": plan.recovery_options.steps,
        "precision": plan.probe.precision,
        "evals": plan.search_options.evals,
        "folders": {pick.file: plan.folders[target] for target, pick in plan.picks.items()},
    }


def _networks(
    plan: Plan,
    measured: Mapping[str, Path],
    targets: Mapping[str, str],
    qualities: Qualities,
    latencies: Mapping[str, dict[str, Latency]],
) -> tuple[Network, ...]:
    """Describe the measured networks: the unpruned one in several formats, and those of targets."""
    formats = {each.name: each.stored for each in compared(plan)}
    unpruned, networks = plan.unpruned.sizes(plan.unpruned.unpruned), []
    for name, exported in measured.items():
        target, same = targets.get(name), name.removesuffix(DRAFTED)
        manifest = Manifest.read(exported / MANIFEST) if same in targets else None
        networks.append(
            Network(
                name=name,
                folder=plan.folders[target] if target else None,
                weight_format=manifest.weight_format if manifest else formats[same],
                file_bytes=(exported / WEIGHTS).stat().st_size,
                parameters=(manifest.sizes.subnetwork if manifest else unpruned).parameters,
                # a draft changes no probability: its row has the loss of the model
                quality={quality: values.get(name) or values[same] for quality, values in qualities.items()},
                latency=latencies[name],
                removed=manifest.layers if manifest and target else (),
                target=target,
            )
        )
    return tuple(networks)


def _remarks(plan: Plan, targets: Mapping[str, str], qualities: Qualities) -> list[str]:
    """State what was not compared, which targets in a metric were missed, and where examples are too few to tell."""
    remarks, count = [], plan.counts["held_out"]
    failure = plan.paths.baseline("gptq.txt")
    if plan.profile.kind.generates and not compares_gptq(plan):
        minutes, commands = math.ceil(gptq_seconds(plan) / 60), shlex.join(to_argv(gptq_command(plan)))
        remarks.append(f"GPTQ of optimum-intel was not compared; it takes about {minutes} min: {commands}")
    elif failure.exists() and (reason := failure.read_text(encoding="utf-8")):
        remarks.append(f"GPTQ of optimum-intel failed: {reason}.")
    if count < LEAST_EXAMPLES and (plan.profile.kind.generates or plan.bounds):
        remarks.append(f"{count} held-out examples say little about accuracy; {LEAST_EXAMPLES} or more are better.")
    for target, bound in plan.bounds.items():
        unpruned = unpruned_export(plan, bound)
        if unpruned and not unpruned.calibration:
            remarks.append(f"No candidate met {target}: the result is the unpruned model in INT8, exported as it is.")
            continue
        if unpruned:
            remarks.append(f"No recovered network met {target}: the result is the unpruned model in INT4 by GPTQ.")
        figures = qualities.get(bound.measure) or next(iter(qualities.values()))
        difference = next(figures[name].difference for name, each in targets.items() if each == target)
        assert difference
        half = (difference.high - difference.low) / 2
        if not bound.allows(difference.value, count):
            remarks.append(f"{target} is missed: {difference.value:+.3g}. The unpruned INT8 file loses nothing.")
        if bound.bound and half > abs(bound.bound):
            needed = math.ceil(count * (half / bound.bound) ** 2 / 100) * 100
            remarks.append(f"{target}: {count} held-out examples leave ± {half:.2g}; it takes about {needed:,} to tell.")
    return remarks


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
            distilled = record.teacher is not None and plan.profile.kind.generates  # encoders learn their held-out loss
            curves.append(Curve(name, tuple(losses[:: max(1, len(losses) // _CURVE_POINTS)]), tuple(held_out), distilled))
    return tuple(curves)


def _candidates(plan: Plan, search: SearchRecord, choices: Mapping[str, ChoiceRecord]) -> tuple[Candidate, ...]:
    """The networks that the search evaluated, with the targets that they were picked for."""
    targets: dict[str, str] = {}  # by the expression of the search's pick
    for target, pick in plan.picks.items():
        expression = (choices[target].chosen if target in choices else None) or pick.expression
        targets[expression] = f"{targets[expression]}, {target}" if expression in targets else target
    picked: dict[int, tuple[str, ...]] = {}  # by the number of the evaluation
    for entry in search.picks:
        expression = entry.name.removeprefix("pick:")
        picked[entry.evaluation] = (*picked.get(entry.evaluation, ()), targets.get(expression, expression))
    return tuple(
        Candidate(each.cost / search.unpruned_cost, each.quality, each.number in search.front, picked.get(each.number, ()))
        for each in search.evaluations
    )
