"""Hidden states of a live network whose first layers do not run again.

A change inside one layer leaves everything before it as it is, so only the layers from there on are computed. A walk goes over
the decoder layers, and stores the inputs of the current one; `Prefixes` stores those of all layers. From `Family.last_start`
on, these are always that layer's.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from lonas_edge.data.task import Batch
from lonas_edge.network.modeling import body_inputs
from lonas_edge.network.super_network import SuperNetwork
from lonas_edge.space.elasticity import Elasticity

_MOST_BYTES = 2**30  # of stored inputs


class Walk:
    """A walk over the decoder layers; `current` is the index of the next layer, `step` runs it."""

    def __init__(self, network: SuperNetwork, batches: Sequence[Batch]):
        """Start at the first layer. The caller decides which sub-network of `network` is active."""
        self._network, self._batches = network, batches
        self._layers: Sequence[Any] = network.base.get_submodule(network.family.layers)
        self._inputs: list[torch.Tensor] | None = None  # None: the embedding's output
        self._last_start = network.family.last_start(network.base.config)
        self.current = 0

    def __len__(self) -> int:
        """Number of layers."""
        return len(self._layers)

    def hidden(self, index: int) -> torch.Tensor:
        """The head's input [prompts, tokens, hidden] for a batch, computed from the current layer on."""
        return self._run(index, range(min(self.current, self._last_start), len(self._layers)))

    def step(self) -> None:
        """Run the current layer on every batch and go on to the next."""
        self.current += 1
        if self.current > self._last_start:
            return
        outputs: list[torch.Tensor] = []
        layer = self._layers[self.current - 1]
        handle = layer.register_forward_hook(
            lambda _layer, _inputs, output: outputs.append(output[0] if isinstance(output, tuple) else output)
        )
        try:
            for index in range(len(self._batches)):
                self._run(index, range(self.current - 1, self.current))
        finally:
            handle.remove()
        self._inputs = outputs

    def _run(self, index: int, running: range) -> torch.Tensor:
        """The head's input if only the layers in `running` run, the first of them on its stored input."""
        batch = self._batches[index]
        self._network.model.eval()
        stored, results = self._inputs[index] if self._inputs else None, self._network.family.layer_results
        with torch.inference_mode(), _run_only(self._layers, running, stored, results):
            hidden: torch.Tensor = self._network.family.hidden(self._network.base, **body_inputs(batch))
        return hidden


class Prefixes:
    """Computes hidden states of similar networks. Layers before the first difference from a stored one do not run again.

    The inputs of all layers of two networks are stored. Networks differ inside the layers alone.
    """

    def __init__(self, network: SuperNetwork, batches: Sequence[Batch]):
        """Store nothing yet."""
        self._network, self._batches = network, batches
        self._layers: Sequence[Any] = network.base.get_submodule(network.family.layers)
        self._groups = [first_layer(network.elasticity, index) for index in range(len(network.elasticity.space.groups))]
        self._stored: list[tuple[tuple[int, ...], list[dict[int, torch.Tensor]]]] = []  # widths; by batch, inputs by layer

    @staticmethod
    def fit(network: SuperNetwork, batches: Sequence[Batch]) -> bool:
        """Whether what is stored takes little memory."""
        tokens, layers = sum(batch["input_ids"].numel() for batch in batches), network.base.get_submodule(network.family.layers)
        channels = network.elasticity.architecture.config.hidden_size
        return bool(2 * len(layers) * tokens * channels * network.base.dtype.itemsize <= _MOST_BYTES)

    def hidden(self, widths: Sequence[int]) -> Iterator[torch.Tensor]:
        """The head's input [prompts, tokens, hidden] of a network, by batch."""
        chosen, network, count = tuple(widths), self._network, len(self._layers)
        shared = [self._shared(chosen, stored) for stored, _ in self._stored]
        start = max(shared, default=0)
        parent = self._stored[shared.index(start)] if shared else None
        self._stored = []
        network.activate(chosen)
        network.model.eval()
        inputs: list[dict[int, torch.Tensor]] = []
        for index, batch in enumerate(self._batches):
            known = {layer: each for layer, each in parent[1][index].items() if layer <= start} if parent else {}
            inputs.append(known)
            run = _run_only(self._layers, range(start, count), known.get(start), network.family.layer_results)
            with torch.inference_mode(), _store(self._layers, known), run:
                hidden = network.family.hidden(network.base, **body_inputs(batch))
            yield hidden
        self._stored = [*([parent] if parent else []), (chosen, inputs)]

    def _shared(self, first: Sequence[int], second: Sequence[int]) -> int:
        """The layer up to which two networks have the same inputs."""
        groups = zip(self._groups, first, second, strict=True)
        differing = min((layer for layer, width, another in groups if width != another), default=len(self._layers) - 1)
        return min(differing, self._network.family.last_start(self._network.base.config))


@contextmanager
def _store(layers: Sequence[Any], inputs: dict[int, torch.Tensor]) -> Iterator[None]:
    """Store the input of every layer that runs."""

    def hook(number: int) -> Callable[..., None]:
        def keep(_layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            inputs.setdefault(number, args[0] if args else kwargs["hidden_states"])

        return keep

    handles = [layer.register_forward_pre_hook(hook(number), with_kwargs=True) for number, layer in enumerate(layers)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def first_layer(elasticity: Elasticity, group: int) -> int:
    """The first decoder layer that a group changes; 0 for modules outside the layers."""
    modules = elasticity.space.groups[group].modules
    layers = [elasticity.architecture.split(module)[0] for module in modules]
    return min(int(layer.rpartition(".")[2] or 0) for layer in layers)


@contextmanager
def _run_only(layers: Sequence[Any], running: range, stored: torch.Tensor | None, results: int) -> Iterator[None]:
    """Skip the layers outside `running`, and replace the input of the first inside with `stored`, if any."""
    passed = [layer for index, layer in enumerate(layers) if index not in running]
    handle = None
    if stored is not None:
        handle = layers[running.start].register_forward_pre_hook(_replace_input(stored), with_kwargs=True)
    kept = [vars(layer).get("forward") for layer in passed]
    for layer in passed:
        layer.forward = _make_skip(results)
    try:
        yield
    finally:
        if handle:
            handle.remove()
        for layer, forward in zip(passed, kept, strict=True):
            if forward is None:
                del layer.forward
            else:
                layer.forward = forward


def _make_skip(results: int) -> Callable[..., Any]:
    """A layer's `forward` that returns its input as the first of so many results; see `Family.layer_results`."""

    def forward(hidden_states: Any, *_args: Any, **_kwargs: Any) -> Any:
        return (hidden_states, *[None] * (results - 1)) if results else hidden_states

    return forward


def _replace_input(stored: Any) -> Callable[..., Any]:
    def hook(_layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return ((stored, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": stored})

    return hook
