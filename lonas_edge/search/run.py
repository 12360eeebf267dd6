"""A search from its plan to its record."""

import functools
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import optuna
from optuna.exceptions import StorageInternalError

from lonas_edge.data.task import Batch
from lonas_edge.errors import LonasEdgeError, one_line, raise_all
from lonas_edge.files import json_sha256
from lonas_edge.formats import DTYPES
from lonas_edge.network.modeling import faster_dtype
from lonas_edge.network.super_network import SuperNetwork, load_super_network
from lonas_edge.network.tokenizer import require_tokenizer
from lonas_edge.network.walk import Prefixes
from lonas_edge.output import OutputDirectory
from lonas_edge.processes import freed_memory_kept
from lonas_edge.progress import Progress, silent
from lonas_edge.schema import differences
from lonas_edge.search import LATENCY, SEARCH, STUDY, proposals
from lonas_edge.search.cost import CostFunction
from lonas_edge.search.dimensions import Sensitivity, Widths, mean_kl, measure_sensitivity, thin
from lonas_edge.search.latency_table import LatencyTable, open_table, predicted_cost
from lonas_edge.search.picks import Pick, check_picks, resolve_picks
from lonas_edge.search.plan import SearchPlan
from lonas_edge.search.record import Evaluation, SearchRecord, front
from lonas_edge.search.results import make_record, write_results
from lonas_edge.search.study import Worker, open_journal, open_storage, open_study

_NEEDED_BYTES = 2**24


def search(plan: SearchPlan, progress: Progress = silent) -> SearchRecord:
    """Search, and write the output directory."""
    options = plan.options
    finished = _check_finished(plan)
    adapter = plan.source.adapter.folder if plan.source.adapter else None
    output = OutputDirectory(options.output, options.overwrite or finished, [options.data, plan.source.base.folder, adapter])
    output.check(_NEEDED_BYTES, resumable=True)
    tokenizer = require_tokenizer(plan.source.base.folder, "a search")
    batches = plan.data.batches(tokenizer, options.num_samples, options.seed)
    shared = open_storage(options.storage) if options.storage else None
    with output.resume("search", plan.identity, restart=options.overwrite):
        journal = output.partial / STUDY
        if finished and not journal.exists() and (options.output / STUDY).is_file():
            shutil.copyfile(options.output / STUDY, journal)
        where = "--storage" if shared else str(journal)
        name = options.study or (f"lonas-edge-{json_sha256(plan.identity)[:16]}" if shared else "search")
        settings = plan.source.space.search
        study = open_study(shared or open_journal(journal), name, plan.identity, settings, options.seed, where)
        running = _Search(plan, study, progress, batches)
        try:
            with freed_memory_kept():
                record, missed = running.run()
        except StorageInternalError as error:
            raise LonasEdgeError(
                f"{where}: lost the connection; all evaluations are kept there. Run the same command again to continue: "
                f"{one_line(str(error))}"
            ) from error
        except LonasEdgeError:
            if not study.trials:  # nothing to continue from
                journal.unlink(missing_ok=True)
            raise
        with output.publish() as folder:
            write_results(plan, record, folder)
            if running.latency:
                running.latency.write(folder / LATENCY)
            if journal.exists():
                shutil.copyfile(journal, folder / STUDY)
    if missed:
        raise LonasEdgeError("\n".join(missed))
    return record


def _check_finished(plan: SearchPlan) -> bool:
    """Check whether the output directory holds this search, finished; it is then continued."""
    path = plan.options.output / SEARCH
    if plan.options.overwrite or not path.exists():
        return False
    errors = differences(SearchRecord.read(path).identity, plan.identity)
    raise_all(f"{path}: holds another search:", errors, "Choose another --output, or replace it with --overwrite.")
    return True


