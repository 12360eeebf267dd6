"""A search from its plan to its record; here the steps meet."""

import functools
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256 as digest
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optuna.exceptions import StorageInternalError

from lonas_edge.errors import LonasEdgeError
from lonas_edge.formats import DTYPES
from lonas_edge.network.tokenizer import load_tokenizer
from lonas_edge.progress import Progress, silent
from lonas_edge.search import LATENCY, STUDY
from lonas_edge.search.cost import COSTS, CostFunction, cost_function
from lonas_edge.search.damage import DamageTable, measure_damage
from lonas_edge.search.dimensions import Network
from lonas_edge.search.outcome import Outcome
from lonas_edge.search.picks import Pick
from lonas_edge.search.place import check, place
from lonas_edge.search.plan import AROUND, SKIP, Plan, refuse_hopeless
from lonas_edge.search.quality import likelihood_score
from lonas_edge.search.record import Evaluation, Measured, SearchRecord, front
from lonas_edge.search.refine import pick_proposer, proposer
from lonas_edge.search.samplers import reseeded
from lonas_edge.search.seeds import seeds
from lonas_edge.search.storage import open_file, open_storage, open_study, shown
from lonas_edge.search.study import Propose, Rules, Worker

if TYPE_CHECKING:
    from optuna import Study

    from lonas_edge.network.super_network import Batch, SuperNetwork
    from lonas_edge.search.latency_table import LatencyTable

_TABLE, _LATENCY, _AROUND = "table", "latency_table", "table_around"  # attributes of the study
_SAVE_SECONDS = 2.0  # the record is written so often at most


def search(plan: Plan, progress: Progress = silent) -> SearchRecord:
    """Search.

    Args:
        plan: What to search.
        progress: Called with what is being done, and the share of it that is done.

    Returns:
        The record, as written to `search.json`.

    Raises:
        LonasEdgeError: If the storage or the study cannot be used, nothing meets a pick, or it is interrupted; what is
            evaluated is kept.
    """
    options = plan.options
    check(options.output, options.resume, options.storage is not None)
    tokenizer = load_tokenizer(plan.source.base.folder)
    if tokenizer is None:
        raise LonasEdgeError(f"{plan.source.base.folder}: no tokenizer; a search needs one")
    batches = plan.held.batches(tokenizer)
    made, begun = not options.output.exists(), (options.output / STUDY).exists()
    storage = open_storage(options.storage) if options.storage else None  # before a directory is made, or a model loaded
    with place(options.output, options.resume, options.overwrite, storage is not None) as before:
        where = shown(options.storage) if options.storage else str(options.output / STUDY)
        identity = plan.identity
        name = options.study or ("search" if storage is None else _name(identity))
        storage = storage or open_file(options.output / STUDY)
        study = open_study(storage, name, identity, reseeded(options.sampler, plan.settings), where)
        running = _Search(plan, study, progress, tokenizer, batches, dict(before.seconds) if before else {})
        try:
            running.run()
        except KeyboardInterrupt:
            running.outcome(finished=False).write(drawn=True)
            raise LonasEdgeError(
                f"interrupted: {len(running.evaluations)} evaluations are kept in {options.output}; the same command goes on "
                "from there"
            ) from None
        except LonasEdgeError:
            if not (options.storage or begun or study.trials):  # nothing is found yet, such as where a tensor is missing
                _leave_nothing(options.output, made)
            raise
        except StorageInternalError as error:
            raise LonasEdgeError(
                f"{where}: the storage can no longer be reached; what is evaluated is kept there, and the same command goes on "
                f"from it: {next(iter(str(error).splitlines()), '')}"
            ) from error
        return running.outcome(finished=True).finish()


def _leave_nothing(output: Path, made: bool) -> None:
    """Remove what a search that found nothing has written; the directory, too, where it made it."""
    if made:
        shutil.rmtree(output)
    else:
        for path in (*output.glob(f"{STUDY}*"), output / LATENCY):
            path.unlink(missing_ok=True)


def _name(identity: Mapping[str, Any]) -> str:
    return f"lonas-edge-{digest(repr(sorted(identity.items())).encode()).hexdigest()[:16]}"


