"""Slice and merge: base checkpoint + adapter + sub-network -> an ordinary Hugging Face checkpoint, tensor by tensor."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from lonas_edge.errors import raise_all
from lonas_edge.families import LinearPart, Ranges
from lonas_edge.network.adapters import CONFIG, Adapter, LoraFactors, adapter_file, load_adapter
from lonas_edge.network.checkpoints import TensorFiles, describe_damage, open_base, take, write_shards
from lonas_edge.network.source import Source
from lonas_edge.space.architecture import REMOVED
from lonas_edge.space.subnetwork import Subnetwork

_PER_LAYER = ("layer_types", "no_rope_layers")  # lists of a configuration with an entry for each layer
BLOCK_ELEMENTS = 2**20  # 8 MB in float64


def merge(sliced: torch.Tensor, widths: LinearPart, lora: LoraFactors | None) -> torch.Tensor:
    """Add a layer's adapter to its sliced weight [out, in]: W + scale · B[rows, :r] A[:r, columns], in float64."""
    if lora is None:
        return sliced.double()
    a, b = take(lora.a, None, widths.columns)[: widths.rank], take(lora.b, widths.rows)[:, : widths.rank]
    return torch.addmm(sliced.double(), b.double(), a.double(), alpha=lora.scale)


def merge_bias(sliced: torch.Tensor, widths: LinearPart, lora: LoraFactors | None) -> torch.Tensor:
    """Add the bias of lora_B, if any, to a layer's sliced bias [out], in float64."""
    if lora is None or lora.bias is None:
        return sliced.double()
    return sliced.double() + lora.scale * take(lora.bias, widths.rows).double()


