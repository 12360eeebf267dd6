"""A loaded super-network: sub-networks are activated and scored in it without loading anything again."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from peft import PeftModel
from torch import nn

from lonas_edge.data.registry import task_of
from lonas_edge.data.task import Batch, Task
from lonas_edge.files import read_by
from lonas_edge.network.adapters import load_adapter
from lonas_edge.network.channel_order import by_importance
from lonas_edge.network.checkpoints import open_base
from lonas_edge.network.depth import ElasticBlock, make_block_elastic
from lonas_edge.network.elastic import ElasticLinear, ElasticLoraLinear, activate, make_elastic
from lonas_edge.network.location import fingerprint
from lonas_edge.network.modeling import body_inputs, empty_model, lazy_zeros, load_model, set_parameter
from lonas_edge.network.source import Source, check_base
from lonas_edge.network.tokenizer import require_tokenizer
from lonas_edge.space.elasticity import Elasticity, bind
from lonas_edge.space.search_space import EXTENSION_VERSION, parse_search_space
from lonas_edge.space.subnetwork import Subnetwork

CALIBRATION = 64  # examples on which the importance of channels is measured
HEAD_POSITIONS = 256  # whose logits are in memory at once: 50 MB with a vocabulary of 49,152
Score = Callable[[torch.Tensor, torch.Tensor, int], torch.Tensor]  # of hidden states, labels, and the batch's number


class SuperNetwork:
    """A live model with elastic layers, in which sub-networks are activated and scored.

    The model stays an ordinary `PeftModel` (or a plain Hugging Face model): it saves, loads and trains as before.
    """

    def __init__(self, model: Any, elasticity: Elasticity, task: Task | None = None):
        """Make the layers and blocks of `model` elastic, all active at first; `task` has the loss, the model's when None."""
        self.model = model
        self.elasticity = elasticity
        self.family = elasticity.architecture.family
        self.task = task or task_of(elasticity.architecture)
        elastic = {*elasticity.out_group, *elasticity.in_group, *elasticity.rank_group}
        self._layers: dict[str, ElasticLinear | ElasticLoraLinear] = {
            name: make_elastic(name, self.base.get_submodule(name)) for name in sorted(elastic)
        }
        blocks = elasticity.architecture.blocks
        self._blocks: dict[str, ElasticBlock] = {
            name: make_block_elastic(self.base.get_submodule(name), blocks[name]) for name in elasticity.block_group
        }

    @property
    def base(self) -> Any:
        """The Hugging Face model, with the layers of PEFT in it."""
        return self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model

    def activate(self, chosen: Sequence[int]) -> None:
        """Activate the sub-network of these widths, in group order."""
        subnetwork = Subnetwork(self.elasticity, tuple(chosen))
        for name, layer in self._layers.items():
            activate(layer, subnetwork.linears[name])
        for name, fields in subnetwork.attention_fields().items():
            self.family.narrow_attention(self.base.get_submodule(name), fields)
        for name, block in self._blocks.items():
            block.removed = name in subnetwork.removed

    def inactive_parts(self, chosen: Sequence[int]) -> Iterator[tuple[nn.Parameter, tuple[slice, ...]]]:
        """Yield the inactive parts of the adapters' parameters: a parameter and an index; they do not overlap."""
        widths = Subnetwork(self.elasticity, tuple(chosen)).linears
        for name, layer in self._layers.items():
            if isinstance(layer, ElasticLoraLinear):
                yield from layer.inactive(widths[name])

    def reference(self, batches: Sequence[Batch]) -> list[torch.Tensor]:
        """The maximal network's hidden states before the head, [positions, hidden] per batch, for comparisons."""
        return [hidden for hidden, _ in self._states(self.elasticity.maximal, batches)]

    def kl(
        self,
        chosen: Iterable[Sequence[int]],
        batches: Sequence[Batch],
        reference: Sequence[torch.Tensor] | None = None,
    ) -> list[float]:
        """Mean distance of sub-networks from the maximal network.

        It is the KL in nats per position; the squared distance of a regression; the cosine distance of embeddings.
        """
        kept = self.reference(batches) if reference is None else reference
        return self._means(chosen, batches, lambda hidden, _, batch: self.distance(kept[batch], hidden))

    def distance(self, reference: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        """Distance of logits of hidden states from those of a reference, both [positions, hidden], summed."""
        parts = zip(torch.split(reference, HEAD_POSITIONS), torch.split(hidden, HEAD_POSITIONS), strict=True)
        return sum((self.task.distance(self._logits(p), self._logits(q)) for p, q in parts), torch.zeros(()))

    def distances(self, chosen: Sequence[int], batches: Sequence[Batch], logits: Sequence[torch.Tensor]) -> float:
        """Mean distance of a sub-network from another model's logits [answers, outputs], per batch."""
        [mean] = self._means(
            [chosen], batches, lambda hidden, _, batch: self.task.distance(logits[batch], self._logits(hidden))
        )
        return mean

    def losses(self, chosen: Iterable[Sequence[int]], batches: Sequence[Batch]) -> list[float]:
        """Mean loss of sub-networks on the labels of batches: cross-entropy in nats; squared error for a regression."""

        def score(hidden: torch.Tensor, labels: torch.Tensor, _batch: int) -> torch.Tensor:
            parts = zip(torch.split(hidden, HEAD_POSITIONS), torch.split(labels, HEAD_POSITIONS), strict=True)
            return sum((self.task.loss(self._logits(part), learned) for part, learned in parts), torch.zeros(()))

        return self._means(chosen, batches, score)

    def _means(self, chosen: Iterable[Sequence[int]], batches: Sequence[Batch], score: Score) -> list[float]:
        means = []
        for widths in chosen:
            total, positions = 0.0, 0
            with torch.inference_mode():
                for batch, (hidden, labels) in enumerate(self._states(widths, batches)):
                    total += score(hidden, labels, batch).item()
                    positions += len(labels)
            means.append(total / positions)
        return means

    def _states(self, chosen: Sequence[int], batches: Sequence[Batch]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield the hidden states before a sub-network's head [positions, hidden] at the positions that count, and labels."""
        self.activate(chosen)
        self.model.eval()
        for batch in batches:
            with torch.inference_mode():
                hidden = self.family.hidden(self.base, **body_inputs(batch))
            yield self.task.select(hidden, batch), self.task.labels(batch["labels"])

    def _logits(self, hidden: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.family.logits(self.base, hidden)
        return logits


def load_super_network(source: Source, dtype: torch.dtype = torch.float32) -> SuperNetwork:
    """Load a super-adapter (fp32) on its base (`dtype`), on the CPU, in eval mode, in the super-network's channel order."""
    # transformers and PEFT report mismatches less clearly
    stored = open_base(source.base.folder, source.architecture, source.replaced())
    if source.training:
        check_base(source.training, fingerprint(source.base.folder), source.base.folder)
    if source.adapter and source.adapter_config:
        load_adapter(source.adapter.folder, source.adapter_config, source.architecture, stored)
    new_head = source.architecture.family.kind.new_head  # the adapter has it
    model: Any = load_model(source.architecture, source.base.folder, dtype, new_head)
    if source.adapter:
        model = PeftModel.from_pretrained(model, str(source.adapter.folder))
    source.order.apply_to_model(model)
    return SuperNetwork(model.eval(), source.elasticity, task_of(source.architecture, source.pooling))


def order_channels(source: Source, content: dict[str, Any], data: Task, where: str) -> None:
    """Add the order of channels by importance for examples of `data` to a search space.

    Importance is that in the merged model, in fp32: the order must not depend on what is faster here. `source` has no search
    space yet.
    """
    elasticity = bind(source.architecture, parse_search_space(content, where), where)
    batches = data.typical(require_tokenizer(source.base.folder, "the order of channels"), CALIBRATION)
    model = load_super_network(source).model
    order = by_importance(model.merge_and_unload() if source.adapter else model, elasticity, batches)
    section = content["bootstrapNAS"]["training"]["elasticity"].setdefault("lonas_edge", {"version": EXTENSION_VERSION})
    section["channel_order"] = {name: " ".join(map(str, channels.tolist())) for name, channels in order.columns.items()}


def empty_super_network(source: Source) -> SuperNetwork:
    """A super-adapter on a base whose weights are still missing, to be streamed; see `in_adapter`."""
    network: Any = empty_model(source.base_config(), str(source.base.folder))
    if source.adapter:
        # not on the meta device: PEFT 0.21 moves the adapter it loads to the device of the base
        for name, parameter in list(network.named_parameters()):
            set_parameter(network, name, lazy_zeros(parameter.shape))
        network.tie_weights()
        with read_by("peft", source.adapter.folder / "adapter_config.json"):
            network = PeftModel.from_pretrained(network, str(source.adapter.folder), autocast_adapter_dtype=False)
        source.order.apply_to_model(network, in_adapter)
    return SuperNetwork(network, source.elasticity)


def in_adapter(name: str) -> bool:
    """Whether a parameter of a PEFT model belongs to the adapter."""
    return ".lora_" in name or ".modules_to_save." in name


def base_name(name: str) -> str:
    """A parameter's name in the base, from that in a PEFT model."""
    return name.replace(".base_layer.", ".").replace(".original_module.", ".")
