"""A search from its plan to its record."""

import functools
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from hashlib import sha256 as digest
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optuna.exceptions import StorageInternalError
from optuna.trial import TrialState

from lonas_edge.errors import LonasEdgeError, raise_all
from lonas_edge.formats import DTYPES
from lonas_edge.network.modeling import faster_dtype
from lonas_edge.network.tokenizer import require_tokenizer
from lonas_edge.output import OutputDirectory
from lonas_edge.progress import Progress, silent
from lonas_edge.search import LATENCY, SEARCH, STUDY
from lonas_edge.search.cost import COSTS, cost_function
from lonas_edge.search.dimensions import Cost, Dimensions, Widths
from lonas_edge.search.greedy import greedy_proposer
from lonas_edge.search.picks import Pick
from lonas_edge.search.plan import SearchPlan, check_picks
from lonas_edge.search.quality import likelihood_score
from lonas_edge.search.record import Evaluation, Measured, SearchRecord, front
from lonas_edge.search.refine import Propose, front_proposer, pick_proposer
from lonas_edge.search.results import SearchResults
from lonas_edge.search.sensitivity import SensitivityTable, measure_sensitivity
from lonas_edge.search.storage import differences, open_journal, open_storage, open_study, shown
from lonas_edge.search.study import Worker
from lonas_edge.search.warm_start import named, named_origins, warm_start

if TYPE_CHECKING:
    from optuna import Study

    from lonas_edge.data.task import Batch
    from lonas_edge.network.super_network import SuperNetwork
    from lonas_edge.search.latency_table import LatencyTable

SKIP = 4  # a sensitivity table uses every fourth prompt; the networks that it proposes are evaluated on all prompts
_AROUND = "sensitivity around picks"
_NEEDED_BYTES = 2**24


def search(plan: SearchPlan, progress: Progress = silent) -> SearchRecord:
    """Search, and write the output directory."""
    options = plan.options
    finished = _finished(plan)
    inputs = [options.data, plan.source.base.folder, *([plan.source.adapter.folder] if plan.source.adapter else [])]
    output = OutputDirectory(options.output, options.overwrite or finished, inputs)
    output.check(_NEEDED_BYTES, resumable=True)
    tokenizer = require_tokenizer(plan.source.base.folder, "a search")
    batches = plan.data.batches(tokenizer, options.num_prompts, options.seed)
    shared = open_storage(options.storage) if options.storage else None
    with output.resume("search", plan.identity, restart=options.overwrite):
        journal = output.partial / STUDY
        new = not journal.exists()
        if finished and new and (options.output / STUDY).is_file():
            temporary = journal.with_name(f"{STUDY}.copy")
            shutil.copyfile(options.output / STUDY, temporary)
            temporary.rename(journal)  # a kill leaves no half of it
        where = shown(options.storage) if options.storage else str(journal)
        name = options.study or (_name(plan.identity) if shared else "search")
        try:
            opened = shared or open_journal(journal)
            study = open_study(opened, name, plan.identity, plan.sampler_settings, where, plan.files)
            if finished and not shared:
                _refuse_lost_trials(study, plan.dimensions, options.output)
        except LonasEdgeError:
            for path in output.partial.glob(f"{STUDY}*") if new else ():  # a restored study.log is copied again
                path.unlink()
            raise
        running = _Search(plan, study, progress, batches, output.partial)
        try:
            results = running.run()
        except StorageInternalError as error:
            raise LonasEdgeError(
                f"{where}: lost the connection; all evaluations are kept there. Run the same command again to continue: "
                f"{next(iter(str(error).splitlines()), '')}"
            ) from error
        except LonasEdgeError:
            if not study.trials:  # nothing to continue from
                journal.unlink(missing_ok=True)
            raise
        with output.publish() as folder:
            results.write(folder)
            if running.latency:
                running.latency.write(folder / LATENCY)
            if journal.exists():
                shutil.copyfile(journal, folder / STUDY)
    if results.missed:
        raise LonasEdgeError("\n".join(results.missed))
    return results.record


def _refuse_lost_trials(study: "Study", dimensions: Dimensions, output: Path) -> None:
    """Refuse to continue a finished search with fewer trials than its record has evaluations: it would give other results."""
    complete = study.get_trials(deepcopy=False, states=[TrialState.COMPLETE])
    kept = sum(dimensions.complete(trial.params) for trial in complete)
    recorded = len(SearchRecord.read(output / SEARCH).evaluations)
    if kept < recorded:
        raise LonasEdgeError(
            f"{output / STUDY}: damaged: expected the {recorded} evaluations of {SEARCH}, found {kept}. Restore the file, or "
            "start again with --overwrite."
        )


