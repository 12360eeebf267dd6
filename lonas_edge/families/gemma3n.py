"""Gemma 3n (text): Gemma 3 with alternating updates, per-layer embeddings, and keys and values that layers share.

    x[0], ..., x[3] = predict(inputs)                            AltUp (Baykal et al., NeurIPS 2023)
    a = (x[0] + norm(attention(norm(x[0]))) + laurel(norm(x[0]))) / sqrt(2)
    y[0], ..., y[3] = correct(x, a + norm(mlp(norm(a))))
    y[1:] += norm(projection(act(gate(y[0])) * embedding))       of the token in this layer

In sparse layers the gate is cut at mean + k std over the MLP's channels. Removed channels count in neither, since elastic
layers compute with the active ones only.

The last `num_kv_shared_layers` layers read keys and values of the last layer of their kind before them. So attention that is
read cannot be removed, and the readers' own `k_proj` and `v_proj` are unused.

Source: the configuration and modeling files of transformers 5.5.
"""

from collections import Counter
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from lonas_edge.families.layers import Block, GroupKind, Linear, WidthRule, head_dim
from lonas_edge.families.llama import Llama, class_names

_SHARED = "layers share keys and values, so they would have to lose the same heads"
_MLP_NORMS = ("pre_feedforward_layernorm", "post_feedforward_layernorm")
_NORMS = (
    *("input_layernorm", "post_attention_layernorm", *_MLP_NORMS, "post_per_layer_input_norm"),
    *("altup.router_norm", "laurel.post_laurel_norm"),
)


@dataclass(frozen=True)
class _MlpWidth(WidthRule):
    """The width of an MLP, of which the configuration has one per layer."""

    def full(self, config: Any) -> int:
        """The full width; the most frequent one of a model."""
        width = config.intermediate_size
        return Counter(width).most_common(1)[0][0] if isinstance(width, list) else int(width)


