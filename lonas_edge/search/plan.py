"""What a search is going to do: options resolved, everything checked, and an estimate of its time; no weights are read."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from lonas_edge.errors import LonasEdgeError, raise_all
from lonas_edge.files import sha256
from lonas_edge.formats import FORMATS
from lonas_edge.network import adapters
from lonas_edge.network.heldout import MAX_LENGTH, HeldOut, read_held_out
from lonas_edge.network.source import Source
from lonas_edge.network.speed import matrix_speed
from lonas_edge.search.cost import COSTS, CostFunction, check_cost, cost_function
from lonas_edge.search.damage import evaluations, first_layer
from lonas_edge.search.dimensions import Dimensions, find_dimensions
from lonas_edge.search.picks import Pick, parse_picks
from lonas_edge.search.quality import QUALITIES
from lonas_edge.search.samplers import SamplerSettings
from lonas_edge.search.seeds import named
from lonas_edge.search.timing_settings import CostSettings
from lonas_edge.space.search_space import SearchSpace

REFINED = 0.25  # of the evaluations, at the end: those in which the refinement comes before the sampler,
REFINED_PICKS = 0.5  # and where picks bound a cost, around which it looks first
AROUND = "tables around picks"  # the step that measures those,
SKIP = 4  # on a prompt in so many: each move is evaluated on all
CONFIGURED = ("macs", "weights", "bytes")  # costs that configurations tell, whatever was searched for
_CHARACTERS_A_TOKEN = 4  # English text; an estimate needs no tokenizer
_EFFICIENCY = 0.4  # of a large matrix product's speed that a model's products reach,
_BESIDE = 1.5  # and of fp32's, whatever the dtype, at which all else than products is done beside them (SmolLM2-135M, AMX)


@dataclass(frozen=True)
class SearchOptions:
    """What to search, as on the command line; None is the search space's own setting.

    Attributes:
        data: Prompts with answers.
        output: The directory.
        quality: Name of the quality.
        cost: Name of the cost.
        cost_settings: How it is counted or measured; the weight formats, too.
        prompts: How many prompts are scored.
        prompt: Name of their template; that of the training when None.
        protocol: How accuracy asks.
        dtype: In which the super-network computes.
        evals: Networks to evaluate.
        population: Networks of a generation.
        crossover_prob: How likely a network has two parents.
        mutation_prob: How likely a group is drawn anew.
        seed: Of the draws and of the choice of prompts.
        sampler: Name of the sampler.
        seeded: Whether the knapsack's solutions are evaluated first.
        refined: Whether the front is refined.
        storage: Where trials are kept; a file in the output directory when None.
        study: Name of the study.
        picks: Bounds.
        resume: Whether there must be a search to go on with.
        overwrite: Whether one that is there is begun anew.
        measured: Whether the front is exported and measured in the end.
    """

    data: Path
    output: Path
    quality: str = "kl"
    cost: str = "macs"
    cost_settings: CostSettings = field(default_factory=CostSettings)
    prompts: int = 64
    prompt: str | None = None
    protocol: str = "answer-word"
    dtype: str = "fp32"
    evals: int | None = None
    population: int | None = None
    crossover_prob: float | None = None
    mutation_prob: float | None = None
    seed: int | None = None
    sampler: str = "nsga2"
    seeded: bool = True
    refined: bool = True
    storage: str | None = None
    study: str | None = None
    picks: Sequence[str] = ()
    resume: bool = False
    overwrite: bool = False
    measured: bool = True


@dataclass(frozen=True)
class Planned:
    """A step: how many of what, and its estimated seconds."""

    name: str
    count: int
    seconds: float


@dataclass(frozen=True)
class Plan:
    """A search before it begins.

    Attributes:
        source: Base model, adapter and search space.
        options: What was asked for.
        dimensions: What is searched.
        held: The prompts.
        evals: Networks to evaluate.
        settings: The sampler's.
        picks: The bounds.
    """

    source: Source
    options: SearchOptions
    dimensions: Dimensions
    held: HeldOut
    evals: int
    settings: SamplerSettings
    picks: tuple[Pick, ...]

    @property
    def sign(self) -> int:
        """1 where a lower quality is better, -1 where a higher one is."""
        return QUALITIES[self.options.quality].sign

    @property
    def asked_by(self) -> str:
        """How accuracy asks: a protocol, or GLUE's own metric of a task."""
        return self.held.metric or self.options.protocol

    @property
    def quality_unit(self) -> str:
        """Of the quality's figures."""
        return self.held.units.get(self.options.quality, QUALITIES[self.options.quality].unit)

    @property
    def needs_table(self) -> bool:
        """Whether the damage table is asked for anything."""
        return self.options.seeded or self.options.refined

    @property
    def aims(self) -> tuple[Pick, ...]:
        """The picks that bound a cost."""
        return tuple(pick for pick in self.picks if pick.measure not in QUALITIES)

    @property
    def refine_from(self) -> int:
        """Evaluations after which the refinement comes before the sampler."""
        return round(self.evals * (1 - (REFINED_PICKS if self.aims else REFINED)))

    @property
    def compressed(self) -> bool:
        """Whether networks are scored as their IRs store them: where formats are compared, or one of them does damage."""
        formats = self.dimensions.formats
        return self.options.quality != "accuracy" and (len(formats) > 1 or any(FORMATS[name].bits < 8 for name in formats))

    @cached_property
    def configured_costs(self) -> dict[str, CostFunction]:
        """The costs that configurations tell, by name; each network's are counted once."""
        return {name: cache(cost_function(name, self.source, self.options.cost_settings)) for name in CONFIGURED}

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What the trials depend on, as JSON: two searches with the same may share a study."""
        options, source = self.options, self.source
        costs = options.cost_settings
        case = [costs.prompt_len, costs.new_tokens, *([costs.batch_size] if costs.batch_size > 1 else [])]  # one went unsaid
        device = [costs.device, *case] if COSTS[options.cost].needs_device else None
        return {
            "base": sha256(source.base.folder / "config.json"),
            "super_adapter": adapter_hashes(source),
            "search_space": source.space.hash,
            "data": self.held.sha256,
            "prompts": self.held.prompts,
            "template": self.held.asked_as,
            "quality": options.quality if options.quality != "accuracy" else f"accuracy, {self.asked_by}",
            "cost": options.cost,
            "device": device,
            "weight_formats": list(self.dimensions.formats),
            "dtype": options.dtype,
            "seed": self.settings.seed,
        }

    def steps(self) -> list[Planned]:
        """The steps that compute, with estimates by the speed of this processor's matrix products."""
        forward = self._forward_seconds()
        layers = int(self.source.architecture.config.num_hidden_layers)
        table, share = 0, 0.0
        if self.needs_table:
            table = evaluations(self.source.space, self.dimensions.searched)
            for index in self.dimensions.searched:
                group = self.source.space.groups[index]
                left = layers - first_layer(self.source.architecture, group.modules)
                share += (len(group.widths) - 1) * left / layers
        evals = min(self.evals, self.dimensions.size)
        around = len(self.aims) if self.options.refined else 0
        return [
            Planned("load", 1, self.source.sizes(self.source.unpruned).bytes["fp16"] / 1e9),
            *([Planned("damage table", table, share * forward)] if table else []),
            *([Planned(AROUND, around * table, around * share * forward / SKIP)] if around else []),
            Planned("evaluations", evals, evals * forward),
        ]

    def _forward_seconds(self) -> float:
        """Of all prompts through the maximal network; generation is not counted."""
        tokens = sum(min(length // _CHARACTERS_A_TOKEN + 1, MAX_LENGTH) for length in self.held.lengths())
        operations = 2 * self.source.sizes(self.source.unpruned).linear_weights * tokens
        speeds = _EFFICIENCY * matrix_speed(self.options.dtype), _BESIDE * matrix_speed("fp32")
        return sum(operations / speed for speed in speeds)

    def to_json(self) -> dict[str, Any]:
        """The plan as people and programs read it."""
        groups = self.source.space.groups
        steps = self.steps()
        return {
            "groups": len(groups),
            "searched": list(self.dimensions.searched),
            "fixed": list(self.dimensions.fixed),
            "networks": str(self.dimensions.size),  # more than a JSON number holds
            "evaluations": self.evals,
            "sampler": {"name": self.options.sampler, **asdict(self.settings)},
            "quality": self.options.quality,
            "cost": self.options.cost,
            "weight_formats": list(self.dimensions.formats),
            "prompts": self.held.prompts,
            "template": self.held.asked_as,
            "steps": [asdict(step) for step in steps],
            "seconds": sum(step.seconds for step in steps),
        }


def adapter_hashes(source: Source) -> dict[str, str] | None:
    """SHA-256 of an adapter's configuration and weights by file name; None for a base alone."""
    if source.adapter is None:
        return None
    files = [source.adapter.folder / adapters.CONFIG, adapters.adapter_file(source.adapter.folder)]
    return {path.name: sha256(path) for path in files}


def make_plan(source: Source, options: SearchOptions) -> Plan:
    """Resolve the options and check everything that can be without weights.

    Args:
        source: Base model, adapter and search space.
        options: What was asked for.

    Returns:
        The plan.

    Raises:
        LonasEdgeError: If there is nothing to search, or an option or the data cannot be used.
    """
    if not source.space.groups:
        raise source.without_space("there is nothing to search")
    if own := source.own:
        raise LonasEdgeError(
            f"{source.folder}: specialized for its {own.name} sub-network alone (`train --from`), so that there is nothing to "
            "search. Name the super-adapter that it began as."
        )
    check_cost(options.cost, source.architecture.family.task)
    evals, settings = _settings(source.space, options)
    measures = list(dict.fromkeys((options.quality, options.cost, *CONFIGURED)))
    picks = parse_picks(options.picks, measures)
    dimensions = find_dimensions(source, options.cost_settings.weight_formats)
    if not dimensions.searched:
        raise LonasEdgeError("The search space has no width that makes the deployed model smaller: nothing to search.")
    if options.quality == "accuracy" and len(dimensions.formats) > 1:
        raise LonasEdgeError("--quality accuracy is measured in PyTorch, before compression: name one --weight-format")
    held = read_held_out(source, options.data, options.prompts, settings.seed, options.prompt)
    if options.quality == "accuracy":
        from lonas_edge.search.accuracy import check_questions

        check_questions(held, options.protocol)
    plan = Plan(source, options, dimensions, held, evals, settings, tuple(picks))
    refuse_hopeless(plan, plan.configured_costs)
    return plan


def refuse_hopeless(plan: Plan, costs: Mapping[str, CostFunction]) -> None:
    """Refuse a pick below what the cheapest network costs.

    Args:
        plan: The plan.
        costs: Costs by name; picks of others are not looked at.

    Raises:
        LonasEdgeError: If there is one; the nearest is named.
    """
    known = named(plan.dimensions)
    for pick in plan.picks:
        if pick.measure not in costs:
            continue
        cost = costs[pick.measure]
        least = min(cost(known["minimal"][0], name) for name in plan.dimensions.formats)
        whole = cost(*known["maximal"])
        if not pick.meets(least, whole):
            raise LonasEdgeError(
                f"--pick {pick.expression}: nothing meets it; the nearest is the minimal network with {pick.measure} "
                f"{least:.6g} ({least / whole:.3g}x)"
            )


def _settings(space: SearchSpace, options: SearchOptions) -> tuple[int, SamplerSettings]:
    """The configuration's own settings, where the options do not say otherwise."""
    configured = space.search_settings()
    evals = int(configured.num_evals) if options.evals is None else options.evals
    given = {name: getattr(options, name) for name in SamplerSettings.__dataclass_fields__}
    chosen = {name: getattr(configured, name) if value is None else value for name, value in given.items()}
    settings = SamplerSettings(**{**chosen, "population": int(chosen["population"]), "seed": int(chosen["seed"])})
    faults = _faults({"evals": evals, **asdict(settings)})
    raise_all("The search's settings cannot be used:", faults, "They are options, and the NNCF configuration's own otherwise.")
    return evals, settings


def _faults(values: Mapping[str, float]) -> list[str]:
    least = {"evals": 3, "population": 2}
    faults = [f"{name}: at least {low}, found {values[name]}" for name, low in least.items() if values[name] < low]
    probabilities = ("crossover_prob", "mutation_prob")
    return faults + [f"{name}: between 0 and 1, found {values[name]}" for name in probabilities if not 0 <= values[name] <= 1]
