"""Granite 3: LLaMA with multipliers (muP): of embeddings, block outputs, attention scores and logits.

    x = embedding_multiplier * embed(tokens)
    x = x + residual_multiplier * block(norm(x))
    logits = head(norm(x)) / logits_scaling

Granite 4, dense or with Mamba 2 layers, has fused projections in the MLP:

    [gate; up] = input_linear(x)
    mlp(x) = output_linear(up * act(gate))

Its model type is that of mixtures of experts, too, which are not supported. Without experts the MLP is the "shared" one, with
the width `shared_intermediate_size`. A layer of a hybrid has attention or Mamba 2 (Dao & Gu, ICML 2024), by `layer_types`. The
inner width of Mamba is fixed: heads share one state matrix, and the norm is over all of them.

Source: the configuration and modeling files of transformers 5.5.
"""

from typing import Any, ClassVar

from lonas_edge.families.layers import HIDDEN_STATE, Block, GroupKind, Linear, WidthRule
from lonas_edge.families.llama import Llama, class_names


class Granite(Llama):
    """Granite 3, dense."""

    titles = {"granite": "Granite 3 (dense)"}
    class_names = {"granite": class_names("Granite")}

    def logits(self, model: Any, hidden: Any) -> Any:
        """Logits, divided by `logits_scaling`."""
        return super().logits(model, hidden) / model.config.logits_scaling


class Granite4(Granite):
    """Granite 4, without experts."""

    renumbers = False  # layers with a state are found by number
    titles = {"granitemoehybrid": "Granite 4 (dense, hybrid)"}
    class_names = {
        "granitemoehybrid": {
            **class_names("GraniteMoeHybrid"),
            "shared_mlp": "GraniteMoeHybridMLP",
            "mamba": "GraniteMoeHybridMambaLayer",
        }
    }
    sizes = (
        ("vocab_size",),
        ("hidden_size",),
        ("shared_intermediate_size",),
        ("num_hidden_layers",),
        ("num_attention_heads",),
        ("num_local_experts",),
    )
    width_rules: ClassVar[tuple[WidthRule, ...]] = (
        WidthRule(("shared_mlp.input_linear",), "shared_mlp.output_linear", "shared_intermediate_size"),
        Llama.width_rules[1],
    )
    refused_widths = {
        **dict.fromkeys(("self_attn.o_proj", "shared_mlp.output_linear", "mamba.out_proj"), HIDDEN_STATE),
        "mamba.in_proj": "the heads of Mamba share a state matrix and a norm",
    }
    generated_groups = (
        GroupKind(layers=(*Llama.generated_groups[0].layers, "mamba.in_proj")),
        GroupKind(width_rules[0]),
        GroupKind(layers=("shared_mlp.input_linear",)),
    )
    given_positions = True
    default_targets = ("q_proj", "k_proj", "v_proj", "in_proj", "input_linear", "output_linear")

    def config_errors(self, config: Any) -> list[str]:
        """Mixtures of experts are not supported."""
        errors = super().config_errors(config)
        if config.num_local_experts:
            errors.append(f"num_local_experts {config.num_local_experts}: mixtures of experts are not supported; expected 0")
        return errors

    def repair(self, model: Any) -> None:
        """transformers 5.5 asks the cache for a state of Mamba layers, and fails without any."""
        if "mamba" not in model.config.layer_types:
            model.base_model._update_mamba_mask = _no_mask

    def blocks(self, config: Any) -> tuple[Block, ...]:
        mixer = Block("attention", "self_attn", ("input_layernorm",), 2, cached=True)
        if config.layer_type == "mamba":
            mixer = Block("mamba", "mamba", ("input_layernorm",), state=True)
        return mixer, Block("mlp", "shared_mlp", ("post_attention_layernorm",))

    def linears(self, config: Any) -> list[Linear]:
        hidden, mlp = config.hidden_size, config.shared_intermediate_size
        mixer = [linear for linear in super().linears(config) if linear.name.startswith("self_attn.")]
        if config.layer_type == "mamba":
            width, bias = _mamba_width(config), bool(config.mamba_proj_bias)
            projected = width + _convolution_channels(config) + config.mamba_n_heads  # gate; x, B, C; dt
            mixer = [
                Linear("mamba.in_proj", projected, hidden, bias, four_bits=False),
                Linear("mamba.out_proj", hidden, width, bias, four_bits=False),
            ]
        return [
            *mixer,
            Linear("shared_mlp.input_linear", 2 * mlp, hidden, blocks=(mlp, mlp)),
            Linear("shared_mlp.output_linear", hidden, mlp),
        ]

    def convolutions(self, config: Any) -> dict[str, tuple[int, ...]]:
        if config.layer_type != "mamba":
            return {}
        return {"mamba.conv1d.weight": (_convolution_channels(config), 1, config.mamba_d_conv)}

    def vectors(self, config: Any) -> dict[str, int]:
        sizes = super().vectors(config)
        if config.layer_type == "mamba":
            sizes |= dict.fromkeys(("mamba.dt_bias", "mamba.A_log", "mamba.D"), config.mamba_n_heads)
            sizes |= {"mamba.norm.weight": _mamba_width(config)}
            sizes |= {"mamba.conv1d.bias": _convolution_channels(config)} if config.mamba_conv_bias else {}
        return sizes

    def kv_width(self, config: Any) -> int:
        """A state does not grow."""
        return 0 if config.layer_type == "mamba" else super().kv_width(config)


def _mamba_width(config: Any) -> int:
    """Channels of all heads of Mamba."""
    return int(config.mamba_expand * config.hidden_size)


def _convolution_channels(config: Any) -> int:
    """Channels of Mamba's convolution: its inputs, and the state matrices B and C of each group."""
    return int(_mamba_width(config) + 2 * config.mamba_n_groups * config.mamba_d_state)


def _no_mask(*_: Any) -> None:
    """The mask of layers that a dense model lacks."""
