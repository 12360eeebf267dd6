"""Measure the networks of a run, and make its record."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lonas_edge.data.language import LanguageTask
from lonas_edge.exporting.manifest import MANIFEST, Manifest
from lonas_edge.ir import WEIGHTS
from lonas_edge.network.location import TRAINING
from lonas_edge.network.training_record import TrainingRecord
from lonas_edge.network.vocabulary_record import vocabulary_of
from lonas_edge.pipeline import measure
from lonas_edge.pipeline.defaults import cost_settings
from lonas_edge.pipeline.plan import COMPARED, LORA, RECOVER, Plan, trained_for
from lonas_edge.pipeline.record import Candidate, CompressRecord, Curve, Network
from lonas_edge.progress import Progress
from lonas_edge.search import SEARCH
from lonas_edge.search.record import SearchRecord

_CURVE_POINTS = 200


def make_record(plan: Plan, names: Mapping[str, str], here: Mapping[str, Any], progress: Progress) -> CompressRecord:
    """Measure baselines and compressed networks.

    Args:
        plan: The run, whose other steps are done.
        names: The directory in the output of each target.
        here: The machine.
        progress: Reports what is being done.
    """
    paths, source, options = plan.paths, plan.stages.unpruned, plan.options
    case = cost_settings(options).case
    ours = "compressed INT4" if trained_for(options) else "compressed INT8"
    folders = {name: paths.baseline(stored) for name, stored in COMPARED.items()}
    targets: dict[str, str] = {}
    for target, pick in plan.picks.items():
        name = f"{ours} ({target})" if len(plan.picks) > 1 else ours
        folders[name], targets[name] = paths.model(pick), target
    trimmed = vocabulary_of(Path(paths.student)) if paths.trims else None
    tokens = trimmed.tokens_per_text if trimmed else 1.0
    times, bench = measure.latencies(folders, case, dict.fromkeys(targets, tokens), progress)
    data = source.open_data(paths.held_out, options.prompt, labels=True)
    if isinstance(data, LanguageTask):
        qualities = measure.losses(folders, data, source.base.folder, progress)
        samples = measure.answers(folders, data, source.base.folder, progress)
    else:
        qualities, samples = measure.distances(folders, data, paths.baseline("fp32"), progress), []
    networks = []
    for name, folder in folders.items():
        manifest = Manifest.read(folder / MANIFEST) if name in targets else None
        networks.append(
            Network(
                name=name,
                folder=names[targets[name]] if manifest else None,
                weight_format=manifest.weight_format if manifest else COMPARED[name],
                file_bytes=(folder / WEIGHTS).stat().st_size,
                parameters=(manifest.sizes.subnetwork if manifest else source.sizes(source.unpruned)).parameters,
                quality=qualities[name],
                latency=times[name],
                removed=manifest.layers if manifest else (),
                target=targets.get(name),
            )
        )
    search = SearchRecord.read(paths.work / "search" / SEARCH)
    return CompressRecord(
        task=plan.defaults.name,
        source=(plan.stages.source.adapter or source.base).name,
        base=source.base.name,
        data=options.data.name,
        examples=dict(plan.counts),
        options={
            **{name: str(value) if isinstance(value, Path) else value for name, value in vars(options).items()},
            "target": list(plan.picks),
            "precision": plan.probe.precision,
            "evals": plan.search_options.evals,
            "folders": {plan.picks[target].file: name for target, name in names.items()},
        },
        sha256=dict(plan.hashes),
        machine=dict(here),
        versions=dict(bench.conditions["versions"]),
        cost=search.cost,
        steps=(),
        networks=tuple(networks),
        curves=_curves(plan),
        candidates=candidates_of(search, {pick.expression: target for target, pick in plan.picks.items()}),
        samples=tuple(samples),
        prompt_len=case.prompt_len,
        new_tokens=case.new_tokens,
        tokens_per_text=tokens,
        warnings=tuple(bench.warnings),
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
            distilled = record.teacher is not None and not plan.defaults.same_losses
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
