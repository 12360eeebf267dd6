"""What a search will do: options resolved and checked; no weights are read."""

from dataclasses import asdict, dataclass
from functools import cache, cached_property
from typing import Any

from lonas_edge.data.task import MAX_LENGTH, Task
from lonas_edge.errors import LonasEdgeError, raise_all
from lonas_edge.families import CLASSIFICATION
from lonas_edge.files import sha256
from lonas_edge.network.location import fingerprint
from lonas_edge.network.source import Source
from lonas_edge.search.cost import (
    COSTS,
    COUNTED,
    QUALITIES,
    CostFunction,
    check_cost,
    context_errors,
    counted_cost,
    default_cost,
)
from lonas_edge.search.dimensions import Dimensions, find_dimensions
from lonas_edge.search.options import SearchOptions
from lonas_edge.search.picks import Pick, check_picks, parse_picks

REFINED = 0.25  # share of the evaluations, at the end, in which the refinement comes before the sampler
REFINED_PICKS = 0.5  # the same where picks bound a cost


@dataclass(frozen=True)
class SearchPlan:
    """A checked search before it starts."""

    source: Source  # base model, adapter and search space
    options: SearchOptions
    cost: str
    dimensions: Dimensions  # the searched groups
    data: Task  # the held-out data
    picks: tuple[Pick, ...]

    @property
    def timed(self) -> bool:
        """Whether the cost is a latency."""
        return COSTS[self.cost].timed

    @property
    def greedy(self) -> bool:
        """Whether networks are proposed by a greedy removal: of blocks alone, and of models without elastic training."""
        return self.dimensions.only_blocks or self.source.ordered_by_space

    @property
    def only_greedy(self) -> bool:
        """Whether the search ends with the greedy removal, when the bounds of its picks are met."""
        return self.greedy and bool(self.picks)

    @property
    def last_first(self) -> bool:
        """Whether the last layers are removed, as of classifiers that are decoders: docs/benchmarks/embeddings.md."""
        classifies = self.source.architecture.family.kind is CLASSIFICATION
        return classifies and any(len(group.modules) > 1 for group in self.source.space.groups if group.kind == "block")

    @property
    def refine_from(self) -> int:
        """Evaluations after which proposals come before the sampler."""
        if self.greedy:
            return 0
        bounded = any(pick.measure not in QUALITIES for pick in self.picks)
        return round(self.options.evals * (1 - (REFINED_PICKS if bounded else REFINED)))

    @cached_property
    def counted_costs(self) -> dict[str, CostFunction]:
        """Costs that need no measurement, by name; the figures of each network are computed once."""
        weight_format = self.options.cost_settings.weight_format
        return {name: cache(counted_cost(name, self.source, weight_format)) for name in COUNTED}

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What the evaluations depend on, as JSON: searches with the same identity can share a study."""
        options, source, settings = self.options, self.source, self.options.cost_settings
        return {
            "base": sha256(source.base.folder / "config.json"),
            "super_adapter": fingerprint(source.adapter.folder) if source.adapter else None,
            "search_space": source.space.hash,
            "data": sha256(options.data),
            "prompts": options.num_samples,
            "template": self.data.description,
            "quality": options.quality,
            "cost": self.cost,
            "device": [settings.device, settings.prompt_len, settings.new_tokens] if self.timed else None,
            "weight_format": settings.weight_format,
            "seed": options.seed,
            **({"max_length": options.max_length} if options.max_length not in (None, MAX_LENGTH) else {}),
            "weights": fingerprint(source.base.folder),
            **({"pooling": asdict(source.pooling)} if source.pooling else {}),
            **({"channel_order": source.order.sha256} if source.ordered_by_space else {}),
        }


def make_plan(source: Source, options: SearchOptions) -> SearchPlan:
    """Resolve and check the options."""
    if not source.space.groups:
        raise source.without_space("there is nothing to search")
    if recovered := source.own:
        raise LonasEdgeError(
            f"{source.folder}: this adapter has only its {recovered.name} sub-network (`train --from`). "
            "Search the super-adapter that it was trained from."
        )
    kind = source.architecture.family.kind
    cost = options.cost or default_cost(kind)
    check_cost(cost, kind)
    picks = parse_picks(options.picks, list(dict.fromkeys((options.quality, cost, *COUNTED))))
    dimensions = find_dimensions(source)
    if not dimensions.searched:
        raise LonasEdgeError(
            "The search space has only ranks, or single widths: none of them makes the merged model smaller. "
            "Create a space with widths, heads or removable blocks: lonas-edge space --help"
        )
    data = source.open_data(options.data, options.template, max_length=options.max_length)
    data.check_count(options.num_samples)
    if options.quality == "loss" and data.distilled:
        raise LonasEdgeError(f"{options.data}: --quality loss needs labels. Use kl, the distance from the unpruned network.")
    plan = SearchPlan(source, options, cost, dimensions, data, tuple(picks))
    if plan.timed:
        errors = context_errors(options.cost_settings, source.architecture.context)
        raise_all(f"{source.base.folder}: the latency cannot be measured:", errors)
    check_picks(plan.picks, dimensions.named(), plan.counted_costs)
    return plan
