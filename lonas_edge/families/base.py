"""What a model family is: its tensors, what an elastic dimension does to them, its configuration, its task.

A family is behaviour. Everything that knows a layer's name, what shrinks with what, where embedding and head are, or which
field of a configuration holds a width is asked here, from configurations alone: no torch. Paths are those of the Hugging Face
modules.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from lonas_edge.families.tasks import CAUSAL_LM, Task

BLOCK_KINDS = ("attention", "mlp")
Part = tuple[tuple[int, int], ...]  # of an axis: ranges (start, stop), in order, none touching the next


@dataclass(frozen=True)
class Linear:
    """A linear layer, `weight` [out_features, in_features], at module path `name`.

    Attributes:
        name: Its path, from the decoder layer or from the model.
        out_features: Rows of its weight.
        in_features: Columns of its weight.
        bias: Whether it has a bias.
        blocks: Sizes of the parts that a fused layer's output is made of, in order; none where it is one part. An elastic width
            keeps the first share of each.
    """

    name: str
    out_features: int
    in_features: int
    bias: bool = False
    blocks: tuple[int, ...] = ()

    @property
    def weights(self) -> int:
        """Number of weights, biases not counted."""
        return self.out_features * self.in_features

    def rows(self, width: int, full: int) -> Part:
        """The rows that an elastic output width keeps.

        Args:
            width: The width.
            full: The whole width.

        Returns:
            The first `width / full` of each block.
        """
        return _shares(self.blocks or (self.out_features,), width, full)

    def columns(self, width: int, full: int) -> Part:
        """The columns that an elastic input width keeps; as of `rows`."""
        return _shares((self.in_features,), width, full)


def _shares(blocks: tuple[int, ...], width: int, full: int) -> Part:
    if width == full:
        return ((0, sum(blocks)),)
    starts = [sum(blocks[:index]) for index in range(len(blocks))]
    return tuple((start, start + size * width // full) for start, size in zip(starts, blocks, strict=True))


@dataclass(frozen=True)
class WidthRule:
    """An elastic output width inside a decoder layer, of an MLP unless a subclass says otherwise.

    Attributes:
        producers: Layers whose output is narrowed; they must share one width, since their outputs meet.
        consumer: The layer that loses the same input columns, in its base weight and in its own lora_A.
        config_field: The field of the model's configuration that holds the width.
    """

    producers: tuple[str, ...]
    consumer: str
    config_field: str

    def full(self, config: Any) -> int:
        """The whole width."""
        return int(getattr(config, self.config_field))

    def unit(self, config: Any) -> int:
        """Channels that only go together; every width is a multiple."""
        return 1

    def fields(self, config: Any, width: int) -> dict[str, int]:
        """The fields of a layer's configuration that a width changes, with what they then are."""
        return {self.config_field: width}

    @property
    def written_alone(self) -> bool:
        """Whether a width that all layers share may be written in the model's own field."""
        return True


@dataclass(frozen=True)
class HeadRule(WidthRule):
    """Elastic heads: query heads with the key-value head that they share, so that the ratio of both stays.

    The width is counted in output channels of the query projection; key and value keep the same share of theirs. It is not
    written in the model's own field even where all layers share it: other things are derived from that, as a head's channels.
    """

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

    @property
    def written_alone(self) -> bool:
        """No."""
        return False


def head_dim(config: Any) -> int:
    """Channels of an attention head."""
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def key_value_heads(config: Any) -> int:
    """Heads of keys, and of values."""
    return int(getattr(config, "num_key_value_heads", None) or config.num_attention_heads)


def head_faults(config: Any) -> list[str]:
    """What does not fit of the numbers of heads; a line a fault."""
    heads, groups, channels = config.num_attention_heads, key_value_heads(config), getattr(config, "head_dim", None)
    faults = [] if heads % groups == 0 else [f"num_attention_heads {heads} is no multiple of num_key_value_heads {groups}"]
    if not channels and config.hidden_size % heads:
        faults.append(f"hidden_size {config.hidden_size} is no multiple of num_attention_heads {heads}")
    return faults


@dataclass(frozen=True)
class Block:
    """A part of a decoder layer that can be left out: the residual then passes by it.

    Attributes:
        kind: What the command line calls it: attention or mlp.
        module: Its path, from the decoder layer.
        norms: Norms in front of it and behind it, which serve it alone; paths from the decoder layer.
        results: How many things it returns, its output first; 0 where it returns the output by itself.
        cached: Whether a token adds keys and values to a cache here.
        adds_residual: Whether it is given the residual, second, and its output holds it; otherwise the layer adds it.
    """

    kind: str
    module: str
    norms: tuple[str, ...]
    results: int = 0
    cached: bool = False
    adds_residual: bool = False


