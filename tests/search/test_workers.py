"""Several workers on one study, one of them killed; claims that are renewed, and those that are not."""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import TrialState
from postgresql import postgresql
from tiny_models import TinySource

from lonas_edge.errors import LonasEdgeError
from lonas_edge.search import study as study_module
from lonas_edge.search.dimensions import Dimensions, find_dimensions
from lonas_edge.search.samplers import SamplerSettings, reseeded
from lonas_edge.search.study import Rules, Worker

# `lonas-edge` whose evaluations take a moment; its fourth never ends where it is told so
WORKER = """
import sys, time
from pathlib import Path
from lonas_edge.network.super_network import SuperNetwork
from lonas_edge.cli import main
kl, hangs, count = SuperNetwork.kl, Path(sys.argv.pop(1)), []
def slow(*given):
    count.append(1)
    time.sleep(0.05)
    if len(count) == 4 and hangs.name != "never":
        hangs.touch()
        time.sleep(1000)
    return kl(*given)
SuperNetwork.kl = slow
main()
"""


@pytest.mark.slow
def test_a_study_on_a_server(command: Callable, run_cli: Callable, tmp_path: Path) -> None:
    """The second worker finds what the first has measured, and measures nothing."""
    with postgresql() as url:
        options, records, complete = ("--evals", "8", "--storage", url, "--json", "--output"), [], []
        for name in ("one", "two"):
            ran = run_cli(*command(*options, tmp_path / name))
            assert ran.code == 0, ran.err
            records.append(json.loads(ran.out))
            [study] = optuna.get_all_study_names(url)
            trials = optuna.load_study(study_name=study, storage=url).trials
            complete.append([trial.values for trial in trials if trial.state == TrialState.COMPLETE])
    first, second = ([(one["widths"], one["quality"], one["cost"]) for one in record["evaluations"]] for record in records)
    assert first == second and len(first) == 8
    assert complete[0] == complete[1]


