"""A worker: evaluates the warm start, NSGA-II's draws and the refinement's moves, each network once.

All decisions follow from the stored trials, so any number of workers can share a study. Optuna's heartbeat queues the trial of
a dead worker again. No worker waits for another: with nothing else to do, it evaluates a network that another one has taken.
"""

import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING

from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import TrialState

from lonas_edge.errors import LonasEdgeError
from lonas_edge.search.dimensions import Dimensions, Widths
from lonas_edge.search.record import Evaluation
from lonas_edge.search.refine import Propose

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial, Trial

SAMPLER = "nsga2"
REPEATS = 3  # known networks drawn in a row, after which an unknown one is drawn at random
DRAWS = 10_000  # attempts to draw it
Measure = Callable[[Widths], tuple[float, float]]  # quality and cost of a network


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
        self._measured = False  # whether the last trial has its figures

    def fail_unfinished(self) -> None:
        """Give up the trials of a killed process. Only where no other process can be working on the study."""
        for trial in self._trials(TrialState.RUNNING):
            self.study.tell(trial.number, state=TrialState.FAIL)

    def enqueue(self, origins: Mapping[Widths, str]) -> None:
        """Queue networks that are not yet known, each with its origin."""
        known = self._known()
        for widths, origin in origins.items():
            if widths not in known:
                self._queue(widths, origin)

    def _queue(self, widths: Widths, origin: str) -> None:
        self.study.enqueue_trial(self.dimensions.parameters(widths), {"origin": origin})

    def evaluations(self) -> list[Evaluation]:
        """Return all evaluations so far, in the order of the trials."""
        first: dict[Widths, FrozenTrial] = {}
        for trial in self._trials(TrialState.COMPLETE):
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
            if self._trials(TrialState.WAITING) or self._prepare(evaluations):
                self._evaluate(measure)
            else:
                return

    def _evaluate(self, measure: Measure) -> None:
        """Evaluate the next trial; drop the result if another worker has finished the trial meanwhile.

        Two workers can get the same trial from SQLite, which has no row locks, and a worker that was suspended for longer than
        the grace period has lost its trial.
        """
        self._measured = False
        try:
            self.study.optimize(lambda trial: self._objective(trial, measure), n_trials=1, catch=(_KnownNetworkError,))
        except (ValueError, UpdateFinishedTrialError):
            if not self._measured:  # else Optuna could not store the result
                raise

    def _objective(self, trial: "Trial", measure: Measure) -> tuple[float, float]:
        _ = trial.relative_params  # Optuna draws lazily; a queued trial would otherwise never become a parent
        widths = self.dimensions.suggested(trial)
        queued = "origin" in trial.user_attrs
        if widths in (self._networks(TrialState.COMPLETE) if queued else self._earlier(trial.number)):
            self._repeats += 1
            raise _KnownNetworkError
        self._repeats = 0
        start = time.perf_counter()
        quality, cost = measure(widths)
        if not math.isfinite(quality):
            raise LonasEdgeError(
                f"The network with widths {list(widths)} has quality {quality}: the weights are damaged, or too large to "
                "compute with."
            )
        self._measured = True
        trial.set_user_attr("seconds", time.perf_counter() - start)
        return quality, cost

    def _prepare(self, evaluations: Sequence[Evaluation]) -> bool:
        """Queue the next network, unless the sampler draws one; False if none is left."""
        evaluated, known = {evaluation.widths for evaluation in evaluations}, self._known()
        if len(known) >= self._total:  # other workers have the last ones, or died before their first heartbeat
            origins = dict.fromkeys(sorted(known), SAMPLER) | dict(self._required)
            self._queue(*next(item for item in origins.items() if item[0] not in evaluated))
            return True
        if self._propose and len(known) >= self._refine_from:
            proposal = self._propose(evaluations, known)
            if not proposal and not self._draws:  # the next one depends on a network that another worker evaluates
                proposal = self._propose(evaluations, evaluated)
            if proposal:
                self._queue(*proposal)
                return True
            if not self._draws:
                return False
        if self._repeats >= REPEATS:
            widths = self._unknown(known)
            if widths is None:
                return False
            self._queue(widths, "random")
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

    def _networks(self, *states: TrialState, before: float = math.inf) -> set[Widths]:
        """Return the networks of trials whose parameters are all set."""
        trials = [trial for trial in self._trials(*states) if trial.number < before]
        parameters = [trial.system_attrs.get("fixed_params", trial.params) for trial in trials]
        return {self.dimensions.of(values) for values in parameters if self.dimensions.complete(values)}

    def _known(self) -> set[Widths]:
        return self._networks(TrialState.COMPLETE, TrialState.RUNNING, TrialState.WAITING)

    def _earlier(self, number: int) -> set[Widths]:
        """Return the evaluated networks, and those that earlier trials are evaluating."""
        return self._networks(TrialState.COMPLETE) | self._networks(TrialState.RUNNING, before=number)

    def _evaluation(self, number: int, widths: Widths, trial: "FrozenTrial") -> Evaluation:
        quality, cost = trial.values
        origin = str(trial.user_attrs.get("origin", SAMPLER))
        return Evaluation(number, widths, quality, cost, float(trial.user_attrs.get("seconds", 0.0)), origin)
