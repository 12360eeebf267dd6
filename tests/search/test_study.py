"""Workers on one study: each network once, dead workers, small spaces, a database server."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState
from postgresql import postgresql
from tiny_models import TinySource

from lonas_edge.errors import LonasEdgeError
from lonas_edge.search import study as study_module
from lonas_edge.search.dimensions import Dimensions, Widths, find_dimensions
from lonas_edge.search.study import Worker, open_journal, open_storage, open_study
from lonas_edge.space.search_space import SearchSettings

SETTINGS = SearchSettings(population=4)
# a worker that dies in its first evaluation: `python -c KILLED URL`
KILLED = """
import os, sys, time
from lonas_edge.search import study as module
import optuna
module.HEARTBEAT_SECONDS, module.GRACE_SECONDS = 1, 2
study = optuna.load_study(study_name="s", storage=module.open_storage(sys.argv[1]))
def die(trial):
    for group in (3, 4, 5):
        trial.suggest_int(f"group_{group}", 0, 2)
    time.sleep(2)
    os._exit(9)
study.optimize(die, n_trials=1)
"""


@pytest.fixture
def dimensions(llama: TinySource) -> Dimensions:
    return find_dimensions(llama.opened())


@pytest.fixture
def joined(dimensions: Dimensions, tmp_path: Path) -> Callable[..., Worker]:
    """A worker on a study in memory or in a journal file."""

    def join(evals: int, propose: Any = None, refine_from: int = 0, journal: bool = False) -> Worker:
        storage = open_journal(tmp_path / "study.log") if journal else optuna.storages.InMemoryStorage()
        study = open_study(storage, "s", {}, SETTINGS, 0, "here")
        return Worker(study, dimensions, evals, propose, refine_from)

    return join


class Measuring:
    """Measures networks and remembers them."""

    def __init__(self, dimensions: Dimensions) -> None:
        self.dimensions, self.seen = dimensions, list[Widths]()

    def __call__(self, widths: Widths) -> tuple[float, float]:
        self.seen.append(widths)
        level = sum(self.dimensions.levels(widths))
        return float(level), float(-level)


def silent(_: object) -> None: ...


def suggest(worker: Worker, trial: Any = None) -> Widths:
    """Draw the parameters of a trial that another worker evaluates."""
    trial = trial or worker.study.ask()
    return worker.dimensions.widths([trial.suggest_int(f"group_{group}", 0, 2) for group in worker.dimensions.searched])


def test_every_network_of_a_space_once(joined: Callable, dimensions: Dimensions) -> None:
    worker, measure, reported = joined(1000), Measuring(dimensions), list[int]()
    worker.enqueue({dimensions.maximal: "warm-start:maximal"})
    worker.run(measure, lambda evaluations: reported.append(len(evaluations)))
    assert len(measure.seen) == len(set(measure.seen)) == dimensions.size == 27
    assert measure.seen[0] == dimensions.maximal and worker.evaluations()[0].origin == "warm-start:maximal"
    assert [evaluation.number for evaluation in worker.evaluations()] == list(range(27)) and reported[-1] == 27


def test_the_trial_of_a_killed_process_is_evaluated_again(joined: Callable, dimensions: Dimensions) -> None:
    """The next run queues the warm start again."""
    worker, measure = joined(5, journal=True), Measuring(dimensions)
    start = {dimensions.widths([2, 0, 1]): "warm-start:minimal"}
    worker.enqueue(start)
    suggest(worker)  # never completed
    worker = joined(5, journal=True)
    worker.enqueue(start)
    worker.run(measure, silent)
    assert measure.seen[0] == dimensions.widths([2, 0, 1]) and len(set(measure.seen)) == 5
    assert worker.evaluations()[0].origin == "warm-start:minimal"
    assert [trial.state for trial in worker.study.trials].count(TrialState.RUNNING) == 0


def test_required_networks_whose_workers_failed(joined: Callable, dimensions: Dimensions) -> None:
    """Another worker evaluates them, and nothing else; the second one died before its first heartbeat."""
    worker, measure = joined(3), Measuring(dimensions)
    required = {dimensions.widths([2, 0, level]): "required" for level in range(2)}
    others = [dimensions.widths([0, 0, level]) for level in range(3)]
    worker.enqueue(required)
    failed, dead = worker.study.ask(), worker.study.ask()
    for trial in (failed, dead):
        suggest(worker, trial)
    worker.study.tell(failed.number, state=TrialState.FAIL)
    worker.enqueue(dict.fromkeys(others, "other"))
    worker = Worker(worker.study, dimensions, 3, required=required)
    worker.run(measure, silent)
    assert measure.seen[:3] == others and set(measure.seen[3:]) == set(required) and len(measure.seen) == 5
    assert worker.evaluations()[3].origin == "required"


def test_the_refinement_comes_before_the_sampler(joined: Callable, dimensions: Dimensions) -> None:
    moves = [dimensions.widths([2, 2, level]) for level in range(3)]

    def propose(_: Any, known: set[Widths]) -> tuple[Widths, str] | None:
        return next(((widths, "refined") for widths in moves if widths not in known), None)

    worker, measure = joined(8, propose, 4), Measuring(dimensions)
    worker.run(measure, silent)
    origins = [evaluation.origin for evaluation in worker.evaluations()]
    assert origins[:4] == ["nsga2"] * 4 and origins.count("refined") == len(set(moves) - set(measure.seen[:4]))


def test_a_quality_that_is_not_finite(joined: Callable) -> None:
    with pytest.raises(LonasEdgeError, match="has quality nan: the weights are damaged"):
        joined(3).run(lambda _: (float("nan"), 1.0), silent)


def test_proposals_that_need_the_result_of_another_worker(joined: Callable, dimensions: Dimensions) -> None:
    """Without draws, the worker evaluates the network of the running trial, too, and goes on with what follows from it."""
    first, second = dimensions.widths([0, 0, 0]), dimensions.widths([2, 2, 2])

    def propose(evaluations: Any, known: set[Widths]) -> tuple[Widths, str] | None:
        done = {evaluation.widths for evaluation in evaluations}
        following = second if first in done else first
        return (following, "greedy") if following not in known else None

    worker, measure = joined(9, propose), Measuring(dimensions)
    worker.draws = False
    worker.enqueue({first: "warm-start:maximal"})
    running = worker.study.ask()
    assert suggest(worker, running) == first
    worker.run(measure, silent)
    assert measure.seen == [first, second] and [each.widths for each in worker.evaluations()] == [first, second]


@pytest.mark.parametrize("state", [TrialState.FAIL, TrialState.COMPLETE])
def test_a_trial_that_another_worker_finishes(joined: Callable, dimensions: Dimensions, state: TrialState) -> None:
    """The worker goes on; a completed network counts once."""
    worker, measure = joined(5), Measuring(dimensions)

    def taken(widths: Widths) -> tuple[float, float]:
        result = measure(widths)
        if len(measure.seen) == 2:
            worker.study.tell(worker.study.trials[-1].number, result if state == TrialState.COMPLETE else None, state)
        return result

    worker.run(taken, silent)
    assert len(worker.evaluations()) == 5
    assert len(measure.seen) == (5 if state == TrialState.COMPLETE else 6)


def shared_study(url: str) -> optuna.Study:
    return open_study(open_storage(url), "s", {}, SETTINGS, 0, "here")


def test_a_dead_worker_s_network_is_queued_again(
    dimensions: Dimensions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Optuna's heartbeat detects the dead worker."""
    monkeypatch.setattr(study_module, "HEARTBEAT_SECONDS", 1)
    monkeypatch.setattr(study_module, "GRACE_SECONDS", 2)
    url = f"sqlite:///{tmp_path}/study.db"
    worker = Worker(shared_study(url), dimensions, 3)
    worker.enqueue({dimensions.widths([0, 1, 2]): "refined"})
    killed = [sys.executable, "-c", KILLED, url]
    assert subprocess.run(killed, check=False, capture_output=True, timeout=100).returncode == 9
    time.sleep(3)  # longer than the grace period
    measure = Measuring(dimensions)
    worker.run(measure, silent)
    assert len(measure.seen) == len(set(measure.seen)) == 3
    assert {each.widths: each.origin for each in worker.evaluations()}[dimensions.widths([0, 1, 2])] == "refined"


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/study.db"
        return
    with postgresql() as server:
        yield server


@pytest.mark.slow
def test_workers_at_once(url: str, command: Callable, tmp_path: Path) -> None:
    """Three processes evaluate all 27 networks, and write the same results."""
    workers = []
    for name in ("one", "two", "three"):
        line = [sys.executable, "-m", "lonas_edge", *map(str, command("--storage", url, "--output", tmp_path / name))]
        workers.append(subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True))
    for worker in workers:
        _, err = worker.communicate(timeout=300)
        assert worker.returncode == 0, err
    [name] = optuna.get_all_study_names(url)
    complete = [t for t in optuna.load_study(study_name=name, storage=url).trials if t.state == TrialState.COMPLETE]
    assert len({tuple(sorted(trial.params.items())) for trial in complete}) == 27
    results = set()
    for path in tmp_path.glob("*/search.json"):
        evaluations = json.loads(path.read_text())["evaluations"]
        results.add(str(sorted((each["widths"], each["quality"], each["cost"]) for each in evaluations)))
    assert len(results) == 1, "all workers write the same evaluations"