def _thinned(batch: "Batch") -> "Batch":
    """One prompt in `SKIP` of a batch, whose prompts are in the order of their lengths; positions are those of all."""
    return {name: values if name == "logits_to_keep" else values[::SKIP] for name, values in batch.items()}


@dataclass
class _Search:
    """One search under way."""

    plan: Plan
    study: "Study"
    progress: Progress
    tokenizer: Any
    batches: "Sequence[Batch]"
    seconds: dict[str, float]
    table: DamageTable | None = None
    evaluations: list[Evaluation] = field(default_factory=list)
    latency: "LatencyTable | None" = None
    measured: tuple[Measured, ...] = ()
    saved: float = 0.0

    def run(self) -> None:
        plan, options = self.plan, self.plan.options
        with self._step("cost"):
            cost = self._cost()
            refuse_hopeless(plan, {options.cost: cost})
        self._evaluate(cost)
        if options.measured:
            self.outcome(finished=False).write()
            self._measure()

    def _evaluate(self, cost: CostFunction) -> None:
        """Networks, until there are enough; the super-network is let go afterwards."""
        plan, options = self.plan, self.plan.options
        network, reference = self._loaded()
        score = self._scorer(network, reference)
        costs = {**plan.configured_costs, options.cost: cost}
        aims = {pick: costs[pick.measure] for pick in plan.picks if pick.measure in costs}
        propose = self._refinement(network, cost, aims) if self.table and options.refined else None
        rules = Rules(plan.evals, options.sampler, plan.refine_from, plan.settings.seed, plan.sign)
        worker = Worker(self.study, plan.dimensions, rules, alone=options.storage is None, propose=propose)
        worker.seed(seeds(plan.dimensions, plan.evals, self.table if options.seeded else None, cost, aims))
        with self._step("evaluations", without=AROUND):
            worker.run(lambda one: (score(one), cost(*one)), self._told)

    def _refinement(self, network: "SuperNetwork", cost: CostFunction, aims: Mapping[Pick, CostFunction]) -> Propose:
        """What is picked first, then the front."""
        plan, table = self.plan, self.table
        assert table  # it is asked for
        of_picks = pick_proposer(plan.dimensions, aims, plan.sign, functools.partial(self._around, network))
        of_front = proposer(plan.dimensions, table, cost, plan.sign)
        return lambda done, taken: of_picks(done, taken) or of_front(done, taken)

    def _around(self, network: "SuperNetwork", pick: Pick, best: Evaluation) -> tuple[Sequence[int], DamageTable]:
        """The damage table around a pick's network: the study's, else measured here on a part of the prompts and kept there."""
        name = f"{_AROUND}:{pick.expression}"
        if name not in self.study.user_attrs:
            with self._step(AROUND):
                told = functools.partial(self.progress, f"Damage of each group around {pick.expression}")
                batches = [_thinned(batch) for batch in self.batches]
                searched, reference = self.plan.dimensions.searched, network.reference(batches)
                found = measure_damage(network, batches, reference, searched, told, best.widths)
            if name not in self.study.user_attrs:  # another worker may have been quicker: all use one
                self.study.set_user_attr(name, {"widths": best.widths, "rows": found.rows})
        kept = self.study.user_attrs[name]
        return kept["widths"], DamageTable(tuple(map(tuple, kept["rows"])))

    def _cost(self) -> CostFunction:
        """The cost. A device's latency is that of the machine which began the study, so that all workers mean the same."""
        options, source = self.plan.options, self.plan.source
        settings = options.cost_settings
        if not COSTS[options.cost].needs_device:
            return cost_function(options.cost, source, settings)
        from lonas_edge.search.latency_table import LatencyTable, open_table

        if _LATENCY not in self.study.user_attrs:
            found = open_table(source, settings, self.progress).to_json()
            if _LATENCY not in self.study.user_attrs:
                self.study.set_user_attr(_LATENCY, found)
        self.latency = LatencyTable.from_json(self.study.user_attrs[_LATENCY], f"the study {self.study.study_name!r}")
        self.latency.write(options.output / LATENCY)
        return cost_function(options.cost, source, settings, self.progress, self.latency)

    def _loaded(self) -> "tuple[SuperNetwork, list[Any]]":
        """The super-network, and its answers; the damage table is made or found, too."""
        from lonas_edge.network.super_network import load_super_network

        plan, options, batches = self.plan, self.plan.options, self.batches
        with self._step("load"):
            self.progress("Loading the super-network", None)
            network = load_super_network(plan.source, DTYPES[options.dtype].torch)
            self.progress("Answers of the maximal network", None)
            reference = network.reference(batches)
        self._find_table(network, reference)
        return network, reference

    def _scorer(self, network: "SuperNetwork", reference: Sequence[Any]) -> Callable[[Network], float]:
        plan, options, batches = self.plan, self.plan.options, self.batches
        if options.quality == "accuracy":
            from lonas_edge.search.accuracy import score_of

            score = score_of(plan.held, network, options.protocol, self.tokenizer, batches)
            return lambda one: score(one[0])
        if plan.compressed:
            from lonas_edge.search.compressed import StoredNetwork

            known = {name: StoredNetwork(network, name) for name in plan.dimensions.formats}
            return lambda one: known[one[1]].score(options.quality, one[0], batches, reference)
        score = likelihood_score(options.quality, network, batches, reference)
        return lambda one: score(one[0])

    def _measure(self) -> None:
        """Members of the front and the picks on the device, beside what the table predicts."""
        from lonas_edge.search.measured import measure_front, spread

        record, evaluations = self.outcome(finished=False).record(), self.evaluations
        chosen = {one.name: evaluations[one.evaluation] for one in record.named if one.name in ("maximal", "heuristic")}
        names = {one.evaluation: one.file or one.name for one in (*record.named, *record.picks)}
        members = [evaluations[number] for number in record.front]
        for one in (*spread(members), *(evaluations[pick.evaluation] for pick in record.picks)):
            if one not in chosen.values():
                chosen[names[one.number]] = one
        with self._step("measured"):
            settings, output = self.plan.options.cost_settings, self.plan.options.output
            found = measure_front(self.plan.source, list(chosen.items()), settings, output, self.progress, table=self.latency)
        self.measured = tuple(found)

    def _find_table(self, network: "SuperNetwork", reference: Sequence[Any]) -> None:
        """The damage table: the study's, else measured here and kept there."""
        if not self.plan.needs_table:
            return
        if _TABLE not in self.study.user_attrs:
            with self._step("damage table"):
                done = functools.partial(self.progress, "Damage of each group")
                found = measure_damage(network, self.batches, reference, self.plan.dimensions.searched, done)
            if _TABLE not in self.study.user_attrs:  # another worker may have been quicker: all use one
                self.study.set_user_attr(_TABLE, found.rows)
        self.table = DamageTable(tuple(map(tuple, self.study.user_attrs[_TABLE])))

    def _told(self, evaluations: list[Evaluation]) -> None:
        """Keep and show what is evaluated."""
        self.evaluations = evaluations
        plan = self.plan
        total = min(plan.evals, plan.dimensions.size)
        members = len(front(evaluations, plan.sign))
        self.progress(f"{len(evaluations)} of {total} networks, {members} in the front", len(evaluations) / total)
        if time.monotonic() - self.saved > _SAVE_SECONDS:
            self.outcome(finished=False).write()
            self.saved = time.monotonic()

    @contextmanager
    def _step(self, name: str, without: str = "") -> Iterator[None]:
        """Count the seconds of a step, less those of another one inside it."""
        start, before, inside = time.perf_counter(), self.seconds.get(name, 0.0), self.seconds.get(without, 0.0)
        try:
            yield
        finally:
            taken = time.perf_counter() - start - (self.seconds.get(without, 0.0) - inside)
            self.seconds[name] = round(before + taken, 3)

    def outcome(self, finished: bool) -> Outcome:
        """What there is so far."""
        table = self.table.rows if self.table else ()
        return Outcome(
            plan=self.plan,
            study=self.study.study_name,
            evaluations=tuple(self.evaluations),
            table=table,
            measured=self.measured,
            seconds=dict(self.seconds),
            finished=finished,
        )
