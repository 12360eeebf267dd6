"""The study: seeds, Optuna's sampler and the refinement in turn, by one worker or many, every network evaluated once.

Everything is decided by the trials that the storage has, so that a worker can die at any moment. A trial whose worker has died
is taken over as it is, with its number and its network: the search goes on as if nothing had happened.
"""

import math
import random
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import psutil
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import Trial, TrialState

from lonas_edge.errors import LonasEdgeError
from lonas_edge.search.dimensions import Dimensions, Network
from lonas_edge.search.record import Evaluation

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial

BEAT_SECONDS = 10.0  # a worker renews its claim so often,
STALE_SECONDS = 60.0  # and is taken for dead when it has not for so long
REPEATS = 10  # networks drawn in a row that are known already, after which one is drawn that is not
DRAWS = 10_000  # for a network that is not taken
_SEEDED = "seeds"  # origins of the networks that were enqueued
Measure = Callable[[Network], tuple[float, float]]  # a network's quality and cost
# from what is evaluated, and what is taken: a network, and its origin
Propose = Callable[[Sequence[Evaluation], set[Network]], tuple[Network, str] | None]


@dataclass(frozen=True)
class Rules:
    """How long a study goes on, and what comes when.

    Attributes:
        evals: Networks to evaluate in all.
        sampler: Name of the sampler, as the origin of what it draws.
        refine_from: Evaluations after which the refinement proposes networks before the sampler does.
        seed: Of the network that is drawn when the sampler repeats itself.
        sign: That of the quality; Optuna minimizes.
    """

    evals: int
    sampler: str
    refine_from: int
    seed: int
    sign: int = 1


