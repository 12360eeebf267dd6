"""The damage table: what each searched group costs alone at each width, everything else maximal, in nats of KL.

A group that acts in decoder layer l changes nothing before it. So the layers are walked once, the input of the current one is
kept for all prompts, and each width is evaluated from there to the end: half of the work of whole evaluations, and the memory
of one layer's inputs. The sums over groups predict whole networks (not narrow ones), which is what a knapsack needs.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lonas_edge.space.search_space import SearchSpace

if TYPE_CHECKING:
    import torch

    from lonas_edge.network.super_network import Batch, SuperNetwork
    from lonas_edge.space.architecture import Architecture


@dataclass(frozen=True)
class DamageTable:
    """KL of each group alone, one row a group of the search space, one figure a width, the widest first.

    Rows of groups that are not searched are empty: those are at their widest, which does no damage.
    """

    rows: tuple[tuple[float, ...], ...]

    def of(self, group: int, level: int) -> float:
        """The damage of a group at its width number `level`."""
        return self.rows[group][level] if self.rows[group] else 0.0

    def predicted(self, levels: Sequence[int]) -> float:
        """The damage of a whole network: the sum over its groups.

        Args:
            levels: For each group the place of its width.

        Returns:
            The sum, in nats.
        """
        return sum(self.of(group, level) for group, level in enumerate(levels))


def evaluations(space: SearchSpace, searched: Sequence[int]) -> int:
    """How many widths the table evaluates."""
    return sum(len(space.groups[index].widths) - 1 for index in searched)


def first_layer(architecture: "Architecture", modules: Sequence[str]) -> int:
    """The first decoder layer that a group's modules are in; the first of all where one is outside."""
    return min(int(layer.rpartition(".")[2] or 0) for layer, _ in map(architecture.split, modules))


def measure_damage(
    network: "SuperNetwork",
    batches: "Sequence[Batch]",
    reference: "Sequence[torch.Tensor]",
    searched: Sequence[int],
    progress: Callable[[float], None] = lambda _done: None,
) -> DamageTable:
    """Evaluate each searched group alone at each of its widths.

    Args:
        network: The super-network.
        batches: Prompts with the positions that count.
        reference: As of `SuperNetwork.reference`.
        searched: Indices of the groups.
        progress: Called with the share that is done.

    Returns:
        The table; each figure is that of `SuperNetwork.kl` for the same widths.
    """
    elasticity = network.elasticity
    groups, architecture = elasticity.space.groups, elasticity.architecture
    places = {index: first_layer(architecture, groups[index].modules) for index in searched}
    rows: dict[int, tuple[float, ...]] = {}
    walk = _Walk(network, batches, reference)
    layers = int(architecture.config.num_hidden_layers)
    work = {index: (layers - places[index]) * (len(groups[index].widths) - 1) for index in searched}
    done, total = 0, sum(work.values()) or 1
    for layer in range(layers):
        for index in (index for index in searched if places[index] == layer):
            narrower = groups[index].widths[1:]
            rows[index] = (0.0, *(walk.kl(_with(elasticity.maximal, index, width)) for width in narrower))
            done += work[index]
            progress(done / total)
        network.activate(elasticity.maximal)
        walk.step()
    return DamageTable(tuple(rows.get(index, ()) for index in range(len(groups))))


def _with(widths: Sequence[int], group: int, width: int) -> tuple[int, ...]:
    return (*widths[:group], width, *widths[group + 1 :])


class _Walk:
    """The decoder layers, walked from the first to the last; `_inputs` are those of the current one, a tensor a batch."""

    def __init__(self, network: "SuperNetwork", batches: "Sequence[Batch]", reference: "Sequence[torch.Tensor]"):
        self._network, self._batches, self._reference = network, batches, reference
        self._layers: Sequence[Any] = network.base.get_submodule(network.family.layers)
        self._current = 0
        self._inputs: list[torch.Tensor] | None = None  # None: what the embedding gives

    def kl(self, widths: Sequence[int]) -> float:
        """Mean KL of a sub-network that is maximal before the current layer."""
        from lonas_edge.data.encoding import IGNORED

        self._network.activate(widths)
        total, positions = 0.0, 0
        for place, batch in enumerate(self._batches):
            hidden = self._run(place, range(self._current, len(self._layers)))[:, batch["logits_to_keep"]]
            counted = hidden[batch["labels"] != IGNORED]
            total += self._divergence(place, counted)
            positions += len(counted)
        return total / positions

    def step(self) -> None:
        """Go on to the next layer."""
        seen: list[torch.Tensor] = []
        handle = self._layers[self._current].register_forward_hook(lambda _layer, _inputs, output: seen.append(_first(output)))
        try:
            for place in range(len(self._batches)):
                self._run(place, range(self._current, self._current + 1))
        finally:
            handle.remove()
        self._inputs = seen
        self._current += 1

    def _run(self, place: int, running: range) -> "torch.Tensor":
        """What the head is given when only `running` of the layers run, the first of them on the kept input."""
        import torch

        batch = self._batches[place]
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        self._network.model.eval()
        with torch.inference_mode(), _only(self._layers, running, self._inputs[place] if self._inputs else None):
            hidden: torch.Tensor = self._network.family.hidden(self._network.base, **inputs)
        return hidden

    def _divergence(self, place: int, hidden: "torch.Tensor") -> float:
        import torch

        with torch.inference_mode():
            return self._network.divergence(self._reference[place], hidden).item()


@contextmanager
def _only(layers: Sequence[Any], running: range, given: "torch.Tensor | None") -> Iterator[None]:
    """Layers outside `running` hand on what they are given; the first inside is given `given` instead, where there is one."""
    passed = [layer for index, layer in enumerate(layers) if index not in running]
    handle = layers[running.start].register_forward_pre_hook(_replacing(given), with_kwargs=True) if given is not None else None
    kept = [vars(layer).get("forward") for layer in passed]
    for layer in passed:
        layer.forward = _pass_by
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


def _pass_by(hidden_states: Any, *_args: Any, **_kwargs: Any) -> Any:
    return hidden_states


def _replacing(given: Any) -> Callable[..., Any]:
    def hook(_layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return ((given, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": given})

    return hook


def _first(output: Any) -> Any:
    """The hidden states of what a layer gives: alone, or the first of several things."""
    return output[0] if isinstance(output, tuple) else output