class Gemma3n(Llama):
    """The language model of Gemma 3n."""

    renumbers = False  # layers read keys and values of others, by number
    titles = {"gemma3n_text": "Gemma 3n (text)"}
    class_names = {
        "gemma3n_text": {
            **class_names("Gemma3nText"),
            "model": "Gemma3nForCausalLM",
            "altup": "Gemma3nTextAltUp",
            "laurel": "Gemma3nTextLaurelBlock",
        }
    }
    sizes = (
        *Llama.sizes,
        ("vocab_size_per_layer_input",),
        ("hidden_size_per_layer_input",),
        ("num_kv_shared_layers",),
        ("altup_num_inputs",),
        ("laurel_rank",),
    )
    vocabularies = ("vocab_size_per_layer_input",)
    width_rules: ClassVar[tuple[WidthRule, ...]] = (
        _MlpWidth(("mlp.gate_proj", "mlp.up_proj"), "mlp.down_proj", "intermediate_size"),
    )
    refused_widths = {**Llama.refused_widths, **{f"self_attn.{name}_proj": _SHARED for name in "qkv"}}
    refused_heads = _SHARED
    refused_trim = "each token has a row in the embeddings of every layer, too (vocab_size_per_layer_input)"
    generated_groups = (Llama.generated_groups[0], GroupKind(width_rules[0]), Llama.generated_groups[2])
    other_prefixes = ("", "model.language_model.")  # transformers 5.5 writes the latter
    raised_guards = ("Gemma3nTextOpenVINOConfig",)  # "maximum 5.0" in optimum-intel 2.2

    def layer_fields(self, config: Any, index: int) -> dict[str, Any]:
        """Whether other layers read the keys and values of a layer, and whether it reads those of another; its MLP's width."""
        widths, sources = config.intermediate_size, _sources(config)
        own = {"keys_are_read": index in sources.values(), "reads_keys": index in sources}
        own["intermediate_size"] = widths[index] if isinstance(widths, list) else widths
        return super().layer_fields(config, index) | own

    def shorten(self, config: Any) -> None:
        super().shorten(config)
        config.num_kv_shared_layers = 0

    def last_start(self, config: Any) -> int:
        """The first layer whose keys and values are read."""
        return min(_sources(config).values(), default=super().last_start(config))

    def repair(self, model: Any) -> None:
        """Share keys and values without a cache, too; transformers 5.5 computes others then.

        AltUp's scale is called as a module, so that its parameter can be streamed.
        """
        model.base_model.register_forward_pre_hook(_share_in_body, with_kwargs=True)
        for layer in model.base_model.layers:
            layer.self_attn.register_forward_pre_hook(_share_in_attention, with_kwargs=True)
            layer.altup.scale_corrected_output = layer.altup.__call__

    def blocks(self, config: Any) -> tuple[Block, ...]:
        """Attention without the norm before it, which also serves LAuReL, and the MLP."""
        needed = "later layers read its keys and values" if config.keys_are_read else ""
        norms = ("post_attention_layernorm",)
        attention = Block("attention", "self_attn", norms, 2, cached=not config.reads_keys, refused=needed)
        return attention, Block("mlp", "mlp", _MLP_NORMS)

    def linears(self, config: Any) -> list[Linear]:
        hidden, inputs, embedded = config.hidden_size, config.altup_num_inputs, config.hidden_size_per_layer_input
        unused = ("self_attn.k_proj", "self_attn.v_proj") if config.reads_keys else ()
        return [
            *(replace(linear, used=linear.name not in unused) for linear in super().linears(config)),
            Linear("altup.correction_coefs", inputs, inputs, four_bits=False),
            Linear("altup.prediction_coefs", inputs**2, inputs, four_bits=False),
            Linear("altup.modality_router", inputs, hidden, four_bits=False),
            Linear("laurel.linear_left", config.laurel_rank, hidden, four_bits=False),
            Linear("laurel.linear_right", hidden, config.laurel_rank, four_bits=False),
            Linear("per_layer_input_gate", embedded, hidden),
            Linear("per_layer_projection", hidden, embedded),
        ]

    def other_linears(self, config: Any) -> list[Linear]:
        hidden, others = config.hidden_size, range(config.altup_num_inputs - 1)
        return [
            Linear("model.per_layer_model_projection", _per_token(config), hidden),
            *(Linear(f"model.altup_projections.{index}", hidden, hidden) for index in others),
            *(Linear(f"model.altup_unembed_projections.{index}", hidden, hidden) for index in others),
            *super().other_linears(config),
        ]

    def embeddings(self, config: Any) -> dict[str, tuple[int, int]]:
        """Tokens', and those of every layer."""
        rows = int(config.vocab_size_per_layer_input)
        return super().embeddings(config) | {"model.embed_tokens_per_layer": (rows, _per_token(config))}

    def vectors(self, config: Any) -> dict[str, int]:
        sizes = dict.fromkeys((*(f"{name}.weight" for name in _NORMS), "altup.correct_output_scale"), config.hidden_size)
        return sizes | dict.fromkeys(("self_attn.q_norm.weight", "self_attn.k_norm.weight"), head_dim(config))

    def other_vectors(self, config: Any) -> dict[str, int]:
        return super().other_vectors(config) | {"model.per_layer_projection_norm.weight": config.hidden_size_per_layer_input}

    def kv_width(self, config: Any) -> int:
        """Shared keys and values are in one cache."""
        return 0 if config.reads_keys else super().kv_width(config)


def _per_token(config: Any) -> int:
    """Elements of a token's embeddings of all layers."""
    return int(config.num_hidden_layers * config.hidden_size_per_layer_input)


def _sources(config: Any) -> dict[int, int]:
    """Index of the layer whose keys and values a layer reads, by the index of the reader."""
    first = config.num_hidden_layers - config.num_kv_shared_layers
    last = {kind: index for index, kind in enumerate(config.layer_types[:first])}
    return {index: last[config.layer_types[index]] for index in range(first, config.num_hidden_layers)}


class _Shared:
    """Keys and values of one forward pass, for attention that was given no cache."""

    def __init__(self) -> None:
        self.shared_layers: dict[int, Any] = {}

    def update(self, keys: Any, values: Any, _index: int) -> tuple[Any, Any]:
        """There are no earlier tokens."""
        return keys, values


_Arguments = tuple[tuple[Any, ...], dict[str, Any]]  # of a hooked module


def _share_in_body(_body: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Arguments:
    """Let the layers share without a cache, of which gradient checkpointing deprives them, too."""
    return args, kwargs if kwargs.get("past_key_values") is not None else {**kwargs, "shared": _Shared()}


def _share_in_attention(_attention: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Arguments:
    own = dict(kwargs)
    shared = own.pop("shared", None)
    if own.get("past_key_values") is None:
        own["past_key_values"] = shared
    return args, own
