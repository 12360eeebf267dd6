"""The results of a search: its record, and the files of its sub-networks and plots."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lonas_edge.bench.machine import describe
from lonas_edge.errors import LonasEdgeError
from lonas_edge.search import SEARCH, SUBNETWORKS, report
from lonas_edge.search.dimensions import Table
from lonas_edge.search.picks import resolve
from lonas_edge.search.plan import SearchPlan
from lonas_edge.search.record import Evaluation, Named, Scored, SearchRecord, front, hypervolume
from lonas_edge.search.study import SAMPLER
from lonas_edge.space.selection import SubnetworkRecord
from lonas_edge.space.subnetwork import SearchOrigin, Subnetwork
from lonas_edge.versions import versions

_PACKAGES = ("lonas-edge", "torch", "transformers", "peft", "optuna", "openvino", "nncf")


def make_record(
    plan: SearchPlan, study: str, evaluations: Sequence[Evaluation], sensitivity: Table, dtype: str, machine: Mapping[str, Any]
) -> SearchRecord:
    """Make the record of the evaluations.

    Args:
        plan: The search.
        study: Name of the study.
        evaluations: All evaluations, in the order of the trials.
        sensitivity: The sensitivity table.
        dtype: Dtype in which PyTorch scored the networks.
        machine: The machine of predicted latencies, fields of `bench.machine.describe`; empty without a latency.
    """
    options, nsga2 = plan.options, plan.source.space.search
    known = {evaluation.widths: evaluation for evaluation in evaluations}
    presets = {name: known[widths] for name, widths in plan.dimensions.named().items()}
    maximal, minimal = presets["maximal"], presets["minimal"]
    members = front(evaluations)
    named = [Named(name, evaluation.number) for name, evaluation in presets.items()]
    for rank, member in enumerate(members, 1):
        named.append(Named(f"front:{rank}", member.number, f"front-{rank:02}"))
    points = [(evaluation.quality, evaluation.cost) for evaluation in evaluations]
    ideal = maximal.quality, min(evaluation.cost for evaluation in evaluations)
    return SearchRecord(
        study=study,
        model=plan.source.base.name,
        identity=plan.identity,
        data=Scored(options.data.name, plan.data_sha256, options.num_prompts, plan.data.description, plan.unseen),
        quality=options.quality,
        cost=plan.cost,
        units=plan.units,
        settings={
            "evals": options.evals,
            "sampler": SAMPLER,
            "population": nsga2.population,
            "crossover_prob": nsga2.crossover_prob,
            "mutation_prob": nsga2.mutation_prob,
            "seed": options.seed,
            "dtype": dtype,
            **asdict(options.cost_settings),
        },
        fixed=tuple(index for index in range(len(plan.source.space.groups)) if index not in plan.dimensions.searched),
        sensitivity=tuple(tuple(row) for row in sensitivity),
        evaluations=tuple(evaluations),
        front=tuple(member.number for member in members),
        named=tuple(named),
        picks=(),
        hypervolume=tuple(hypervolume(points, ideal, (minimal.quality, maximal.cost))),
        conditions={**describe("CPU"), **machine, "versions": versions(_PACKAGES)},
        seconds={},
    )


def resolve_picks(plan: SearchPlan, record: SearchRecord) -> tuple[tuple[Named, ...], list[str]]:
    """Find the network of each pick, and an error for each pick that no network meets."""
    maximal = next(record.evaluations[entry.evaluation] for entry in record.named if entry.name == "maximal")
    picks, missed = [], []
    for pick in plan.picks:

        def value(evaluation: Evaluation, measure: str = pick.measure) -> float:
            if measure == record.quality:
                return evaluation.quality
            return evaluation.cost if measure == record.cost else plan.counted_costs[measure](evaluation.widths)

        try:
            best = resolve(pick, record.evaluations, value, value(maximal))
            picks.append(Named(f"pick:{pick.expression}", best.number, pick.file))
        except LonasEdgeError as error:
            missed.append(str(error))
    return tuple(picks), missed


def write_results(plan: SearchPlan, record: SearchRecord, folder: Path) -> None:
    """Write record, sub-networks and plots into an empty directory."""
    (folder / SUBNETWORKS).mkdir()
    for entry in (*record.named, *record.picks):
        if entry.file is None:
            continue
        evaluation = record.evaluations[entry.evaluation]
        origin = SearchOrigin(
            quality=record.quality,
            quality_value=evaluation.quality,
            cost=record.cost,
            cost_value=evaluation.cost,
            units=record.units,
            weight_format=plan.options.cost_settings.weight_format,
            proposed_by=evaluation.origin,
            evaluation=evaluation.number,
            evaluations=len(record.evaluations),
            prompts=record.data.prompts,
            super_adapter=record.identity["super_adapter"],
        )
        subnetwork = Subnetwork(plan.source.elasticity, evaluation.widths, f"search:{entry.name}", origin)
        SubnetworkRecord.of(subnetwork).write(folder / SUBNETWORKS / f"{entry.file}.json")
    report.write(record, folder)
    record.write(folder / SEARCH)
