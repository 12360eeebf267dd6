"""The results of a search: its record, and the files of its sub-networks and plots."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from operator import attrgetter
from pathlib import Path
from typing import Any

from lonas_edge.bench.machine import describe
from lonas_edge.errors import LonasEdgeError
from lonas_edge.search import SEARCH, SUBNETWORKS, report
from lonas_edge.search.dimensions import Cost
from lonas_edge.search.latency_table import LatencyTable
from lonas_edge.search.picks import resolve
from lonas_edge.search.plan import SearchPlan
from lonas_edge.search.record import Evaluation, Measured, Named, Scored, SearchRecord, front, hypervolume
from lonas_edge.search.study import SAMPLER
from lonas_edge.search.warm_start import named
from lonas_edge.space.selection import SubnetworkRecord
from lonas_edge.space.subnetwork import SearchOrigin, Subnetwork
from lonas_edge.versions import versions

_PACKAGES = ("lonas-edge", "torch", "transformers", "peft", "optuna", "openvino", "nncf")
Value = Callable[[Evaluation], float]


@dataclass(frozen=True)
class SearchResults:
    """The results of a search."""

    plan: SearchPlan
    study: str
    evaluations: tuple[Evaluation, ...]  # in the order of the trials
    sensitivity: tuple[tuple[float, ...], ...]  # rows of the sensitivity table
    dtype: str  # in which PyTorch scored the networks
    seconds: Mapping[str, float]  # by step
    latency: LatencyTable | None = None  # whose machine predicted latencies mean
    measured: tuple[Measured, ...] = ()  # the networks measured at the end

    def write(self, folder: Path) -> None:
        """Write record, sub-networks and plots into an empty directory."""
        record = self.record
        (folder / SUBNETWORKS).mkdir()
        for entry in (*record.named, *record.picks):
            if entry.file:
                evaluation = self.evaluations[entry.evaluation]
                elasticity, origin = self.plan.source.elasticity, self._origin(evaluation)
                subnetwork = Subnetwork(elasticity, evaluation.widths, f"search:{entry.name}", origin)
                SubnetworkRecord.of(subnetwork).write(folder / SUBNETWORKS / f"{entry.file}.json")
        report.write(record, folder)
        record.write(folder / SEARCH)

    @property
    def missed(self) -> list[str]:
        """An error for each pick that no network meets."""
        return self._picks[1]

    @cached_property
    def record(self) -> SearchRecord:
        """The record."""
        plan, options = self.plan, self.plan.options
        members = front(self.evaluations)
        return SearchRecord(
            study=self.study,
            model=plan.source.base.name,
            identity=plan.identity,
            data=Scored(options.data.name, plan.data_sha256, options.num_prompts, plan.data.described, plan.unseen),
            quality=plan.options.quality,
            cost=plan.cost,
            units=plan.units,
            settings=self._settings(),
            fixed=plan.dimensions.fixed,
            sensitivity=self.sensitivity,
            evaluations=self.evaluations,
            front=tuple(member.number for member in members),
            named=(
                *(Named(name, evaluation.number) for name, evaluation in self._named.items()),
                *(Named(f"front:{rank}", member.number, f"front-{rank:02}") for rank, member in enumerate(members, 1)),
            ),
            picks=self._picks[0],
            measured=self.measured,
            hypervolume=tuple(self._hypervolume()),
            conditions={**describe("CPU"), **(self.latency.machine if self.latency else {}), "versions": versions(_PACKAGES)},
            seconds=dict(self.seconds),
        )

    @cached_property
    def _named(self) -> dict[str, Evaluation]:
        """The evaluations of maximal, heuristic and minimal."""
        known = {evaluation.widths: evaluation for evaluation in self.evaluations}
        return {name: known[widths] for name, widths in named(self.plan.dimensions).items() if widths in known}

    @cached_property
    def _picks(self) -> tuple[tuple[Named, ...], list[str]]:
        """The picks, and an error for each that no network meets."""
        picked, missed = [], []
        for pick in self.plan.picks:
            try:
                best = resolve(pick, self.evaluations, self._values(), self._named["maximal"])
                picked.append(Named(f"pick:{pick.expression}", best.number, pick.file))
            except LonasEdgeError as error:
                missed.append(str(error))
        return tuple(picked), missed

    def _values(self) -> dict[str, Value]:
        """Return every measure that a pick can bound."""

        def value(cost: Cost) -> Value:
            return lambda evaluation: cost(evaluation.widths)

        values = {name: value(cost) for name, cost in self.plan.counted_costs.items()}
        return values | {self.plan.cost: attrgetter("cost"), self.plan.options.quality: attrgetter("quality")}

    def _hypervolume(self) -> list[float]:
        points = [(evaluation.quality, evaluation.cost) for evaluation in self.evaluations]
        maximal, minimal = (points[self._named[name].number] for name in ("maximal", "minimal"))
        return hypervolume(points, (maximal[0], min(cost for _, cost in points)), (minimal[0], maximal[1]))

    def _settings(self) -> dict[str, Any]:
        """Return the options that the result depends on, without paths."""
        plan, options = self.plan, self.plan.options
        costs, nsga2 = asdict(options.cost_settings), plan.sampler_settings
        return {
            "evals": options.evals,
            "sampler": SAMPLER,
            "population": nsga2.population,
            "crossover_prob": nsga2.crossover_prob,
            "mutation_prob": nsga2.mutation_prob,
            "seed": options.seed,
            "dtype": self.dtype,
            **{name: value for name, value in costs.items() if name not in ("cache", "rounds", "starts")},
        }

    def _origin(self, evaluation: Evaluation) -> SearchOrigin:
        """Describe the origin of a sub-network, for its file."""
        plan = self.plan
        return SearchOrigin(
            quality=plan.options.quality,
            quality_value=evaluation.quality,
            cost=plan.cost,
            cost_value=evaluation.cost,
            units=plan.units,
            weight_format=plan.options.cost_settings.weight_format,
            proposed_by=evaluation.origin,
            evaluation=evaluation.number,
            evaluations=len(self.evaluations),
            prompts=plan.options.num_prompts,
            super_adapter=plan.identity["super_adapter"],
        )
