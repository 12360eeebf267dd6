"""The Optuna study of a search, sampled by NSGA-II, and a worker that evaluates each network once.

Trials are stored in a journal file of one process, or in a database that several workers share.
All decisions follow from the stored trials, so any number of workers can share a study. Optuna's heartbeat queues the trial of
a dead worker again. No worker waits for another: with nothing else to do, it evaluates a network that another one has taken.
"""

import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage, JournalStorage, RDBStorage, RetryHeartbeatStaleTrialCallback
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import FrozenTrial, Trial, TrialState
from sqlalchemy.exc import DatabaseError

from lonas_edge.errors import LonasEdgeError, one_line, raise_all
from lonas_edge.schema import differences
from lonas_edge.search.dimensions import Dimensions, Widths
from lonas_edge.search.proposals import Propose
from lonas_edge.search.record import Evaluation
from lonas_edge.space.search_space import SearchSettings

SAMPLER = "nsga2"
IDENTITY = "lonas_edge"  # study attribute with the identity of the search
REPEATS = 3  # known networks drawn in a row, after which an unknown one is drawn at random
DRAWS = 10_000  # attempts to draw it
HEARTBEAT_SECONDS, GRACE_SECONDS = 10, 60  # of a worker; the trial of a silent one is queued again
_CONNECT_SECONDS, _TABLES_SECONDS = 10, 3
Measure = Callable[[Widths], tuple[float, float]]  # quality and cost of a network


def open_storage(url: str) -> BaseStorage:
    """Open a database that workers share, as SQLAlchemy names it: postgresql+psycopg://…, sqlite:///FILE."""
    engine = {"connect_args": {"connect_timeout": _CONNECT_SECONDS}, "pool_pre_ping": True}
    settings: dict[str, Any] = {
        "engine_kwargs": {} if url.startswith("sqlite") else engine,
        "heartbeat_interval": HEARTBEAT_SECONDS,
        "grace_period": GRACE_SECONDS,
        "heartbeat_stale_trial_callback": RetryHeartbeatStaleTrialCallback(),
    }
    try:
        try:
            return RDBStorage(url, **settings)
        except DatabaseError:
            time.sleep(_TABLES_SECONDS)  # another worker may create the tables at this moment
            return RDBStorage(url, **settings)
    except ModuleNotFoundError as error:
        raise LonasEdgeError(f"--storage: its driver is missing: {error}. Run: pip install 'lonas-edge[postgres]'") from error
    except Exception as error:  # each database has its own exceptions
        hint = "Expected postgresql+psycopg://… or sqlite:///FILE."
        raise LonasEdgeError(f"--storage: cannot connect: {one_line(str(error))}. {hint}") from error


def open_journal(path: Path) -> BaseStorage:
    """Open a journal file that only this process uses. An incomplete last line, of a killed process, is removed."""
    path.with_name(f"{path.name}.lock").unlink(missing_ok=True)  # Optuna's lock outlives a killed process
    with suppress(FileNotFoundError), path.open("r+b") as file:
        content = file.read()
        if not content.endswith(b"\n"):
            file.truncate(content.rfind(b"\n") + 1)
    try:
        # Optuna's default lock is a symbolic link, which Windows and FAT refuse (5.0)
        return JournalStorage(JournalFileBackend(str(path), JournalFileOpenLock(str(path))))
    except Exception as error:  # Optuna checks nothing: anything can come
        raise LonasEdgeError(f"{path}: damaged: {one_line(str(error))}. Search again with --overwrite.") from error


