"""Models that Puzzletron pruned: `block_configs` in config.json has one entry per decoder layer. Read as fields of our own.

    {"attention": {"no_op": false, "n_heads_in_group": 8}, "ffn": {"no_op": false, "ffn_mult": 2.625}}
    {"attention": {"no_op": false, "num_key_value_heads": 8}, "ffn": {"no_op": true}}

DeciLM's models (`nemotron-nas`, such as Llama-3_3-Nemotron-Super-49B) are LLaMA otherwise. They state query heads per
key-value head, and MLP widths as 2/3 ffn_mult hidden_size, rounded up to a multiple of 256. Models of newer versions keep
their model type and state key-value heads and widths. A block with `no_op` has neither weights nor a norm.

Sources: `puzzletron/block_config.py` of NVIDIA's Model Optimizer; `configuration_decilm.py` of
nvidia/Llama-3_3-Nemotron-Super-49B-v1_5; `nemotron_nas.py` of vLLM.
"""

from collections import Counter
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Annotated, Any, Required

from pydantic import Field
from typing_extensions import TypedDict

from lonas_edge.errors import LonasEdgeError, raise_all
from lonas_edge.families import family_of
from lonas_edge.families.fields import Layers, Size
from lonas_edge.schema import field_faults

_OWN = ("llama", "mistral", "qwen2", "qwen3")  # model types of Puzzletron's models
_MODEL_TYPES = {**dict(zip(_OWN, _OWN, strict=True)), "nemotron-nas": "llama", "deci": "llama"}
_KNOWN = {
    "attention": {"no_op", "n_heads_in_group", "num_key_value_heads", "weights_precision"},
    "ffn": {"no_op", "ffn_mult", "intermediate_size", "hidden_act", "gated", "weights_precision"},
}
_KINDS = {"attention": "attention", "ffn": "mlp"}
_THEIRS = ("block_configs", "auto_map", "base_architecture", "position_embedding_type", "o_proj_bias")


class _Attention(TypedDict, total=False):
    no_op: bool | None
    n_heads_in_group: Size | None
    num_key_value_heads: Size | None


class _Ffn(TypedDict, total=False):
    no_op: bool | None
    ffn_mult: Annotated[float, Field(gt=0, le=1000)] | None
    intermediate_size: Size | None
    hidden_act: str | None
    gated: bool | None


class _Block(TypedDict):
    attention: _Attention
    ffn: _Ffn


class _Fields(TypedDict, total=False):
    block_configs: Required[list[_Block]]
    num_hidden_layers: Required[Layers]
    num_attention_heads: Required[Size]
    hidden_size: Required[Size]
    hidden_act: str | None