def _finished(plan: SearchPlan) -> bool:
    """Check whether the output directory holds this search, finished; it is then continued."""
    output = plan.options.output
    if plan.options.overwrite or not (output / SEARCH).exists():
        return False
    raise_all(
        f"{output / SEARCH}: holds another search:",
        differences(SearchRecord.read(output / SEARCH).identity, plan.identity, plan.files),
        "Choose another --output, or replace it with --overwrite.",
    )
    return True


def _name(identity: Mapping[str, Any]) -> str:
    return f"lonas-edge-{digest(repr(sorted(identity.items())).encode()).hexdigest()[:16]}"


def _thinned(batch: "Batch") -> "Batch":
    """Keep every `SKIP`-th prompt of a batch, which is sorted by length, and all positions."""
    return {name: values if name == "logits_to_keep" else values[::SKIP] for name, values in batch.items()}


@dataclass
class _Search:
    """A running search."""

    plan: SearchPlan
    study: "Study"
    progress: Progress
    batches: "Sequence[Batch]"
    folder: Path
    seconds: dict[str, float] = field(default_factory=dict)
    latency: "LatencyTable | None" = None

    def run(self) -> SearchResults:
        """Take all steps. The super-network is released before measurements."""
        plan = self.plan
        with self._step("cost"):
            cost = self._cost()
            known = named(plan.dimensions)
            check_picks(plan.picks, known["minimal"], known["maximal"], {plan.cost: cost})
        evaluations, table = self._evaluate(cost)
        results = SearchResults(plan, self.study.study_name, evaluations, table.rows, self._dtype, self.seconds, self.latency)
        if not plan.measures:
            return results
        if self.latency and not self.latency.of_this_machine:
            self.progress("Nothing is measured: the costs are latencies of another machine; measure there\nResults", None)
            return results
        return replace(results, measured=self._measure(results.record))

    def _evaluate(self, cost: Cost) -> tuple[tuple[Evaluation, ...], SensitivityTable]:
        """Load the super-network and evaluate networks until there are enough."""
        from lonas_edge.network.super_network import load_super_network

        plan, options = self.plan, self.plan.options
        with self._step("load"):
            self.progress("Loading the super-network", None)
            network = load_super_network(plan.source, DTYPES[self._dtype].torch)
            self.progress("Scoring the unpruned network", None)
            reference = network.reference(self.batches)
        table = self._table(network)
        costs = {**plan.counted_costs, plan.cost: cost}
        aims = {pick: costs[pick.measure] for pick in plan.picks if pick.measure in costs}
        propose = self._proposals(network, table, cost, aims)
        worker = Worker(
            self.study,
            plan.dimensions,
            options.evals,
            propose,
            plan.refine_from,
            draws=not plan.only_greedy,
            required=named_origins(plan.dimensions),
        )
        if options.storage is None:
            worker.fail_unfinished()
        worker.enqueue(
            named_origins(plan.dimensions) if plan.greedy else warm_start(plan.dimensions, options.evals, table, cost, aims)
        )
        score = likelihood_score(options.quality, network, self.batches, reference)
        with self._step("evaluations", without=_AROUND):
            worker.run(lambda widths: (score(widths), cost(widths)), self._report)
        return tuple(worker.evaluations()), table

    def _shared(self, name: str, make: Callable[[], Any]) -> Any:
        """Return the first stored JSON value of a name, which all workers of the study use."""
        if name not in self.study.user_attrs:
            value = make()
            if name not in self.study.user_attrs:  # another worker may have been faster
                self.study.set_user_attr(name, value)
        return self.study.user_attrs[name]

    @property
    def _dtype(self) -> str:
        """The dtype in which networks are scored, the same for all workers."""
        return str(self._shared("dtype", faster_dtype))

    def _cost(self) -> Cost:
        """Make the cost function. Latencies are those of the machine that started the study."""
        plan, settings = self.plan, self.plan.options.cost_settings
        if COSTS[plan.cost].timed:
            from lonas_edge.search.latency_table import LatencyTable, open_table

            reused = "latency_table" in self.study.user_attrs
            content = self._shared("latency_table", lambda: open_table(plan.source, settings, self.progress).to_json())
            self.latency = LatencyTable.from_json(content, f"the study {self.study.study_name!r}")
            if reused:
                where = "" if self.latency.of_this_machine else f", on another machine ({self.latency.identity.processor})"
                measured = f"measured on {self.latency.date}{where}"
                self.progress(f"Reusing the latency table of this search, {measured}\nLatency table", None)
        return cost_function(plan.cost, plan.source, settings, self.latency)

    def _table(self, network: "SuperNetwork") -> SensitivityTable:
        """Measure the sensitivity table of the maximal network."""
        with self._step("sensitivity table"):
            rows = self._shared("sensitivity", lambda: self._measured(network, "of each group").rows)
        return SensitivityTable.of_rows(rows)

    def _around(self, network: "SuperNetwork", pick: Pick, best: Evaluation) -> tuple[Sequence[int], SensitivityTable]:
        """Measure the sensitivity table around a pick's network."""

        def measure() -> dict[str, Any]:
            table = self._measured(network, f"around {pick.expression}", best.widths)
            return {"widths": best.widths, "rows": table.rows}

        with self._step(_AROUND):
            content = self._shared(f"sensitivity:{pick.expression}", measure)
        return content["widths"], SensitivityTable.of_rows(content["rows"])

    def _measured(self, network: "SuperNetwork", what: str, around: Sequence[int] | None = None) -> SensitivityTable:
        """Measure a sensitivity table on a part of the prompts."""
        report = functools.partial(self.progress, f"Measuring the sensitivity {what}")
        batches, searched = [_thinned(batch) for batch in self.batches], self.plan.dimensions.searched
        return measure_sensitivity(network, batches, network.reference(batches), searched, report, around)

    def _proposals(self, network: "SuperNetwork", table: SensitivityTable, cost: Cost, aims: Mapping[Pick, Cost]) -> Propose:
        """Propose a greedy removal where blocks alone are searched, then moves of the picks, then of the front."""
        dimensions = self.plan.dimensions
        largest = {pick: bounded(dimensions.maximal) for pick, bounded in aims.items()}

        bounds = [pick for pick in self.plan.picks if pick.measure == self.plan.options.quality]

        def met(widths: Widths, quality: float) -> bool:
            small = all(pick.meets(bounded(widths), largest[pick]) for pick, bounded in aims.items())
            return bool(self.plan.picks) and small and not any(pick.meets(quality, quality) for pick in bounds)

        proposers = [greedy_proposer(dimensions, table, met)] if self.plan.greedy else []
        if self.plan.only_greedy:
            return proposers[0]
        proposers.append(pick_proposer(dimensions, aims, functools.partial(self._around, network)))
        proposers.append(front_proposer(dimensions, table, cost))
        return lambda evaluations, known: next(filter(None, (propose(evaluations, known) for propose in proposers)), None)

    def _report(self, evaluations: list[Evaluation]) -> None:
        total = min(self.plan.options.evals, self.plan.dimensions.size)
        members = len(front(evaluations))
        self.progress(f"{len(evaluations)} of {total} networks, {members} in the Pareto front", len(evaluations) / total)

    def _measure(self, record: SearchRecord) -> tuple[Measured, ...]:
        """Measure the unpruned and the heuristic network, members of the front, and the picks."""
        from lonas_edge.search.measured import measure_front, spread

        evaluations, settings = record.evaluations, self.plan.options.cost_settings
        names = {entry.evaluation: entry.file or entry.name for entry in (*record.named, *record.picks)}
        first = [entry.evaluation for entry in record.named if entry.name in ("maximal", "heuristic")]
        others = [evaluation.number for evaluation in spread([evaluations[number] for number in record.front])]
        chosen = dict.fromkeys([*first, *others, *(pick.evaluation for pick in record.picks)])
        members = [(names[number], evaluations[number]) for number in chosen]
        with self._step("measured"):
            return tuple(measure_front(self.plan.source, members, settings, self.folder, self.progress, self.latency))

    @contextmanager
    def _step(self, name: str, without: str = "") -> Iterator[None]:
        """Count the seconds of a step, without those of the step `without` inside it."""
        start, inside = time.perf_counter(), self.seconds.get(without, 0.0)
        try:
            yield
        finally:
            taken = time.perf_counter() - start - (self.seconds.get(without, 0.0) - inside)
            self.seconds[name] = round(self.seconds.get(name, 0.0) + taken, 3)
