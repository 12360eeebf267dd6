"""Parts of a decoder layer: linear layers, elastic widths, removable blocks. From configurations alone: no torch."""

from dataclasses import dataclass
from typing import Any, ClassVar

BLOCK_KINDS = ("attention", "mlp", "layer", "mamba")
HIDDEN_STATE = "its output is the hidden state, which every layer shares"  # why a width cannot be elastic
Ranges = tuple[tuple[int, int], ...]  # of an axis: (start, stop), in order, none touching the next


@dataclass(frozen=True)
class Linear:
    """A linear layer, `weight` [out_features, in_features].

    Attributes:
        name: Module path, relative to the decoder layer or to the model.
        out_features: Rows of its weight.
        in_features: Columns of its weight.
        bias: Whether it has a bias.
        blocks: Sizes of the parts of a fused layer's output, in order; empty for one part. An elastic width keeps the first
            share of each.
        four_bits: Whether a format with four bits applies; otherwise its weight has the format of the embedding.
        used: Whether the model computes with it; otherwise checkpoints have it, but IRs do not.
    """

    name: str
    out_features: int
    in_features: int
    bias: bool = False
    blocks: tuple[int, ...] = ()
    four_bits: bool = True
    used: bool = True

    @property
    def weights(self) -> int:
        """Number of weights, biases not counted."""
        return self.out_features * self.in_features

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of its parameters by name."""
        shapes: dict[str, tuple[int, ...]] = {f"{self.name}.weight": (self.out_features, self.in_features)}
        if self.bias:
            shapes[f"{self.name}.bias"] = (self.out_features,)
        return shapes

    def part(self, out_width: int, in_width: int, full: int, rank: int | None) -> "LinearPart":
        """The part that elastic widths keep: the first `width / full` of each fused part of an axis."""
        rows = _shares(self.blocks or (self.out_features,), out_width, full)
        return LinearPart(rows, _shares((self.in_features,), in_width, full), rank)


def _shares(blocks: tuple[int, ...], width: int, full: int) -> Ranges:
    if width == full:
        return ((0, sum(blocks)),)
    starts = [sum(blocks[:index]) for index in range(len(blocks))]
    return tuple((start, start + size * width // full) for start, size in zip(starts, blocks, strict=True))


@dataclass(frozen=True)
class LinearPart:
    """The active part of one linear layer: ranges of rows and columns, and its first `rank` ranks (None: the adapter's own)."""

    rows: Ranges
    columns: Ranges
    rank: int | None = None

    @classmethod
    def first(cls, out_features: int, in_features: int, rank: int | None = None) -> "LinearPart":
        """The first rows and columns: the part of a layer that is not fused."""
        return cls(((0, out_features),), ((0, in_features),), rank)

    @property
    def out_features(self) -> int:
        """Active rows."""
        return sum(stop - start for start, stop in self.rows)

    @property
    def in_features(self) -> int:
        """Active columns."""
        return sum(stop - start for start, stop in self.columns)


NOTHING = LinearPart((), (), 0)  # of a layer in a removed block


@dataclass(frozen=True)
class WidthRule:
    """An elastic output width inside a decoder layer: of an MLP, unless a subclass overrides it.

    Attributes:
        producers: Layers whose output is narrowed, to one shared width.
        consumer: The layer that loses the same input columns, in its base weight and its lora_A.
        config_field: The field of the model's configuration that holds the width.
    """

    producers: tuple[str, ...]
    consumer: str
    config_field: str
    in_own_field: ClassVar[bool] = True  # whether a width that all layers share is written in the model's own field

    def full(self, config: Any) -> int:
        """The full width."""
        return int(getattr(config, self.config_field))

    def unit(self, config: Any) -> int:
        """Number of channels that stay together; every width is a multiple."""
        return 1

    def fields(self, config: Any, width: int) -> dict[str, int]:
        """The fields of a layer's configuration that a width changes."""
        return {self.config_field: width}


@dataclass(frozen=True)
class HeadRule(WidthRule):
    """Elastic heads: query heads with the key-value head that they share, so that their ratio stays.

    The width counts output channels of the query projection; keys and values keep the same share of theirs. It is not written
    in the model's own field even where all layers share it, since other fields are derived from that, such as a head's
    channels.
    """

    in_own_field = False

    def full(self, config: Any) -> int:
        """Output channels of all query heads."""
        return int(config.num_attention_heads) * head_dim(config)

    def unit(self, config: Any) -> int:
        """Channels of the query heads that share a key-value head."""
        return self.full(config) // key_value_heads(config)

    def fields(self, config: Any, width: int) -> dict[str, int]:
        """Numbers of heads."""
        kept = {"num_attention_heads": width // head_dim(config)}
        if hasattr(config, "num_key_value_heads"):
            kept["num_key_value_heads"] = width // self.unit(config)
        return kept


def head_dim(config: Any) -> int:
    """Channels of an attention head."""
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def key_value_heads(config: Any) -> int:
    """Number of key-value heads."""
    return int(getattr(config, "num_key_value_heads", None) or config.num_attention_heads)


@dataclass(frozen=True)
class Block:
    """A part of a decoder layer that can be removed, so that only the residual passes; or the whole layer: its input passes.

    Attributes:
        kind: A name of `BLOCK_KINDS`, as on the command line.
        module: Module path, relative to the decoder layer; "" for the whole layer.
        norms: Norms before and after it that serve it alone; paths relative to the decoder layer.
        results: Number of values it returns, the output first; 0 if it returns the output itself.
        cached: Whether a token adds keys and values to a cache here.
        state: Whether it has a state of constant size instead.
        adds_residual: Whether its second input is the residual, which its output includes; otherwise the layer adds it.
        refused: Why it cannot be removed in this layer; "" where it can.
    """

    kind: str
    module: str
    norms: tuple[str, ...]
    results: int = 0
    cached: bool = False
    state: bool = False
    adds_residual: bool = False
    refused: str = ""

    @property
    def whole(self) -> bool:
        """Whether it is a whole layer. A materialized model has none in its place: the others are renumbered."""
        return not self.module

    @property
    def needed(self) -> bool:
        """Whether one block of its kind has to stay in the model."""
        return self.cached or self.whole


@dataclass(frozen=True)
class GroupKind:
    """A kind of elastic group of generated search spaces, with one group per decoder layer.

    Attributes:
        rule: The elastic width; None for an elastic rank.
        layers: Layers whose adapters share one elastic rank; empty for a width.
    """

    rule: WidthRule | None = None
    layers: tuple[str, ...] = ()