@dataclass(frozen=True)
class LlamaCpp:
    """What llama.cpp has for a model type.

    Attributes:
        equal: Its name of the architecture, all layers of one shape.
        unequal: Its name of the architecture that has the same layers, each of a shape of its own; None where there is none.
        paired: Layers whose rows are rotated in pairs: it has the two of a pair side by side, transformers half a head apart.
    """

    equal: str
    unequal: str | None = None
    paired: tuple[str, ...] = ()


@dataclass(frozen=True)
class GroupKind:
    """A kind of elastic group that generated search spaces have, one of it in every decoder layer.

    Attributes:
        rule: The elastic width; None for an elastic rank.
        layers: Layers whose adapters share one elastic rank; none for a width.
    """

    rule: WidthRule | None = None
    layers: tuple[str, ...] = ()


class Family(ABC):
    """One family of models; a subclass is one file of this package, its instance one entry of `FAMILIES`.

    Attributes:
        titles: For each `model_type` that this family serves, what its models are called.
        class_names: For each `model_type`, the classes that an NNCF node name spells, by module: `model` with its head, `body`,
            a decoder `layer`, and by path the modules inside it and those between body and layers.
        task: What its models are for.
        sizes: Fields of `config.json` that must be there, each with its other spellings: transformers would take those of the
            first model of the type.
        layers: Path of the list of decoder layers; its first part is the body's name in the model.
        embedding: Path of the token embedding.
        head: Path of the language-model head.
        final_norm: Path of the norm in front of the head, where there is one.
        layer_results: How many things a decoder layer returns, its output first; 0 where it returns the output by itself.
        takes_positions: Whether its body takes positions and a mask [batch, 1, tokens, tokens], and not only a mask of padding.
        width_rules: The output widths that can be elastic.
        refused_widths: Layers whose output width cannot be, with the reason.
        refused_heads: Why heads cannot be elastic, where no rule of `width_rules` is a `HeadRule`.
        generated_groups: The groups of generated search spaces, in the published order.
        generated_ranks: Ranks of generated search spaces, as published.
        default_targets: Names of the layers that get an adapter in training by default, as the published adapters have them.
        dynamic_inputs: Layers that published search spaces name in `add_dynamic_inputs`: what they read narrows with heads.
        legacy_buffers: Endings of tensors that older checkpoints hold and nobody reads any more.
        legacy_names: Endings of tensors in older checkpoints, with what they are called now.
        other_heads: Beginnings of tensors that checkpoints of the same body with another head hold.
        raised_guards: Classes of `optimum.exporters.openvino.model_configs` that refuse a transformers version with which the
            converted model is right.
        llama_cpp: By `model_type`, what llama.cpp has for it; a type that is not there is not written as GGUF.
    """

    titles: ClassVar[Mapping[str, str]]
    class_names: ClassVar[Mapping[str, Mapping[str, str]]]
    task: ClassVar[Task] = CAUSAL_LM
    sizes: ClassVar[tuple[tuple[str, ...], ...]] = (
        ("vocab_size",),
        ("hidden_size",),
        ("intermediate_size",),
        ("num_hidden_layers",),
        ("num_attention_heads",),
    )
    layers: ClassVar[str]
    embedding: ClassVar[str]
    head: ClassVar[str]
    final_norm: ClassVar[str]
    layer_results: ClassVar[int] = 0
    takes_positions: ClassVar[bool] = True
    width_rules: ClassVar[tuple[WidthRule, ...]]
    refused_widths: ClassVar[Mapping[str, str]]
    refused_heads: ClassVar[str] = ""
    generated_groups: ClassVar[tuple[GroupKind, ...]]
    generated_ranks: ClassVar[tuple[int, ...]] = (32, 28)
    default_targets: ClassVar[tuple[str, ...]]
    dynamic_inputs: ClassVar[tuple[str, ...]] = ()
    legacy_buffers: ClassVar[tuple[str, ...]] = ()
    legacy_names: ClassVar[Mapping[str, str]] = {}
    other_heads: ClassVar[tuple[str, ...]] = ()
    raised_guards: ClassVar[tuple[str, ...]] = ()
    llama_cpp: ClassVar[Mapping[str, LlamaCpp]] = {}

    @property
    def model_types(self) -> tuple[str, ...]:
        """The `model_type` values of the configurations this family serves."""
        return tuple(self.titles)

    @property
    def own_fields(self) -> frozenset[str]:
        """Fields of a model's configuration in which a width that all layers share is written."""
        return frozenset(rule.config_field for rule in self.width_rules if rule.written_alone)

    def whole_fields(self, config: Any) -> dict[str, int]:
        """The fields of a layer's configuration that widths can change, as they are in the whole network."""
        return {name: value for rule in self.width_rules for name, value in rule.fields(config, rule.full(config)).items()}

    @property
    def head_rule(self) -> HeadRule | None:
        """The rule of elastic heads; None where heads cannot be."""
        return next((rule for rule in self.width_rules if isinstance(rule, HeadRule)), None)

    def layer(self, index: int) -> str:
        """Path of decoder layer `index`."""
        return f"{self.layers}.{index}"

    def faults(self, config: Any) -> list[str]:
        """What of a configuration does not fit together, or is not supported; a line a fault."""
        return head_faults(config)

    def llama_cpp_faults(self, config: Any) -> list[str]:
        """What of a configuration llama.cpp's architecture does not compute; a line a fault."""
        return []

    def blocks(self, config: Any) -> tuple[Block, ...]:
        """The parts of a decoder layer that can be left out; none where leaving them out is not supported."""
        return ()

    @abstractmethod
    def linears(self, config: Any) -> list[Linear]:
        """Linear layers of one decoder layer, paths relative to it."""

    def outer_linears(self, config: Any) -> list[Linear]:
        """Linear layers outside the decoder layers, the head last."""
        return [Linear(self.head, config.vocab_size, config.hidden_size)]

    def embeddings(self, config: Any) -> dict[str, int]:
        """Entries of each embedding table, by module path, that of the tokens first; each entry has the hidden size."""
        return {self.embedding: int(config.vocab_size)}

    def tied(self, config: Any) -> bool:
        """Whether the head shares the embedding's weight."""
        return bool(config.tie_word_embeddings)

    @abstractmethod
    def vectors(self, config: Any) -> dict[str, int]:
        """Sizes of the one-dimensional parameters of one decoder layer, by relative name, biases of linear layers left out."""

    @abstractmethod
    def outer_vectors(self, config: Any) -> dict[str, int]:
        """Sizes of the one-dimensional parameters outside the decoder layers, by name."""

    @abstractmethod
    def kv_width(self, config: Any) -> int:
        """Elements of keys and values that a token adds to the cache of one decoder layer."""

    def narrow_attention(self, attention: Any, fields: Mapping[str, int]) -> None:
        """Tell a live attention how many heads it has; most tell it from what their projections give.

        Args:
            attention: The module.
            fields: As of `HeadRule.fields`.
        """
        return

    def hidden(self, model: Any, **inputs: Any) -> Any:
        """What the head of a live model is given.

        Args:
            model: A Hugging Face model of this family.
            **inputs: As of its body.

        Returns:
            [batch, tokens, hidden].
        """
        return model.base_model(**inputs, use_cache=False)[0]

    def logits(self, model: Any, hidden: Any) -> Any:
        """What a live model's head makes of its hidden states.

        Args:
            model: A Hugging Face model of this family.
            hidden: [..., hidden].

        Returns:
            [..., vocabulary].
        """
        return model.get_output_embeddings()(hidden)

    def node_name(self, model_type: str, layer: int, module: str, last: str) -> str:
        """The name that NNCF 2.x gave a weight of a PEFT model.

        Args:
            model_type: The configuration's.
            layer: Index of the decoder layer.
            module: Path relative to it.
            last: What stands for the layer itself and its weight.

        Returns:
            The node name.
        """
        names = self.class_names[model_type]
        body, *between, layers = self.layers.split(".")

        def spelled(parents: Sequence[str], prefix: str = "") -> list[str]:
            paths = [".".join(parents[: end + 1]) for end in range(len(parents))]
            return [f"{names[prefix + path]}[{leaf}]" for path, leaf in zip(paths, parents, strict=True)]

        path = [self.task.peft_model, "LoraModel[base_model]", f"{names['model']}[model]", f"{names['body']}[{body}]"]
        path += [*spelled(between, "body."), f"ModuleList[{layers}]", f"{names['layer']}[{layer}]"]
        return "/".join([*path, *spelled(module.split(".")[:-1]), last, "linear_0"])