def in_own_fields(content: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A config.json with `per_layer_config` and `removed_blocks` instead of `block_configs`; `where` is its name in errors."""
    if content.get("block_configs") is None:
        return dict(content)
    model_type = _MODEL_TYPES.get(str(content.get("model_type")))
    family = family_of(model_type)
    if model_type is None or family is None:
        known = ", ".join(_MODEL_TYPES)
        raise LonasEdgeError(f"{where}: block_configs of model_type {content.get('model_type')!r}: expected one of {known}")
    faults = field_faults(_Fields, content) or _faults(content)
    raise_all(f"{where}: block_configs cannot be used:", faults, "Such blocks need the code that came with the model.")
    layers = [_layer(block, content) for block in content["block_configs"]]
    common = {"num_key_value_heads": max(layer["num_key_value_heads"] for layer in layers if "num_key_value_heads" in layer)}
    widths = Counter(layer["intermediate_size"] for layer in layers if "intermediate_size" in layer)
    common["intermediate_size"] = widths.most_common(1)[0][0] if widths else content["hidden_size"]
    changes = [{field: size for field, size in layer.items() if size != common[field]} for layer in layers]
    paths = {block.kind: block.module for block in family.blocks(SimpleNamespace(**{**content, "layer_type": None}))}
    removed = [
        f"{family.layer(index)}.{paths[kind]}"
        for index, block in enumerate(content["block_configs"])
        for part, kind in _KINDS.items()
        if block[part].get("no_op")
    ]
    own = {name: value for name, value in content.items() if name not in _THEIRS}
    own |= {"model_type": model_type, "architectures": [family.class_names[model_type]["model"]], **common}
    for activation in _activations(content):  # one at most
        own["hidden_act"] = activation
    own["per_layer_config"] = {str(index): fields for index, fields in enumerate(changes) if fields}
    return own | {"removed_blocks": removed}


def _layer(block: Mapping[str, Any], content: Mapping[str, Any]) -> dict[str, int]:
    """Key-value heads and MLP width of a layer, without those of a removed block."""
    attention, ffn, sizes = block["attention"], block["ffn"], {}
    if not attention.get("no_op"):
        heads = attention.get("num_key_value_heads")
        sizes["num_key_value_heads"] = heads or content["num_attention_heads"] // attention["n_heads_in_group"]
    if not ffn.get("no_op"):
        sizes["intermediate_size"] = ffn.get("intermediate_size") or _width(ffn["ffn_mult"], content["hidden_size"])
    return sizes


def _width(ffn_mult: float, hidden: int) -> int:
    return -(-int(2 * ffn_mult * hidden / 3) // 256) * 256


def _activations(content: Mapping[str, Any]) -> set[str]:
    """The activations of all MLPs."""
    stated = {block["ffn"].get("hidden_act") for block in content["block_configs"] if not block["ffn"].get("no_op")}
    return {act for act in {*stated, content.get("hidden_act")} if act}


def _faults(content: Mapping[str, Any]) -> list[str]:
    blocks, layers = content["block_configs"], content["num_hidden_layers"]
    faults = [] if len(blocks) == layers else [f"{len(blocks)} entries; num_hidden_layers is {layers}"]
    for index, block in enumerate(blocks):
        faults += [f"layer {index}: {fault}" for fault in _layer_faults(block, content["num_attention_heads"])]
    if blocks and all(block["attention"].get("no_op") for block in blocks):
        faults.append("every layer's attention is removed; expected one that stays")
    if len(_activations(content)) > 1:
        faults.append(f"hidden_act: expected one for all layers, found {', '.join(sorted(_activations(content)))}")
    if (kind := content.get("position_embedding_type") or "rope") != "rope":
        faults.append(f"position_embedding_type {kind!r}: expected 'rope'")
    if bool(content.get("o_proj_bias", content.get("attention_bias"))) != bool(content.get("attention_bias")):
        faults.append("o_proj_bias differs from attention_bias; expected equal values")
    return faults


def _layer_faults(block: Mapping[str, Any], query_heads: int) -> list[str]:
    faults = [f"{name}: not supported" for name, value in block.items() if name not in _KNOWN and value]
    for part, known in _KNOWN.items():
        others = [name for name, value in block[part].items() if name not in known and value is not None and value is not False]
        faults += [f"{part}.{name} {block[part][name]!r}: not supported" for name in others]
    attention, ffn = block["attention"], block["ffn"]
    grouped, stated = attention.get("n_heads_in_group"), attention.get("num_key_value_heads")
    heads = grouped or stated
    if not faults and not attention.get("no_op") and (heads is None or query_heads % heads):
        wanted = f"expected n_heads_in_group or num_key_value_heads that divides {query_heads} query heads"
        faults.append(f"attention: {wanted}, found {heads}")
    if grouped and stated and grouped * stated != query_heads:
        faults.append(f"attention: {grouped} query heads per key-value head and {stated} key-value heads contradict each other")
    if not faults and not ffn.get("no_op") and not (ffn.get("ffn_mult") or ffn.get("intermediate_size")):
        faults.append("ffn: expected ffn_mult or intermediate_size")
    if not ffn.get("no_op") and ffn.get("gated") is False:
        faults.append("ffn.gated False: not supported")
    return faults