def open_study(
    storage: BaseStorage, name: str, identity: Mapping[str, Any], settings: SearchSettings, seed: int, where: str
) -> optuna.Study:
    """Open or create a study of two minimized objectives, sampled by NSGA-II."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        study = optuna.create_study(study_name=name, storage=storage, directions=["minimize"] * 2, load_if_exists=True)
        trials = study.get_trials(deepcopy=False)
        if IDENTITY not in study.user_attrs and not trials:
            study.set_user_attr(IDENTITY, dict(identity))
        stored = study.user_attrs.get(IDENTITY)
    except Exception as error:  # each database has its own exceptions
        raise LonasEdgeError(f"{where}: cannot open the study {name!r}: {one_line(str(error))}") from error
    if stored is None:
        raise LonasEdgeError(f"{where}: the study {name!r} was created by another program. Choose another --study.")
    raise_all(
        f"{where}: the study {name!r} belongs to another search:",
        differences(stored, identity),
        "Choose another --output and --study, or use the options that it was started with.",
    )
    if isinstance(storage, JournalStorage):  # of this process alone: these are trials of a killed one
        for trial in study.get_trials(deepcopy=False, states=[TrialState.RUNNING]):
            study.tell(trial.number, state=TrialState.FAIL)
    study.sampler = optuna.samplers.NSGAIISampler(
        population_size=settings.population,
        crossover_prob=settings.crossover_prob,
        mutation_prob=settings.mutation_prob,
        seed=(seed + len(trials)) % 2**32,  # a continued study does not repeat its first draws
    )
    return study


class _KnownNetworkError(Exception):
    """The drawn network was evaluated before, or is being evaluated."""


@dataclass
class Worker:
    """One process that evaluates networks of a study."""

    study: optuna.Study
    dimensions: Dimensions
    evals: int  # number of networks; all of a smaller space
    propose: Propose | None = None
    refine_from: int = 0  # known networks from which on proposals come before the sampler
    draws: bool = True  # without the sampler, the run ends with the last proposal
    # networks, each with its origin, that are evaluated even if `evals` others are known
    required: Mapping[Widths, str] = field(default_factory=dict)
    _repeats: int = 0  # known networks drawn in a row
    _measuring: bool = False  # whether an error comes from the measurement of a network

    def __post_init__(self) -> None:
        self.evals = min(self.evals, self.dimensions.size)

    def enqueue(self, origins: Mapping[Widths, str]) -> None:
        """Queue networks that are not yet known, each with its origin."""
        known = self._known()
        for widths, origin in origins.items():
            if widths not in known:
                self._queue(widths, origin)

    def _queue(self, widths: Widths, origin: str) -> None:
        names = map(_name, self.dimensions.searched)
        parameters = dict(zip(names, self.dimensions.levels(widths), strict=True))
        self.study.enqueue_trial(parameters, {"origin": origin})

    def evaluations(self) -> list[Evaluation]:
        """Return all evaluations so far, in the order of the trials."""
        evaluations: dict[Widths, Evaluation] = {}
        for trial in self._trials(TrialState.COMPLETE):
            widths, (quality, cost), attributes = self._widths(trial.params), trial.values, trial.user_attrs
            if widths not in evaluations:
                seconds, origin = attributes.get("seconds", 0.0), attributes.get("origin", SAMPLER)
                evaluations[widths] = Evaluation(len(evaluations), widths, quality, cost, seconds, origin)
        return list(evaluations.values())

    def run(self, measure: Measure, report: Callable[[list[Evaluation]], None]) -> None:
        """Evaluate networks until there are enough, or none is left."""
        while True:
            evaluations = self.evaluations()
            report(evaluations)
            evaluated = {evaluation.widths for evaluation in evaluations}
            if len(evaluated) >= self.evals and self.required.keys() <= evaluated:
                return
            if not self._trials(TrialState.WAITING) and not self._prepare(evaluations):
                return
            self._evaluate(measure)

    def _evaluate(self, measure: Measure) -> None:
        """Evaluate the next trial; drop the result if another worker has finished the trial meanwhile.

        Two workers can get the same trial from SQLite, which has no row locks, and a worker that was suspended for longer than
        the grace period has lost its trial.
        """
        try:
            self.study.optimize(lambda trial: self._objective(trial, measure), n_trials=1, catch=(_KnownNetworkError,))
        except (ValueError, UpdateFinishedTrialError):
            if self._measuring:  # else Optuna could not store the result
                raise

    def _objective(self, trial: Trial, measure: Measure) -> tuple[float, float]:
        _ = trial.relative_params  # Optuna draws lazily; a queued trial would otherwise never become a parent
        for index, count in zip(self.dimensions.searched, self.dimensions.levels_of_groups, strict=True):
            trial.suggest_int(_name(index), 0, count - 1)
        widths = self._widths(trial.params)
        queued = "origin" in trial.user_attrs  # a queued network may be one that another worker has taken
        known = self._networks(TrialState.COMPLETE)
        if not queued:
            known |= self._networks(TrialState.RUNNING, before=trial.number)
        if widths in known:
            self._repeats += 1
            raise _KnownNetworkError
        self._repeats = 0
        start, self._measuring = time.perf_counter(), True
        quality, cost = measure(widths)
        self._measuring = False
        if not math.isfinite(quality):
            raise LonasEdgeError(
                f"The network with widths {list(widths)} has quality {quality}: the weights are damaged, or too large to "
                "compute with."
            )
        trial.set_user_attr("seconds", time.perf_counter() - start)
        return quality, cost

    def _prepare(self, evaluations: Sequence[Evaluation]) -> bool:
        """Queue the next network, unless the sampler draws one; False if none is left."""
        evaluated, known = {evaluation.widths for evaluation in evaluations}, self._known()
        if len(known) >= self.evals:  # other workers have the last ones, or died before their first heartbeat
            origins = dict.fromkeys(sorted(known), SAMPLER) | dict(self.required)
            self._queue(*next(item for item in origins.items() if item[0] not in evaluated))
            return True
        if self.propose and len(known) >= self.refine_from:
            proposal = self.propose(evaluations, known)
            if not proposal and not self.draws:  # the next one depends on a network that another worker evaluates
                proposal = self.propose(evaluations, evaluated)
            if proposal:
                self._queue(*proposal)
                return True
            if not self.draws:
                return False
        if self._repeats >= REPEATS:
            draw = random.Random(len(known))
            for _ in range(DRAWS):
                widths = self.dimensions.widths([draw.randrange(count) for count in self.dimensions.levels_of_groups])
                if widths not in known:
                    self._queue(widths, "random")
                    return True
            return False
        return True

    def _trials(self, *states: TrialState) -> list[FrozenTrial]:
        return list(self.study.get_trials(deepcopy=False, states=states))

    def _widths(self, parameters: Mapping[str, int]) -> Widths:
        """Return the network of Optuna's parameters: the level of each searched group."""
        return self.dimensions.widths([parameters[_name(index)] for index in self.dimensions.searched])

    def _networks(self, *states: TrialState, before: float = math.inf) -> set[Widths]:
        """Return the networks of trials, without those whose parameters another worker is still drawing."""
        trials = [trial for trial in self._trials(*states) if trial.number < before]
        parameters = [trial.system_attrs.get("fixed_params", trial.params) for trial in trials]
        return {self._widths(values) for values in parameters if len(values) == len(self.dimensions.searched)}

    def _known(self) -> set[Widths]:
        return self._networks(TrialState.COMPLETE, TrialState.RUNNING, TrialState.WAITING)


def _name(group: int) -> str:
    """Name Optuna's parameter of a group. It is an ordered integer, so that mutation can use the order."""
    return f"group_{group}"
