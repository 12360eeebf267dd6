"""A worker: evaluates the warm start, NSGA-II's draws and the refinement's moves, each network once.

All decisions follow from the stored trials, so any number of workers can share a study, and any of them can die.
"""

import math
import random
import time
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING

from optuna.exceptions import ExperimentalWarning, UpdateFinishedTrialError
from optuna.storages import RetryHeartbeatStaleTrialCallback, fail_stale_trials
from optuna.trial import TrialState

from lonas_edge.errors import LonasEdgeError
from lonas_edge.search import storage
from lonas_edge.search.dimensions import Dimensions, Widths
from lonas_edge.search.record import Evaluation
from lonas_edge.search.refine import Propose

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial, Trial

SAMPLER = "nsga2"
REPEATS = 3  # known networks drawn in a row, after which an unknown one is drawn at random
DRAWS = 10_000  # attempts to draw it
POLL_SECONDS = 1.0
PATIENCE = 10
Measure = Callable[[Widths], tuple[float, float]]  # quality and cost of a network
_OPEN = (TrialState.RUNNING, TrialState.WAITING)


class _KnownNetworkError(Exception):
    """The drawn network was evaluated before, or is being evaluated."""


class Worker:
    """One process that evaluates networks of a study."""

    def __init__(
        self,
        study: "Study",
        dimensions: Dimensions,
        evals: int,
        propose: Propose | None = None,
        refine_from: int = 0,
        draws: bool = True,
        required: Mapping[Widths, str] = MappingProxyType({}),
    ):
        """Join a study.

        Without `draws`, the run ends with the last proposal. `required` networks, each with its origin, are evaluated even if
        `evals` others are known.
        """
        self.study, self.dimensions = study, dimensions
        self._total = min(evals, dimensions.size)
        self._propose, self._refine_from, self._draws = propose, refine_from, draws
        self._required = required
        self._repeats = 0
        self._measuring = False
        self._first_seen: dict[int, float] = {}

    def retry_unfinished(self) -> None:
        """Queue the trials of a killed process again. Only where no other process can be working on the study."""
        for trial in self._trials(TrialState.RUNNING):
            self.study.tell(trial.number, state=TrialState.FAIL)
            RetryHeartbeatStaleTrialCallback()(self.study, trial)

    def enqueue(self, origins: Mapping[Widths, str]) -> None:
        """Queue networks that are not yet known, each with its origin."""
        known = self._known()
        for widths, origin in origins.items():
            if widths not in known:
                self.study.enqueue_trial(self.dimensions.parameters(widths), {"origin": origin})

    def evaluations(self) -> list[Evaluation]:
        """Return all evaluations so far, in the order of the trials; a damaged file may lack parameters of one."""
        first: dict[Widths, FrozenTrial] = {}
        for trial in self._trials(TrialState.COMPLETE):
            if self.dimensions.complete(trial.params):
                first.setdefault(self.dimensions.of(trial.params), trial)
        return [self._evaluation(number, *item) for number, item in enumerate(first.items())]

    def run(self, measure: Measure, report: Callable[[list[Evaluation]], None]) -> None:
        """Evaluate networks until there are enough, or none is left."""
        while True:
            evaluations = self.evaluations()
            report(evaluations)
            missing = self._required.keys() - {evaluation.widths for evaluation in evaluations}
            if len(evaluations) >= self._total and not missing:
                return
            others = self._in_progress()
            if others and len(evaluations) + others >= self._total:  # other workers have the last ones
                self._wait()
            elif len(evaluations) >= self._total and not self._trials(TrialState.WAITING):
                self._repeat(missing)
            elif self._trials(TrialState.WAITING) or self._prepare(evaluations):
                self._evaluate(measure)
            elif others:  # what is proposed next depends on theirs
                self._wait()
            else:
                return

    def _repeat(self, missing: Collection[Widths]) -> None:
        """Queue networks again whose workers failed, or died before their first heartbeat."""
        for trial in self._trials(TrialState.RUNNING):
            self.study.tell(trial.number, state=TrialState.FAIL)
        self.enqueue({widths: self._required[widths] for widths in missing})

    def _wait(self) -> None:
        """Wait for other workers, and give the trials of dead ones back."""
        time.sleep(POLL_SECONDS)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            fail_stale_trials(self.study)

    def _evaluate(self, measure: Measure) -> None:
        """Evaluate the next trial; drop the result if another worker has finished the trial meanwhile.

        Two workers can get the same trial from SQLite, which has no row locks (Optuna 4), and a worker that was suspended for
        longer than the grace period has lost its trial.
        """
        try:
            self.study.optimize(lambda trial: self._objective(trial, measure), n_trials=1, catch=(_KnownNetworkError,))
        except (ValueError, UpdateFinishedTrialError):
            if self._measuring:  # else Optuna could not store a result
                raise

    def _in_progress(self) -> int:
        """Count the trials that other workers may finish.

        Optuna finds a dead worker by its heartbeat. One that died before the first heartbeat is given up after `PATIENCE` times
        the longest evaluation.
        """
        seconds = [trial.user_attrs.get("seconds", 0.0) for trial in self._trials(TrialState.COMPLETE)]
        patience, now = max(2 * storage.GRACE_SECONDS, PATIENCE * max(seconds, default=0.0)), time.monotonic()
        running = [trial.number for trial in self._trials(TrialState.RUNNING)]
        return sum(now - self._first_seen.setdefault(number, now) < patience for number in running)

    def _objective(self, trial: "Trial", measure: Measure) -> tuple[float, float]:
        _ = trial.relative_params  # Optuna draws lazily; a queued trial would otherwise never become a parent
        widths = self.dimensions.suggested(trial)
        if self._is_known(widths, trial.number):
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
        """Queue the refinement's next move, or a random network if the sampler repeats itself; False if none is left."""
        known = self._known()
        if self._propose and len(known) >= self._refine_from:
            proposal = self._propose(evaluations, known)
            if proposal:
                self.enqueue(dict([proposal]))
                return True
            if not self._draws:
                return False
        if self._repeats >= REPEATS:
            widths = self._unknown(known)
            if widths is None:
                return False
            self.enqueue({widths: "random"})
        return True

    def _unknown(self, known: set[Widths]) -> Widths | None:
        """Draw a random unknown network."""
        draw = random.Random(len(known))
        groups = [self.dimensions.space.groups[index] for index in self.dimensions.searched]
        for _ in range(DRAWS):
            widths = self.dimensions.widths([draw.randrange(len(group.widths)) for group in groups])
            if widths not in known:
                return widths
        return None

    def _trials(self, *states: TrialState) -> "list[FrozenTrial]":
        return list(self.study.get_trials(deepcopy=False, states=states))

    def _networks(self, trials: "Sequence[FrozenTrial]") -> set[Widths]:
        """Return the networks of trials whose parameters are all set."""
        parameters = [trial.system_attrs.get("fixed_params", trial.params) for trial in trials]
        return {self.dimensions.of(values) for values in parameters if self.dimensions.complete(values)}

    def _known(self) -> set[Widths]:
        return self._networks(self._trials(TrialState.COMPLETE, *_OPEN))

    def _is_known(self, widths: Widths, number: int) -> bool:
        """Check whether the network is evaluated, or an earlier trial is evaluating it."""
        earlier = [trial for trial in self._trials(TrialState.RUNNING) if trial.number < number]
        return widths in self._networks([*earlier, *self._trials(TrialState.COMPLETE)])

    def _evaluation(self, number: int, widths: Widths, trial: "FrozenTrial") -> Evaluation:
        quality, cost = trial.values
        origin = str(trial.user_attrs.get("origin", SAMPLER))
        return Evaluation(number, widths, quality, cost, float(trial.user_attrs.get("seconds", 0.0)), origin)
