"""Base of model families: tensors, the effect of elastic dimensions on them, configuration and kind.

A family is behaviour. Layer names, the dimensions that shrink together, the places of embedding and head, and the configuration
fields that hold a width are defined here, from configurations alone: no torch. Paths are those of the Hugging Face modules.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from lonas_edge.families.kinds import CAUSAL_LM, ModelKind
from lonas_edge.families.layers import Block, GroupKind, HeadRule, Linear, WidthRule, head_dim, key_value_heads


class Family(ABC):
    """A family of models; each subclass is one file of this package, and its instance one entry of `FAMILIES`.

    Attributes:
        titles: Display names of the models, by `model_type`.
        class_names: By `model_type`, the class names in NNCF node names, by module: `model` with its head, `body`, a decoder
            `layer`, and by path the modules inside it and those between body and layers.
        kind: The kind of the models.
        sizes: Required fields of `config.json`, each with its other spellings; transformers would fill in those of another
            model.
        vocabularies: Fields with the number of rows of another table of tokens; ids are below each.
        layers: Path of the list of decoder layers; it starts with `prefix`.
        embedding: Path of the token embedding.
        head: Path of the head; "" without one. Of several layers it is the last.
        final_norm: Path of the norm before the head, if any.
        layer_results: Number of values a decoder layer returns, the output first; 0 if it returns the output itself.
        given_positions: Whether its body has to be given positions, since runtimes misread the graph of its own.
        segments: Whether an encoder has a table of segments (`token_type_ids`).
        ends_at_padding: Whether the model finds the end of a text by `pad_token_id` of its configuration.
        renumbers: Whether a decoder layer of which no block is left disappears, and later ones get new numbers. Layers may
            differ in lists of the configuration, but not by their number.
        width_rules: The output widths that can be elastic.
        refused_widths: Layers whose output width cannot be elastic, with the reason.
        refused_heads: Why heads cannot be elastic, if no rule of `width_rules` is a `HeadRule`.
        refused_trim: Why the vocabulary cannot be trimmed; "" where it can.
        generated_groups: The groups of generated search spaces, in the published order.
        generated_ranks: Ranks of generated search spaces, as published.
        default_targets: Names of the layers with an adapter in the published adapters.
        dynamic_inputs: Layers in `add_dynamic_inputs` of published search spaces: their inputs narrow with heads.
        legacy_buffers: Endings of unused tensors in older checkpoints.
        legacy_names: Endings of tensors in older checkpoints, with their current names.
        other_heads: Prefixes of tensors in checkpoints of the same body with another head.
        other_prefixes: Prefixes that the body's tensors may have in a checkpoint instead of `prefix`.
        options: Arguments of the constructor of the model's class in transformers.
        raised_guards: Classes of `optimum.exporters.openvino.model_configs` that refuse a transformers version which works.
    """

    titles: ClassVar[Mapping[str, str]]
    class_names: ClassVar[Mapping[str, Mapping[str, str]]]
    kind: ClassVar[ModelKind] = CAUSAL_LM
    sizes: ClassVar[tuple[tuple[str, ...], ...]] = (
        ("vocab_size",),
        ("hidden_size",),
        ("intermediate_size",),
        ("num_hidden_layers",),
        ("num_attention_heads",),
    )
    vocabularies: ClassVar[tuple[str, ...]] = ()
    layers: ClassVar[str]
    embedding: ClassVar[str]
    head: ClassVar[str]
    final_norm: ClassVar[str]
    layer_results: ClassVar[int] = 0
    given_positions: ClassVar[bool] = False
    segments: ClassVar[bool] = True
    ends_at_padding: ClassVar[bool] = False
    renumbers: ClassVar[bool] = False
    width_rules: ClassVar[tuple[WidthRule, ...]]
    refused_widths: ClassVar[Mapping[str, str]]
    refused_heads: ClassVar[str] = ""
    refused_trim: ClassVar[str] = ""
    generated_groups: ClassVar[tuple[GroupKind, ...]]
    generated_ranks: ClassVar[tuple[int, ...]] = (32, 28)
    default_targets: ClassVar[tuple[str, ...]]
    dynamic_inputs: ClassVar[tuple[str, ...]] = ()
    legacy_buffers: ClassVar[tuple[str, ...]] = ()
    legacy_names: ClassVar[Mapping[str, str]] = {}
    other_heads: ClassVar[tuple[str, ...]] = ()
    other_prefixes: ClassVar[tuple[str, ...]] = ("",)  # a checkpoint of the body alone
    options: ClassVar[Mapping[str, Any]] = {}
    raised_guards: ClassVar[tuple[str, ...]] = ()

    @property
    def model_types(self) -> tuple[str, ...]:
        """The `model_type` values of this family."""
        return tuple(self.titles)

    @property
    def prefix(self) -> str:
        """Prefix of the body's modules and tensors in the model."""
        return f"{self.layers.partition('.')[0]}."

    def class_fields(self, model_type: str) -> dict[str, Any]:
        """Fields of `config.json` that name the model's class, where the model type alone does not decide it."""
        return {} if self.kind.generates else {"architectures": [self.class_names[model_type]["model"]]}

    @property
    def inputs(self) -> tuple[str, ...]:
        """The model's inputs, in the order of search spaces."""
        return tuple(name for name in self.kind.inputs if self.segments or name != "token_type_ids")

    @property
    def head_modules(self) -> tuple[str, ...]:
        """Paths of the modules that another head replaces."""
        return (self.head,) if self.head else ()

    @property
    def own_fields(self) -> frozenset[str]:
        """Fields of a model's configuration that hold a width which all layers share."""
        return frozenset(rule.config_field for rule in self.width_rules if rule.in_own_field)

    def whole_fields(self, config: Any) -> dict[str, int]:
        """The fields of a layer's configuration that widths can change, with their full values."""
        return {name: value for rule in self.width_rules for name, value in rule.fields(config, rule.full(config)).items()}

    @property
    def head_rule(self) -> HeadRule | None:
        """The rule of elastic heads; None where heads cannot be elastic."""
        return next((rule for rule in self.width_rules if isinstance(rule, HeadRule)), None)

    def layer(self, index: int) -> str:
        """Path of decoder layer `index`."""
        return f"{self.layers}.{index}"

    def context(self, positions: int | None, padding: int | None) -> int | None:
        """Longest sequence in tokens, by `max_position_embeddings` and `pad_token_id` of the configuration, if limited."""
        return positions

    def config_errors(self, config: Any) -> list[str]:
        """Fields of a configuration that are not supported, one line each; transformers checks their types."""
        heads, groups = config.num_attention_heads, key_value_heads(config)
        return [f"num_attention_heads {heads} is no multiple of num_key_value_heads {groups}"] if heads % groups else []

    def layer_fields(self, config: Any, index: int) -> dict[str, Any]:
        """The fields of a model's configuration in which decoder layers differ, with the values of one layer."""
        kinds = getattr(config, "layer_types", None)
        return {"layer_type": kinds[index] if kinds else None, "head_dim": head_dim(config)}

    def shorten(self, config: Any) -> None:
        """Reduce a configuration to its first decoder layer, in place."""
        config.num_hidden_layers = 1
        if getattr(config, "layer_types", None):
            config.layer_types = config.layer_types[:1]

    def last_start(self, config: Any) -> int:
        """Index of the last decoder layer at which a forward pass can start, given this layer's input alone."""
        return int(config.num_hidden_layers) - 1

    def blocks(self, config: Any) -> tuple[Block, ...]:
        """The parts of a decoder layer that can be removed; empty if this is not supported."""
        return ()

    @abstractmethod
    def linears(self, config: Any) -> list[Linear]:
        """Linear layers of one decoder layer, paths relative to it.

        Here and in the other methods about one decoder layer `config` is as of `Architecture.of_layer`: where `layer_types` has
        several kinds, `layer_type` is the layer's.
        """

    def convolutions(self, config: Any) -> dict[str, tuple[int, ...]]:
        """Shapes of the weights of convolutions in a decoder layer by relative name; they stay in fp32."""
        return {}

    def other_linears(self, config: Any) -> list[Linear]:
        """Linear layers outside the decoder layers, the head last."""
        return [Linear(self.head, config.vocab_size, config.hidden_size)]

    def embeddings(self, config: Any) -> dict[str, tuple[int, int]]:
        """Number of entries and their size of each embedding table by module path, tokens first."""
        return {self.embedding: (int(config.vocab_size), int(config.hidden_size))}

    def tied(self, config: Any) -> bool:
        """Whether the head shares the embedding's weight."""
        return bool(config.tie_word_embeddings)

    @abstractmethod
    def vectors(self, config: Any) -> dict[str, int]:
        """Sizes of the one-dimensional parameters of a decoder layer by relative name, without biases of linear layers."""

    @abstractmethod
    def other_vectors(self, config: Any) -> dict[str, int]:
        """Sizes of the one-dimensional parameters outside the decoder layers, by name."""

    @abstractmethod
    def kv_width(self, config: Any) -> int:
        """Elements of keys and values that a token adds to the cache of one decoder layer."""

    def narrow_attention(self, attention: Any, fields: Mapping[str, int]) -> None:
        """Set the numbers of heads (`HeadRule.fields`) of a live attention; most infer all but the ratio from projections."""
        if "num_key_value_heads" in fields:
            attention.num_key_value_groups = fields["num_attention_heads"] // fields["num_key_value_heads"]

    def repair(self, model: Any) -> None:
        """Work around errors of transformers in a live model, in place."""
        return

    def hidden(self, model: Any, **inputs: Any) -> Any:
        """The head's input [batch, tokens, hidden] in a live model; `inputs` are those of its body."""
        return model.base_model(**inputs, use_cache=False)[0]

    def logits(self, model: Any, hidden: Any) -> Any:
        """The logits [..., vocabulary] of hidden states [..., hidden] in a live model."""
        return model.get_output_embeddings()(hidden)

    def node_name(self, model_type: str, layer: int, module: str, last: str) -> str:
        """The NNCF 2.x name of a weight of a PEFT model; `last` is the part for the layer itself and its weight."""
        names = self.class_names[model_type]
        *between, layers = self.layers.removeprefix(self.prefix).split(".")
        parts = [self.kind.peft_model, "LoraModel[base_model]", f"{names['model']}[model]"]
        if self.prefix:
            parts.append(f"{names['body']}[{self.prefix.rstrip('.')}]")
        parts += _name_classes(names, between, "body.")
        parts += [f"ModuleList[{layers}]", f"{names['layer']}[{layer}]"]
        parts += _name_classes(names, module.split(".")[:-1], "")
        return "/".join([*parts, last, "linear_0"])


def _name_classes(names: Mapping[str, str], modules: Sequence[str], path: str) -> list[str]:
    """Each of some nested modules with its class, `BertAttention[attention]`; `path` is before the first one."""
    parts = []
    for module in modules:
        parts.append(f"{names[path + module]}[{module}]")
        path += f"{module}."
    return parts