class Worker:
    """One process that evaluates networks of a study."""

    def __init__(self, study: "Study", dimensions: Dimensions, rules: Rules, alone: bool, propose: Propose | None = None):
        """Join a study.

        Args:
            study: The study.
            dimensions: Its dimensions.
            rules: How long it goes on.
            alone: Whether no other process can be at work on it.
            propose: The refinement; None for none.
        """
        self.study, self.dimensions, self._rules, self._alone, self._propose = study, dimensions, rules, alone, propose
        process = psutil.Process()
        self._id = {"host": socket.gethostname(), "pid": process.pid, "started": process.create_time(), "key": uuid.uuid4().hex}
        self._seen: dict[int, tuple[Any, float]] = {}  # of others' trials: their last beat, and when it was first seen

    def seed(self, seeds: Mapping[Network, str]) -> None:
        """Have networks evaluated before any is drawn, each once a study; a search that goes on may have more picks.

        Args:
            seeds: The networks, each with its origin.
        """
        seeded = self.study.user_attrs.get(_SEEDED, [])
        new = {network: origin for network, origin in seeds.items() if origin not in seeded}
        for network, origin in new.items():
            self._enqueue(network, origin)
        if new:
            self.study.set_user_attr(_SEEDED, [*seeded, *new.values()])

    def evaluations(self) -> list[Evaluation]:
        """What is evaluated so far, in the order of the trials."""
        found: dict[Network, FrozenTrial] = {}
        for trial in self._trials(TrialState.COMPLETE):
            found.setdefault(self.dimensions.of(trial.params), trial)
        return [self._evaluation(number, *item) for number, item in enumerate(found.items())]

    def run(self, measure: Measure, told: Callable[[list[Evaluation]], None]) -> None:
        """Evaluate networks until there are enough, or no more.

        Args:
            measure: Evaluates one.
            told: Called with all evaluations before the first, after each, and in the end, with the last ones of others.

        Raises:
            LonasEdgeError: If a quality is not finite.
        """
        told(self.evaluations())
        while (trial := self._next()) is not None:
            with suppress(UpdateFinishedTrialError):  # another worker has taken it over, too, and was quicker
                values = self._measured(trial, measure)
                if values is None:
                    self.study.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)
                    continue
                self.study.tell(trial.number, values, skip_if_finished=True)
                told(self.evaluations())
        told(self.evaluations())

    def _measured(self, trial: Trial, measure: Measure) -> list[float] | None:
        """What a trial's network gives, to be minimized; None where another trial has that network."""
        with self._claimed(trial):
            _ = trial.relative_params  # a seed would belong to no generation otherwise: Optuna 5 draws only when asked
            network = self.dimensions.suggested(trial)
            if self._repeated(network, trial.number):
                return None
            start = time.perf_counter()
            quality, cost = measure(network)
            if not math.isfinite(quality):
                raise LonasEdgeError(
                    f"The network of widths {list(network[0])} has the quality {quality}: the weights are damaged, or too "
                    "large for --torch-dtype"
                )
            trial.set_user_attr("seconds", time.perf_counter() - start)
        return [self._rules.sign * quality, cost]

    def _next(self) -> Trial | None:
        """The next trial: one whose worker died, one that waits, a proposed one, or a drawn one. None at the end."""
        while True:
            running = self._trials(TrialState.RUNNING)
            left = next((trial for trial in running if self._abandoned(trial)), None)
            if left is not None:
                with suppress(UpdateFinishedTrialError):  # another worker was quicker; the sampler writes to what it begins
                    return Trial(self.study, left._trial_id)
                continue
            done = self.evaluations()
            taken = {(one.widths, one.weight_format) for one in done} | self._networks(running)
            if len(done) + len(running) >= min(self._rules.evals, self.dimensions.size):
                if not running:
                    return None
                time.sleep(min(1.0, STALE_SECONDS / 4))  # another worker's last one, which may have to be taken over
                continue
            if not self._trials(TrialState.WAITING) and not self._suggest(done, taken):
                return None
            return self.study.ask()

    def _suggest(self, done: Sequence[Evaluation], taken: set[Network]) -> bool:
        """Put a network in front of what the sampler would draw, where there is reason to; False where none can be found."""
        if self._propose and len(taken) >= self._rules.refine_from:
            proposed = self._propose(done, taken)
            if proposed:
                self._enqueue(*proposed)
                return True
        trials = self.study.get_trials(deepcopy=False)
        last = trials[-REPEATS:]
        if len(last) == REPEATS and all(trial.state == TrialState.FAIL for trial in last):
            untaken = self._untaken(taken, len(trials))
            if untaken is None:
                return False
            self._enqueue(untaken, "random")
        return True

    def _untaken(self, taken: set[Network], number: int) -> Network | None:
        """A network drawn at random that is not taken; None where none is found, though there may be very few left."""
        draw = random.Random(f"{self._rules.seed}/{number}")
        groups = [self.dimensions.space.groups[index] for index in self.dimensions.searched]
        for _ in range(DRAWS):
            levels = [draw.randrange(len(group.widths)) for group in groups]
            network = self.dimensions.network(levels, draw.choice(self.dimensions.formats))
            if network not in taken:
                return network
        return None

    def _enqueue(self, network: Network, origin: str) -> None:
        self.study.enqueue_trial(self.dimensions.parameters(network), {"origin": origin}, skip_if_exists=True)

    def _trials(self, state: TrialState) -> "list[FrozenTrial]":
        return list(self.study.get_trials(deepcopy=False, states=(state,)))

    def _networks(self, trials: "Sequence[FrozenTrial]") -> set[Network]:
        """The networks of trials that have all their parameters."""
        whole = [trial for trial in trials if len(trial.params) == len(self.dimensions.names)]
        return {self.dimensions.of(trial.params) for trial in whole}

    def _repeated(self, network: Network, number: int) -> bool:
        """Whether another trial has or had it: one that is evaluated, or an earlier one that is being evaluated."""
        earlier = [trial for trial in self._trials(TrialState.RUNNING) if trial.number < number]
        return network in self._networks([*earlier, *self._trials(TrialState.COMPLETE)])

    def _evaluation(self, number: int, network: Network, trial: "FrozenTrial") -> Evaluation:
        widths, weight_format = network
        quality, cost = trial.values
        origin = str(trial.user_attrs.get("origin", self._rules.sampler))
        seconds = float(trial.user_attrs.get("seconds", 0.0))
        return Evaluation(number, widths, weight_format, self._rules.sign * quality, cost, seconds, origin)

    def _abandoned(self, trial: "FrozenTrial") -> bool:
        """Whether a running trial's worker is dead: known where it ran here, else when it has not renewed its claim."""
        worker = trial.user_attrs.get("worker", {})
        if self._alone or (worker.get("host") == self._id["host"] and not _alive(worker)):
            return True
        beat, now = (worker.get("key"), trial.user_attrs.get("beat")), time.monotonic()
        last, since = self._seen.get(trial.number, (None, now))
        if last != beat:
            since = now
        self._seen[trial.number] = beat, since
        return now - since > STALE_SECONDS

    @contextmanager
    def _claimed(self, trial: Trial) -> Iterator[None]:
        """Renew the claim to a trial while it is evaluated."""
        trial.set_user_attr("worker", self._id)
        done = threading.Event()

        def renew() -> None:
            count = 0
            while not done.wait(BEAT_SECONDS):
                count += 1
                with suppress(Exception):  # a storage that is away for a moment; a claim is not worth the evaluation
                    trial.set_user_attr("beat", count)

        renewing = threading.Thread(target=renew, daemon=True)
        renewing.start()
        try:
            yield
        finally:
            done.set()
            renewing.join()


def _alive(worker: Mapping[str, Any]) -> bool:
    with suppress(psutil.Error):
        return bool(abs(psutil.Process(worker["pid"]).create_time() - worker["started"]) < 1)
    return False
