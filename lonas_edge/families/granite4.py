"""Granite 4, dense: Granite 3 with fused projections in the MLP.

    [gate; up] = input_linear(x)
    mlp(x) = output_linear(up * act(gate))

The model type is that of the hybrids and mixtures of experts, too. A dense model has attention in every layer and no experts:
its MLP is the "shared" one, with the width `shared_intermediate_size`.

Source: the configuration and modeling files of transformers 5.5.
"""

from typing import Any, ClassVar

from lonas_edge.families.base import Block, GroupKind, Linear, WidthRule
from lonas_edge.families.granite import Granite
from lonas_edge.families.llama import HIDDEN_STATE, Llama, class_names


class Granite4(Granite):
    """Granite 4, dense."""

    titles = {"granitemoehybrid": "Granite 4 (dense)"}
    class_names = {
        "granitemoehybrid": {
            **class_names("GraniteMoeHybrid"),
            "shared_mlp": "GraniteMoeHybridMLP",
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
    refused_widths = {"self_attn.o_proj": HIDDEN_STATE, "shared_mlp.output_linear": HIDDEN_STATE}
    generated_groups = (
        Llama.generated_groups[0],
        GroupKind(width_rules[0]),
        GroupKind(layers=("shared_mlp.input_linear",)),
    )
    given_positions = True
    default_targets = ("q_proj", "k_proj", "v_proj", "input_linear", "output_linear")

    def faults(self, config: Any) -> list[str]:
        """Mixtures of experts and layers without attention are not supported."""
        faults = super().faults(config)
        if config.num_local_experts:
            faults.append(f"num_local_experts {config.num_local_experts}: mixtures of experts are not supported; expected 0")
        if others := sorted({*config.layer_types} - {"attention"}):
            faults.append(f"layer_types {', '.join(others)}: only models with attention in all layers are supported")
        return faults

    def repair(self, model: Any) -> None:
        """transformers 5.5 asks the cache for a state of other layers than attention, and fails without any."""
        model.base_model._update_mamba_mask = _no_mask

    def blocks(self, config: Any) -> tuple[Block, ...]:
        attention = Block("attention", "self_attn", ("input_layernorm",), 2, cached=True)
        return attention, Block("mlp", "shared_mlp", ("post_attention_layernorm",))

    def linears(self, config: Any) -> list[Linear]:
        hidden, mlp = config.hidden_size, config.shared_intermediate_size
        attention = [linear for linear in super().linears(config) if linear.name.startswith("self_attn.")]
        return [
            *attention,
            Linear("shared_mlp.input_linear", 2 * mlp, hidden, blocks=(mlp, mlp)),
            Linear("shared_mlp.output_linear", hidden, mlp),
        ]


def _no_mask(*_: Any) -> None:
    """The mask of layers that a dense model lacks."""