@dataclass
class _Search:
    """A running search."""

    plan: SearchPlan
    study: optuna.Study
    progress: Progress
    batches: Sequence[Batch]
    latency: LatencyTable | None = None

    def run(self) -> tuple[SearchRecord, list[str]]:
        """Take all steps; return the record, and an error for each pick that no network meets."""
        plan, options = self.plan, self.plan.options
        start = time.perf_counter()
        cost = self._cost()
        check_picks(plan.picks, plan.dimensions.named(), {plan.cost: cost})
        dtype = str(self._share("dtype", faster_dtype))  # the same for all workers
        self.progress("Loading the super-network", None)
        network = load_super_network(plan.source, DTYPES[dtype].torch)
        self.progress("Scoring the unpruned network", None)
        reference = network.reference(self.batches)
        table: Sensitivity = self._share("sensitivity", lambda: self._sensitivity(network, "of each group"))
        costs = {**plan.counted_costs, plan.cost: cost}
        aims = {pick: costs[pick.measure] for pick in plan.picks if pick.measure in costs}
        propose, required = self._proposals(network, table, cost, aims), proposals.named_origins(plan.dimensions)
        worker = Worker(self.study, plan.dimensions, options.evals, propose, plan.refine_from, not plan.only_greedy, required)
        if plan.greedy:
            worker.enqueue(required)
        else:
            worker.enqueue(proposals.warm_start(plan.dimensions, options.evals, table, cost, aims))

        # networks of a greedy removal are alike
        reused = options.quality == "kl" and plan.greedy and Prefixes.fit(network, self.batches)
        prefixes = Prefixes(network, self.batches) if reused else None

        def measure(widths: Widths) -> tuple[float, float]:
            if prefixes:
                return mean_kl(prefixes.hidden(widths), network, self.batches, reference), cost(widths)
            if options.quality == "kl":
                return network.kl([widths], self.batches, reference)[0], cost(widths)
            return network.losses([widths], self.batches)[0], cost(widths)

        def report(evaluations: list[Evaluation]) -> None:
            done, members = len(evaluations), len(front(evaluations))
            self.progress(f"{done} of {worker.evals} networks, {members} in the Pareto front", done / worker.evals)

        worker.run(measure, report)
        machine = self.latency.machine if self.latency else {}
        evaluations = worker.evaluations()
        record = make_record(plan, self.study.study_name, evaluations, table, dtype, machine)
        maximal, reached = plan.dimensions.maximal, evaluations
        if plan.only_greedy and propose(evaluations, set()):
            # cut off by --evals before its bounds: the smallest network, evaluated at the start, must not stand in
            reached = [each for each in evaluations if each.widths == maximal or each.widths not in required]
        picks, missed = resolve_picks(plan.picks, evaluations, costs, maximal, reached)
        return replace(record, picks=picks, seconds=round(time.perf_counter() - start, 3)), missed

    def _share(self, name: str, make: Callable[[], Any]) -> Any:
        """Return the first stored JSON value of a name, which all workers of the study use."""
        if name not in self.study.user_attrs:
            value = make()
            if name not in self.study.user_attrs:  # another worker may have been faster
                self.study.set_user_attr(name, value)
        return self.study.user_attrs[name]

    def _cost(self) -> CostFunction:
        """Make the cost function. Latencies are those of the machine that started the study."""
        plan, settings = self.plan, self.plan.options.cost_settings
        if not plan.timed:
            return plan.counted_costs[plan.cost]
        content = self._share("latency_table", lambda: open_table(plan.source, settings, self.progress).to_json())
        self.latency = LatencyTable.from_json(content, f"the study {self.study.study_name!r}")
        return predicted_cost(plan.cost, plan.source, settings, self.latency.curves)

    def _sensitivity(self, network: SuperNetwork, what: str, around: Sequence[int] | None = None) -> Sensitivity:
        """Measure a sensitivity table on a part of the prompts."""
        report = functools.partial(self.progress, f"Measuring the sensitivity {what}")
        batches, searched = [thin(batch) for batch in self.batches], self.plan.dimensions.searched
        return measure_sensitivity(network, batches, network.reference(batches), searched, report, around)

    def _proposals(
        self, network: SuperNetwork, table: Sensitivity, cost: CostFunction, aims: Mapping[Pick, CostFunction]
    ) -> proposals.Propose:
        """Propose a greedy removal, then moves of the picks, then of the front."""
        plan, dimensions = self.plan, self.plan.dimensions
        largest = {pick: bounded(dimensions.maximal) for pick, bounded in aims.items()}
        bounds = [pick.bound for pick in plan.picks if pick.measure == plan.options.quality]

        def around(pick: Pick, best: Evaluation) -> tuple[Sequence[int], Sensitivity]:
            def measure() -> dict[str, Any]:
                return {"widths": best.widths, "rows": self._sensitivity(network, f"around {pick.expression}", best.widths)}

            content = self._share(f"sensitivity:{pick.expression}", measure)
            return content["widths"], content["rows"]

        def small(widths: Widths) -> bool:
            return bool(plan.picks) and all(pick.meets(bounded(widths), largest[pick]) for pick, bounded in aims.items())

        greedy = proposals.greedy_proposer(dimensions, table, cost, bounds, small, plan.last_first)
        proposers = [greedy] if plan.greedy else []
        if not plan.only_greedy:
            proposers.append(proposals.pick_proposer(dimensions, aims, around))
            proposers.append(proposals.front_proposer(dimensions, table, cost))

        def propose(evaluations: Sequence[Evaluation], known: set[Widths]) -> proposals.Proposal | None:
            for proposer in proposers:
                if proposal := proposer(evaluations, known):
                    return proposal
            return None

        return propose
