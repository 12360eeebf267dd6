"""What a model family has to tell: its linear layers, its other weights, and what consumes an elastic width."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Linear:
    """A linear layer, `weight` [out_features, in_features], at module path `name`."""

    name: str
    out_features: int
    in_features: int
    bias: bool = False

    @property
    def weights(self) -> int:
        """Number of weights, biases not counted."""
        return self.out_features * self.in_features


@dataclass(frozen=True)
class WidthRule:
    """An elastic output width inside a decoder layer.

    Attributes:
        producers: Layers whose output is narrowed; they must share one width, since their outputs meet elementwise.
        consumer: The layer that loses the same input columns, in its base weight and in its own lora_A.
        config_field: The field of the model's configuration that holds the width.
    """

    producers: tuple[str, ...]
    consumer: str
    config_field: str


@dataclass(frozen=True)
class Family:
    """One table per model family. Paths are those of the Hugging Face modules.

    Attributes:
        class_names: For each `model_type`, the classes an NNCF node name spells: the model with its head, its body, a
            decoder layer, attention, MLP.
        layers: Path of the list of decoder layers.
        embedding: Path of the token embedding.
        head: Path of the language-model head.
        width_rules: The output widths that can be elastic.
        refused_widths: Layers whose output width cannot be, with the reason.
        rank_groups: Layers whose adapters share one elastic rank in generated search spaces, in the published order:
            groups before the width groups, then groups after them.
        linears: Linear layers of one decoder layer, paths relative to it, from a model configuration.
        norms: Sizes of the one-dimensional weights of one decoder layer, by relative name.
        default_targets: Last parts of the names of the layers that get an adapter where the user names none.
    """

    class_names: dict[str, dict[str, str]]
    layers: str
    embedding: str
    head: str
    final_norm: str
    width_rules: tuple[WidthRule, ...]
    refused_widths: dict[str, str]
    rank_groups: tuple[tuple[tuple[str, ...], ...], tuple[tuple[str, ...], ...]]
    linears: Callable[[Any], list[Linear]]
    norms: Callable[[Any], dict[str, int]]
    default_targets: tuple[str, ...]

    @property
    def model_types(self) -> tuple[str, ...]:
        """The `model_type` values of the configurations this family serves."""
        return tuple(self.class_names)

    def layer(self, index: int) -> str:
        """Path of decoder layer `index`."""
        return f"{self.layers}.{index}"
