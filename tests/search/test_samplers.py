"""Draws that depend on the seed, the trial's number and the trials before it alone."""

import optuna
import pytest

from lonas_edge.search.samplers import SAMPLERS, SamplerSettings, reseeded

GROUPS = 6


def drawn(name: str, seed: int, restarts: tuple[int, ...] = (), trials: int = 30) -> list[tuple[int, ...]]:
    """The networks that a study draws; the sampler is made anew before some of the trials."""
    settings = SamplerSettings(5, 0.9, 0.1, seed)
    study = optuna.create_study(directions=["minimize"] * 2, sampler=reseeded(name, settings))
    found = []
    for number in range(trials):
        if number in restarts:
            study.sampler = reseeded(name, settings)
        trial = study.ask()
        levels = tuple(trial.suggest_int(f"group_{index}", 0, 4) for index in range(GROUPS))
        study.tell(trial, [sum(levels), -levels[0] - sum(levels) / 2])
        found.append(levels)
    return found


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_new_sampler_goes_on_with_the_same(name: str) -> None:
    whole = drawn(name, 3)
    assert drawn(name, 3, restarts=(1, 7, 8, 20)) == whole
    assert drawn(name, 4) != whole
    assert len(set(whole)) > 10, "draws differ from each other"


def test_groups_are_drawn_apart() -> None:
    assert all(len(set(levels)) > 1 for levels in drawn("random", 0, trials=5))


def test_settings_reach_nsga2() -> None:
    found = SAMPLERS["nsga2"].make(SamplerSettings(7, 0.25, 0.125, 0), 1)
    children = found._child_generation_strategy
    assert (found.population_size, children._crossover_prob, children._mutation_prob) == (7, 0.25, 0.125)
