"""What came out of a search: its record, the sub-networks of the front and of the picks, written as the search goes on."""

import functools
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from lonas_edge.bench.machine import describe
from lonas_edge.errors import LonasEdgeError
from lonas_edge.exporting.manifest import Origin
from lonas_edge.search import SEARCH, SUBNETWORKS, report
from lonas_edge.search.cost import COSTS, CostFunction
from lonas_edge.search.picks import resolve
from lonas_edge.search.plan import Plan
from lonas_edge.search.record import Evaluation, Measured, Named, Scored, Searched, SearchRecord, Table, front, hypervolume
from lonas_edge.search.seeds import named
from lonas_edge.space.subnetwork import SearchOrigin, Subnetwork
from lonas_edge.versions import versions

_PACKAGES = ("lonas-edge", "torch", "transformers", "peft", "optuna", "openvino", "nncf")
Value = Callable[[Evaluation], float]


@dataclass(frozen=True)
class Outcome:
    """What a search has found so far.

    Attributes:
        plan: What it does.
        study: Name of the study.
        evaluations: In the order of the trials.
        table: Rows of the damage table; none where there is none.
        measured: Members of the front as they were measured.
        seconds: By step.
        finished: Whether it ran to its end.
    """

    plan: Plan
    study: str
    evaluations: tuple[Evaluation, ...]
    table: tuple[tuple[float, ...], ...]
    measured: tuple[Measured, ...]
    seconds: Mapping[str, float]
    finished: bool

    def write(self, drawn: bool = False) -> None:
        """Write record and sub-networks; nothing where nothing is evaluated.

        Args:
            drawn: Whether progression and front are drawn, too, which takes a second.
        """
        record, folder = self.record(), self.plan.options.output
        if not self.evaluations:
            return
        self._write_subnetworks(record)
        record.write(folder / SEARCH)
        if drawn:
            report.write(record, folder)

    def finish(self) -> SearchRecord:
        """Write everything.

        Returns:
            The record.

        Raises:
            LonasEdgeError: If nothing meets a pick; the nearest is named. All is written then, too.
        """
        self.write(drawn=True)
        _, missed = self._picks
        if missed:
            raise LonasEdgeError("\n".join(missed))
        return self.record()

    def _write_subnetworks(self, record: SearchRecord) -> None:
        folder = self.plan.options.output / SUBNETWORKS
        folder.mkdir(exist_ok=True)
        files = {f"{one.file}.json": one for one in (*record.named, *record.picks) if one.file}
        for name, one in files.items():
            evaluation = record.evaluations[one.evaluation]
            origin = _origin(self.plan, record, evaluation)
            subnetwork = Subnetwork(self.plan.source.elasticity, evaluation.widths, f"search:{one.name}", origin)
            subnetwork.record().write(folder / name)
        for path in folder.glob("*.json"):  # the front was longer before
            if path.name not in files:
                path.unlink()

    @cached_property
    def _known(self) -> dict[str, Evaluation]:
        """The evaluations of maximal, heuristic and minimal, as far as they are there."""
        places = {(one.widths, one.weight_format): one for one in self.evaluations}
        return {name: places[network] for name, network in named(self.plan.dimensions).items() if network in places}

    def record(self) -> SearchRecord:
        """The record, as it is written to `search.json`."""
        plan, options = self.plan, self.plan.options
        members = front(self.evaluations, plan.sign)
        return SearchRecord(
            study=self.study,
            searched=_searched(plan),
            data=_scored(plan),
            quality=options.quality,
            cost=options.cost,
            units={options.quality: plan.quality_unit, options.cost: COSTS[options.cost].unit},
            settings=_settings(plan),
            fixed=plan.dimensions.fixed,
            table=Table(self.table) if self.table else None,
            evaluations=self.evaluations,
            front=tuple(one.number for one in members),
            named=(
                *(Named(name, one.number) for name, one in self._known.items()),
                *(Named(f"front:{place}", one.number, f"front-{place:02}") for place, one in enumerate(members, 1)),
            ),
            picks=self._picks[0],
            hypervolume=tuple(self._hypervolume()),
            conditions=_conditions(),
            seconds=dict(self.seconds),
            finished=self.finished,
            measured=self.measured,
        )

    @cached_property
    def _picks(self) -> tuple[tuple[Named, ...], list[str]]:
        """The picks, and what is to say of those that nothing meets."""
        found, missed = [], []
        values = measures(self.plan)
        for pick in self.plan.picks if "maximal" in self._known else ():
            try:
                best = resolve(pick, self.evaluations, values, self._known["maximal"], self.plan.sign)
                found.append(Named(f"pick:{pick.expression}", best.number, pick.file))
            except LonasEdgeError as error:
                missed.append(str(error))
        return tuple(found), missed

    def _hypervolume(self) -> list[float]:
        if not {"maximal", "minimal"} <= self._known.keys():
            return []
        points = [(self.plan.sign * one.quality, one.cost) for one in self.evaluations]
        maximal, minimal = (points[self._known[name].number] for name in ("maximal", "minimal"))
        return hypervolume(points, (maximal[0], min(cost for _, cost in points)), (minimal[0], maximal[1]))


def _origin(plan: Plan, record: SearchRecord, one: Evaluation) -> SearchOrigin:
    return SearchOrigin(
        quality=record.quality,
        quality_value=one.quality,
        cost=record.cost,
        cost_value=one.cost,
        units=record.units,
        weight_format=one.weight_format,
        compressed=plan.compressed,
        proposed_by=one.origin,
        evaluation=one.number,
        evaluations=len(record.evaluations),
        prompts=record.data.prompts,
        super_adapter=plan.identity["super_adapter"],
    )


def measures(plan: Plan) -> dict[str, Value]:
    """Every measure that a pick may bound: the objectives, and what configurations tell."""

    def value(cost: CostFunction) -> Value:
        return lambda one: cost(one.widths, one.weight_format)

    found = {name: value(cost) for name, cost in plan.configured_costs.items()}
    return found | {plan.options.cost: lambda one: one.cost, plan.options.quality: lambda one: one.quality}


def _searched(plan: Plan) -> Searched:
    identity, source = plan.identity, plan.source
    adapter = Origin(source.adapter.name, source.adapter.revision, identity["super_adapter"]) if source.adapter else None
    base = Origin(source.base.name, source.base.revision, {"config.json": identity["base"]})
    return Searched(base, adapter, source.space.hash)


def _scored(plan: Plan) -> Scored:
    held = plan.held
    return Scored(held.path.name, held.sha256, held.prompts, held.asked_as, held.unseen)


def _settings(plan: Plan) -> dict[str, Any]:
    """The options that the result depends on, no paths among them."""
    options, costs = plan.options, plan.options.cost_settings
    return {
        "evals": plan.evals,
        "sampler": options.sampler,
        **asdict(plan.settings),
        "seeded": options.seeded,
        "refined": options.refined,
        "dtype": options.dtype,
        "compressed": plan.compressed,
        "protocol": plan.asked_by if options.quality == "accuracy" else None,
        "weight_formats": list(plan.dimensions.formats),
        "device": costs.device,
        "prompt_len": costs.prompt_len,
        "new_tokens": costs.new_tokens,
        "batch_size": costs.batch_size,
        "threads": costs.threads,
    }


@functools.cache
def _conditions() -> dict[str, Any]:
    return {**describe("CPU"), "versions": versions(_PACKAGES)}