def _merged_in_blocks(sliced: torch.Tensor, widths: LinearPart, lora: LoraFactors | None) -> torch.Tensor:
    """As `merge`, rounded to fp32 in blocks of rows, so that it is never whole in float64."""
    if lora is None:
        return sliced.float()
    merged, rows = torch.empty(sliced.shape), max(1, BLOCK_ELEMENTS // sliced.shape[1])
    lora = replace(lora, b=take(lora.b, widths.rows))
    for start in range(0, len(sliced), rows):
        part = ((start, min(start + rows, len(sliced))),)
        merged[start : start + rows] = merge(take(sliced, part), replace(widths, rows=part), lora)
    return merged


class MaterializedModel:
    """The materialized model, computed tensor by tensor: nothing is read in advance, and nothing is cached."""

    def __init__(self, source: Source, subnetwork: Subnetwork):
        """Open the base and the adapter and check that they fit."""
        self.source, self.subnetwork = source, subnetwork
        self.base: TensorFiles = open_base(source.base.folder, source.architecture, source.replaced())
        self.adapter = Adapter()
        if source.adapter and source.adapter_config:
            self.adapter = load_adapter(source.adapter.folder, source.adapter_config, source.architecture, self.base)
        self._factors = {name: source.order.apply_to_factors(name, lora) for name, lora in self.adapter.factors.items()}
        self.untied = source.unties
        self.shapes = subnetwork.shapes(self.untied)
        self._layers = {number: index for index, number in subnetwork.numbers.items()}
        self._widths = subnetwork.linears
        self._damaged: dict[str, str] = {}
        self._refuse_bias_without_base()

    def _refuse_bias_without_base(self) -> None:
        linears = self.source.architecture.linears
        errors = [
            f"{name}.lora_B.bias: the base layer has no bias to add it to"
            for name, lora in self.adapter.factors.items()
            if lora.bias is not None and not linears[name].bias
        ]
        raise_all("The adapter has biases (lora_bias) that the merged model has no place for:", errors)

    def base_tensor(self, name: str, rows: Ranges | None = None, columns: Ranges | None = None) -> torch.Tensor:
        """Read a base tensor or its replacement by the adapter, in the super-network's channel order."""
        if self.source.order.touches(name):
            return take(self.source.order.apply(name, self._stored(name)), rows, columns)
        return self._stored(name, rows, columns)

    def _stored(self, name: str, rows: Ranges | None = None, columns: Ranges | None = None) -> torch.Tensor:
        if name in self.adapter.replaced:
            return take(self.adapter.replaced[name], rows, columns)
        return self.base.read(self._name_in_base(name), rows, columns)

    def _name_in_base(self, name: str) -> str:
        architecture = self.source.architecture
        tied = architecture.tied and name == f"{architecture.family.head}.weight"
        return f"{architecture.family.embedding}.weight" if tied else name

    def original(self, name: str) -> str:
        """The super-network's name of a tensor: layers are renumbered where whole ones are removed."""
        return self.source.architecture.renumber(name, self._layers)

    def exact(self, name: str) -> torch.Tensor:
        """A tensor of the materialized model before rounding: float64, or as stored where nothing is merged."""
        name = self.original(name)
        layer, _, leaf = name.rpartition(".")
        widths, lora = self._widths.get(layer), self._factors.get(layer)
        if widths is None:
            return self.base_tensor(name)
        if leaf == "bias":
            return merge_bias(self.base_tensor(name, widths.rows), widths, lora)
        return merge(self.base_tensor(name, widths.rows, widths.columns), widths, lora)

    def tensor(self, name: str) -> torch.Tensor:
        """A tensor of the materialized model in fp32, rounded once."""
        own = self.original(name)
        layer, _, leaf = own.rpartition(".")
        widths, lora = self._widths.get(layer), self._factors.get(layer)
        if widths is None or leaf == "bias":
            value = self.exact(name).float() if leaf == "bias" else self.base_tensor(own).float()
        else:
            sliced = self.base_tensor(own, widths.rows, widths.columns)
            value = _merged_in_blocks(sliced, widths, lora)
        if damage := describe_damage(value):
            self._damaged[own] = damage
        return value

    def refuse_not_finite(self) -> None:
        """Check the tensors computed so far."""
        errors = []
        for name, damage in self._damaged.items():
            stored = self._name_in_base(name)
            merged = name in self.adapter.replaced or not describe_damage(self.base.read(stored))
            adapter = self.source.adapter.folder if merged and self.source.adapter else None
            where = f"after merging {adapter_file(adapter)} at the scale in {CONFIG}" if adapter else None
            errors.append(f"{name}: {damage}, {where or f'in {self.base.file_of(stored).name}'}")
        raise_all(f"{self.source.base.folder}: the weights are damaged:", errors, "Download or train them again.")

    def config(self, dtype: str = "float32") -> dict[str, Any]:
        """Content of the materialized model's config.json.

        A width that all layers share is written in its own field; unequal ones go to `per_layer_config` (transformers 5.6), for
        the layers that differ from the most frequent width. A field that lists the widths of all layers stays a list. Removed
        blocks go to a field of our own. Layers removed whole leave no trace but their number.
        """
        content = self.source.base_config()
        for private in ("_name_or_path", "_model_name_or_path", "torch_dtype", "per_layer_config", REMOVED):
            content.pop(private, None)
        content["dtype"] = dtype
        if self.untied:
            content["tie_word_embeddings"] = False
        architecture = self.source.architecture
        numbers, fields = self.subnetwork.numbers, self.subnetwork.layer_fields()
        layers = [fields[index] for index in numbers]
        if len(layers) < architecture.config.num_hidden_layers:
            lists = {name: getattr(architecture.config, name, None) for name in _PER_LAYER}
            content |= {name: [value[index] for index in numbers] for name, value in lists.items() if value}
            spellings = next(names for names in architecture.family.sizes if "num_hidden_layers" in names)
            content |= {name: len(layers) for name in spellings if name in content}
        common = architecture.family.whole_fields(architecture.config)
        listed = {name for name in architecture.family.own_fields if isinstance(content.get(name), list)}
        for name in listed:
            content[name] = [fields[index].get(name, content[name][index]) for index in numbers]
        layers = [{name: value for name, value in layer.items() if name not in listed} for layer in layers]
        for name in architecture.family.own_fields - listed:
            counts = Counter(layer[name] for layer in layers if name in layer)
            common[name] = counts.most_common(1)[0][0] if counts else common[name]
            content[name] = common[name]
        unequal = {
            str(index): {field: value for field, value in layer.items() if value != common[field]}
            for index, layer in enumerate(layers)
            if any(value != common[field] for field, value in layer.items())
        }
        if unequal:
            content["per_layer_config"] = unequal
        removed = {*architecture.removed, *self.subnetwork.removed}
        kept = {layer for index, layer in enumerate(architecture.layers) if index in numbers}
        parts = [path for path in architecture.all_blocks if path in removed and architecture.split(path)[0] in kept]
        if parts:
            content[REMOVED] = [architecture.renumber(path, numbers) for path in parts]
        return content


def write_weights(
    model: MaterializedModel, folder: Path, dtype: torch.dtype, done: Callable[[float], None] = lambda _: None
) -> None:
    """Write the weights as safetensors in `dtype` (the only rounding after fp32), with one shard in memory at a time."""
    overflowed = []

    def read(name: str) -> torch.Tensor:
        tensor = model.tensor(name).to(dtype)
        if dtype == torch.float16 and tensor.isinf().any():
            overflowed.append(f"{name}: overflows fp16")
        return tensor

    write_shards(folder, model.shapes, dict.fromkeys(model.shapes, dtype), read, done)
    model.refuse_not_finite()
    raise_all("The weights do not fit the dtype:", overflowed, "Choose fp32 or bf16.")
