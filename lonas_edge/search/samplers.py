"""Optuna's samplers, one object each; each trial has a seed of its own, so that a search that goes on draws the same."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler


@dataclass(frozen=True)
class SamplerSettings:
    """Settings of a sampler, the configuration's own by default.

    Attributes:
        population: Networks of a generation.
        crossover_prob: How likely a network comes of two parents rather than one.
        mutation_prob: How likely a group is drawn anew.
        seed: Of all draws.
    """

    population: int
    crossover_prob: float
    mutation_prob: float
    seed: int


@dataclass(frozen=True)
class Sampler:
    """A way to draw the next network.

    Attributes:
        name: What it is called on the command line and in records.
        described: What the command line's help says of it.
        make: Makes Optuna's sampler with a seed.
    """

    name: str
    described: str
    make: "Callable[[SamplerSettings, int], BaseSampler]"


def _nsga2(settings: SamplerSettings, seed: int) -> "BaseSampler":
    from optuna.samplers import NSGAIISampler

    return NSGAIISampler(
        population_size=settings.population,
        crossover_prob=settings.crossover_prob,
        mutation_prob=settings.mutation_prob,
        seed=seed,
    )


def _tpe(_settings: SamplerSettings, seed: int) -> "BaseSampler":
    from optuna.samplers import TPESampler

    return TPESampler(seed=seed)


def _random(_settings: SamplerSettings, seed: int) -> "BaseSampler":
    from optuna.samplers import RandomSampler

    return RandomSampler(seed=seed)


SAMPLERS = {
    sampler.name: sampler
    for sampler in (
        Sampler("nsga2", "the reference's genetic algorithm", _nsga2),
        Sampler("tpe", "tree-structured Parzen estimators", _tpe),
        Sampler("random", "uniform draws", _random),
    )
}


def reseeded(name: str, settings: SamplerSettings) -> "BaseSampler":
    """A sampler whose draw of a trial depends on the seed, the trial's number and the trials before it, and on nothing else.

    Optuna's own go on with one generator from trial to trial: a search that was killed would go on with other draws, and two
    workers with one seed would draw the same.

    Args:
        name: One of `SAMPLERS`.
        settings: Its settings.

    Returns:
        The sampler.
    """
    from optuna.samplers import BaseSampler

    class Reseeded(BaseSampler):  # type: ignore[misc]
        """A new sampler for each trial, and for each parameter that is drawn alone."""

        def _made(self, trial: Any, *more: object) -> BaseSampler:
            text = "/".join(map(str, (settings.seed, trial.number, *more)))
            return SAMPLERS[name].make(settings, int(hashlib.sha256(text.encode()).hexdigest()[:8], 16))

        def infer_relative_search_space(self, study: Any, trial: Any) -> Any:
            return self._made(trial).infer_relative_search_space(study, trial)

        def sample_relative(self, study: Any, trial: Any, search_space: Any) -> Any:
            return self._made(trial).sample_relative(study, trial, search_space)

        def sample_independent(self, study: Any, trial: Any, param_name: str, param_distribution: Any) -> Any:
            return self._made(trial, param_name).sample_independent(study, trial, param_name, param_distribution)

        def after_trial(self, study: Any, trial: Any, state: Any, values: Any) -> None:
            self._made(trial).after_trial(study, trial, state, values)

    return Reseeded()
