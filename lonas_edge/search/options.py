"""The options of a search."""

from collections.abc import Iterator
from dataclasses import field

from pydantic.dataclasses import dataclass

from lonas_edge.options import LARGEST_SEED, Options, UserPath, option
from lonas_edge.search.cost import COSTS, QUALITIES, CostSettings

LEAST_EVALS = 3  # maximal, heuristic, minimal


@dataclass(frozen=True)
class SearchOptions(Options):
    """What to search. `cost_settings` says how the cost is counted or measured."""

    data: UserPath = option(
        exists=True, metavar="FILE", help="Prompts with answers, in the format of `train`; best unseen in training."
    )
    output: UserPath = option(
        metavar="DIR", help="Directory for search.json, plots and sub-networks; continues a search there."
    )
    quality: str = option(
        "kl", choices=tuple(QUALITIES), help="KL divergence from the maximal network, or loss of the answers."
    )
    cost: str | None = option(
        None,
        choices=tuple(COSTS),
        help="Latency per output token, to first token, of a whole answer or of an encoder; MACs, weights or bytes.",
        unset="tpot; latency for an encoder",
    )
    evals: int = option(80, minimum=LEAST_EVALS, help="Number of networks to evaluate.")
    picks: tuple[str, ...] = option(
        (),
        flag="pick",
        metavar="EXPRESSION",
        repeat=True,
        help="Save the best network under a bound: macs=1.43e12, tpot=0.85x (of the unpruned network), kl=0.05.",
    )
    num_samples: int = option(64, panel="Data", minimum=1, help="Number of prompts from --data.")
    storage: str | None = option(
        None,
        panel="Advanced",
        metavar="URL",
        help="Database that several workers share: postgresql+psycopg://…, sqlite:///FILE; each worker has its own --output.",
        unset="a file in --output",
    )
    study: str | None = option(None, panel="Advanced", help="Name of the study in --storage.")
    max_length: int | None = option(
        None, hidden=True, minimum=2, help="Tokens of the longest example; longer ones are dropped.", unset="4096"
    )
    seed: int = option(0, hidden=True, minimum=0, maximum=LARGEST_SEED, help="Seed of the sampler and the choice of prompts.")
    overwrite: bool = option(False, panel="Output", help="Replace an earlier search in --output.")
    cost_settings: CostSettings = field(default_factory=CostSettings)
    template: str | None = None  # name of the template; that of the adapter's training if None

    def conflicts(self) -> Iterator[str]:
        yield from super().conflicts()
        if self.study and not self.storage:
            yield "--study needs --storage"
        if self.overwrite and self.storage:
            yield "--overwrite cannot be combined with --storage: start another study with --study NAME"