@pytest.mark.slow
def test_three_workers_of_which_one_is_killed(command: Callable, tmp_path: Path) -> None:
    hangs, url = tmp_path / "hangs", f"sqlite:///{tmp_path}/study.db"

    def start(name: str, marker: Path) -> subprocess.Popen[str]:
        options = ("--storage", url, "--output", tmp_path / name, "--json")
        program = [sys.executable, "-c", WORKER, marker, *command(*options)]
        return subprocess.Popen(list(map(str, program)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    killed = start("killed", hangs)
    deadline = time.monotonic() + 120
    while not hangs.exists():
        assert killed.poll() is None and time.monotonic() < deadline, killed.communicate()
        time.sleep(0.05)
    workers = [start("one", tmp_path / "never"), start("two", tmp_path / "never")]
    time.sleep(2)
    killed.kill()
    killed.communicate()
    records = []
    for worker in workers:
        out, err = worker.communicate(timeout=200)
        assert worker.returncode == 0, err
        records.append(json.loads(out))

    [name] = optuna.get_all_study_names(url)
    study = optuna.load_study(study_name=name, storage=url)
    states = [trial.state for trial in study.trials]
    assert set(states) <= {TrialState.COMPLETE, TrialState.FAIL}, "none runs for ever"
    complete = [trial for trial in study.trials if trial.state == TrialState.COMPLETE]
    points = {tuple(sorted(trial.params.items())): tuple(trial.values) for trial in complete}
    assert len(points) == 27
    front = {
        point
        for point in points.values()
        if not any(o != point and o[0] <= point[0] and o[1] <= point[1] for o in points.values())
    }
    for record in records:
        found = [record["evaluations"][number] for number in record["front"]]
        assert {(one["quality"], one["cost"]) for one in found} == front
        assert len({tuple(one["widths"]) for one in record["evaluations"]}) == len(record["evaluations"]) == 27
    by = {trial.user_attrs["worker"]["pid"] for trial in complete}
    assert {worker.pid for worker in workers} <= by, "both worked"
    assert all(trial.user_attrs["worker"]["pid"] != killed.pid for trial in complete[3:])


@pytest.fixture
def joined(llama: TinySource) -> Callable[..., tuple[Worker, Dimensions]]:
    """A worker on a study in memory: `joined(evals, propose)`."""
    dimensions = find_dimensions(llama.opened(), ["int8"])

    def join(evals: int, alone: bool = False, sampler: str = "random") -> tuple[Worker, Dimensions]:
        drawn = reseeded(sampler, SamplerSettings(4, 0.9, 0.02, 0))
        shared = optuna.create_study(directions=["minimize"] * 2, sampler=drawn)
        return Worker(shared, dimensions, Rules(evals, sampler, evals, 0), alone), dimensions

    return join


def measured(dimensions: Dimensions) -> tuple[list[Any], Callable]:
    """Networks that were measured, and what measures them."""
    seen: list[Any] = []

    def measure(network: Any) -> tuple[float, float]:
        seen.append(network)
        levels = dimensions.levels(network[0])
        return float(sum(levels)), float(-sum(levels))

    return seen, measure


def begun(worker: Worker, host: str) -> int:
    """A trial that another host has begun; its number."""
    trial = worker.study.ask()
    worker.dimensions.suggested(trial)
    trial.set_user_attr("worker", {"host": host, "pid": 1, "started": 0.0, "key": "other"})
    return trial.number


def test_a_silent_worker_s_trial_is_taken_over(joined: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study_module, "STALE_SECONDS", 0.3)
    worker, dimensions = joined(5)
    number = begun(worker, "elsewhere")
    seen, measure = measured(dimensions)
    start = time.monotonic()
    worker.run(measure, lambda _: None)
    assert time.monotonic() - start >= 0.3
    assert len(seen) == len(set(seen)) == 5
    assert worker.study.trials[number].state == TrialState.COMPLETE


def test_a_worker_that_renews_its_claim_is_waited_for(joined: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study_module, "STALE_SECONDS", 0.4)
    worker, dimensions = joined(3)
    number = begun(worker, "elsewhere")
    other = worker.study.trials[number]
    beats = []

    def sleep(_seconds: float, sleep: Callable = time.sleep) -> None:
        sleep(0.2)
        beats.append(1)
        if len(beats) == 6:
            worker.study.tell(number, [9.0, 9.0])
        else:
            worker.study._storage.set_trial_user_attr(other._trial_id, "beat", len(beats))

    monkeypatch.setattr(study_module.time, "sleep", sleep)
    seen, measure = measured(dimensions)
    worker.run(measure, lambda _: None)
    assert len(beats) == 6 and len(seen) == 2
    assert worker.study.trials[number].values == [9.0, 9.0]


def test_alone_nothing_is_waited_for(joined: Callable) -> None:
    worker, dimensions = joined(3, alone=True)
    number = begun(worker, "elsewhere")
    seen, measure = measured(dimensions)
    worker.run(measure, lambda _: None)
    assert len(seen) == 3 and worker.study.trials[number].state == TrialState.COMPLETE


def test_claims_are_renewed(joined: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study_module, "BEAT_SECONDS", 0.02)
    worker, dimensions = joined(1)
    _, measure = measured(dimensions)

    def slow(network: Any) -> tuple[float, float]:
        time.sleep(0.3)
        return measure(network)

    worker.run(slow, lambda _: None)
    assert worker.study.trials[0].user_attrs["beat"] >= 3


def test_a_quality_that_is_not_finite(joined: Callable) -> None:
    worker, _ = joined(3)
    with pytest.raises(LonasEdgeError, match="has the quality nan"):
        worker.run(lambda _: (float("nan"), 1.0), lambda _: None)


def test_every_network_of_a_space_is_found_and_none_twice(joined: Callable) -> None:
    worker, dimensions = joined(1000)
    seen, measure = measured(dimensions)
    worker.run(measure, lambda _: None)
    assert len(seen) == len(set(seen)) == dimensions.size == 27
    assert [one.number for one in worker.evaluations()] == list(range(27))


def test_a_trial_that_two_have_taken_over(joined: Callable) -> None:
    """Of two that find a dead worker's trial, the slower one finds it finished, whenever that is."""
    worker, dimensions = joined(4, alone=True)
    number = begun(worker, "elsewhere")
    seen, measure = measured(dimensions)

    def quicker(network: Any) -> tuple[float, float]:
        if len(seen) == 0:
            worker.study.tell(number, [9.0, 9.0])
        return measure(network)

    worker.run(quicker, lambda _: None)
    assert worker.study.trials[number].values == [9.0, 9.0]
    assert len(worker.evaluations()) == 4


def test_a_trial_that_another_finishes_before_it_is_taken_over(joined: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sampler writes to a trial that it begins, which storage refuses where the trial has ended meanwhile."""
    worker, dimensions = joined(4, sampler="nsga2")
    number = begun(worker, "elsewhere")

    def quicker(_worker: Worker, trial: Any) -> bool:
        worker.study.tell(trial.number, [9.0, 9.0])
        return True

    monkeypatch.setattr(Worker, "_abandoned", quicker)
    _, measure = measured(dimensions)
    worker.run(measure, lambda _: None)
    assert worker.study.trials[number].values == [9.0, 9.0]
    assert len(worker.evaluations()) == 4


def test_a_trial_that_another_finishes_while_it_is_told(joined: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    """Optuna looks whether a trial has ended, then ends it: another worker may be quicker in between."""
    worker, dimensions = joined(4)
    tell = worker.study.tell

    def late(number: int, *given: Any, **more: Any) -> None:
        if number == 1:
            tell(number, [9.0, 9.0])
            raise UpdateFinishedTrialError
        tell(number, *given, **more)

    monkeypatch.setattr(worker.study, "tell", late)
    _, measure = measured(dimensions)
    worker.run(measure, lambda _: None)
    assert worker.study.trials[1].values == [9.0, 9.0]
    assert len(worker.evaluations()) == 4
