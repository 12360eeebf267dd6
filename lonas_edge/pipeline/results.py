"""Measure the networks of a run, and make its record."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lonas_edge.exporting.manifest import MANIFEST, Manifest
from lonas_edge.formats import FORMATS
from lonas_edge.ir import WEIGHTS
from lonas_edge.network.location import TRAINING
from lonas_edge.network.training_record import TrainingRecord
from lonas_edge.network.vocabulary_record import vocabulary_of
from lonas_edge.pipeline import measure
from lonas_edge.pipeline.plan import BASELINES_BY_NAME, LORA, RECOVER, Plan
from lonas_edge.pipeline.record import Candidate, CompressRecord, Curve, Latency, Network, Quality
from lonas_edge.pipeline.tasks import PipelineTask, options_of
from lonas_edge.progress import Progress
from lonas_edge.search import SEARCH
from lonas_edge.search.record import SearchRecord

_CURVE_POINTS = 200


def measured(plan: Plan, names: Mapping[str, str], here: Mapping[str, Any], progress: Progress) -> CompressRecord:
    """Measure baselines and compressed networks.

    Args:
        plan: The run, whose other steps are done.
        names: The directory in the output of each target.
        here: The machine.
        progress: Reports what is being done.
    """
    task, settings = plan.task, plan.cost_settings
    stored = "INT4" if FORMATS[settings.weight_format].bits < 8 else "INT8"
    ours = {f"compressed {stored} ({target})": plan.places.model(pick) for target, pick in plan.picks.items()}
    ours = ours if len(ours) > 1 else {f"compressed {stored}": folder for folder in ours.values()}
    folders = {name: plan.places.baseline(stored) for name, stored in BASELINES_BY_NAME.items()} | ours
    times, bench = measure.latencies(folders, settings.case, task.latencies, progress)
    qualities = task.measured(plan, folders, progress)
    trimmed = vocabulary_of(plan.places.trimmed) if plan.trims else None
    tokens = trimmed.tokens_per_text if trimmed else 1.0
    for name in ours:
        times[name] = {each: measure.for_equal_texts(latency, tokens) for each, latency in times[name].items()}
    directories = dict(zip(ours, names.items(), strict=True))
    whole = plan.source.sizes(plan.source.unpruned).parameters
    networks = [
        _network(name, folder, qualities[name], times[name], directories.get(name, (None, None)), whole)
        for name, folder in folders.items()
    ]
    record = SearchRecord.read(plan.places.work / "search" / SEARCH)
    return CompressRecord(
        task=task.name,
        source=(plan.source.adapter or plan.source.base).name,
        base=plan.source.base.name,
        data=plan.options.data.name,
        examples=dict(plan.counts),
        options=_options(plan, names),
        sha256=dict(plan.hashes),
        machine=dict(here),
        versions=dict(bench.conditions["versions"]),
        cost=record.cost,
        steps=(),
        networks=tuple(networks),
        curves=_curves(plan),
        candidates=_candidates(record, {pick.expression: target for target, pick in plan.picks.items()}),
        samples=tuple(task.answers(plan, folders, progress)),
        prompt_len=settings.prompt_len,
        new_tokens=settings.new_tokens,
        tokens_per_text=tokens,
        warnings=tuple(bench.warnings),
    )


def _network(
    name: str,
    folder: Path,
    qualities: dict[str, Quality],
    times: dict[str, Latency],
    made: tuple[str | None, str | None],
    whole: int,
) -> Network:
    """A network; `made` are the target and the directory of a compressed one."""
    target, directory = made
    manifest = Manifest.read(folder / MANIFEST) if (folder / MANIFEST).exists() else None
    return Network(
        name=name,
        folder=directory,
        weight_format=manifest.weight_format if manifest else BASELINES_BY_NAME[name],
        file_bytes=(folder / WEIGHTS).stat().st_size,
        parameters=manifest.sizes.subnetwork.parameters if manifest else whole,
        quality=qualities,
        latency=times,
        removed=manifest.layers if manifest else (),
        target=target,
    )


def _options(plan: Plan, names: Mapping[str, str]) -> dict[str, Any]:
    options = plan.options
    plain = {
        name: value if isinstance(value, int | float | str | None) else str(value) for name, value in vars(options).items()
    }
    folders = {plan.picks[target].file: name for target, name in names.items()}
    resolved = {
        **options_of(plan.cost_settings),
        "precision": plan.probe.precision,
        "epochs": plan.epochs if plan.trains_lora else None,
        "lora_steps": plan.lora_steps if plan.trains_lora else None,
        "recovery_steps": plan.recovery_steps,
        "evals": plan.evals,
    }
    return {**plain, "target": list(plan.picks), **resolved, "folders": folders}


def _curves(plan: Plan) -> tuple[Curve, ...]:
    folders = {LORA: plan.places.work / "lora"} if plan.trains_lora else {}
    folders |= {f"{RECOVER}{target}": plan.places.recovered(pick) for target, pick in plan.picks.items()}
    records = {name: TrainingRecord.read(folder / TRAINING) for name, folder in folders.items() if (folder / TRAINING).exists()}
    trained = {name: record for name, record in records.items() if name == LORA or record.recovered}  # an unpruned one is not
    return tuple(_curve(name, record, plan.task) for name, record in trained.items())


def _curve(name: str, record: TrainingRecord, task: PipelineTask) -> Curve:
    losses = [(entry.step, entry.loss) for entry in record.losses if entry.loss is not None]
    held_out = [(entry.step, entry.loss) for entry in record.eval_data.losses] if record.eval_data else []
    distilled = record.teacher is not None and not task.same_losses
    return Curve(name, tuple(losses[:: max(1, len(losses) // _CURVE_POINTS)]), tuple(held_out), distilled)


def _candidates(record: SearchRecord, targets: Mapping[str, str]) -> tuple[Candidate, ...]:
    """The evaluated networks; `targets` maps the expressions of picks to targets."""
    unpruned = next(record.evaluations[entry.evaluation].cost for entry in record.named if entry.name == "maximal")
    picked: dict[int, tuple[str, ...]] = {}
    for entry in record.picks:
        expression = entry.name.removeprefix("pick:")
        picked[entry.evaluation] = (*picked.get(entry.evaluation, ()), targets.get(expression, expression))
    front: Sequence[int] = record.front
    return tuple(
        Candidate(each.cost / unpruned, each.quality, each.number in front, picked.get(each.number, ()))
        for each in record.evaluations
    )
