"""Errors injected into a correct merge, to test the verification. Each returns None if a sub-network has nothing to change."""

import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from lonas_edge.exporting.job import compared_inputs
from lonas_edge.families import Ranges
from lonas_edge.network.materialize import MaterializedModel, merge
from lonas_edge.network.tokenizer import load_tokenizer

Change = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Injected:
    """A wrong merge: what becomes of tensors, by name, and of the configuration."""

    tensors: Mapping[str, Change] = field(default_factory=dict)
    config: Callable[[dict[str, Any]], Any] = lambda content: None

    @contextmanager
    def active(self) -> Iterator[None]:
        """Merge wrongly within this context."""
        exact, config = MaterializedModel.exact, MaterializedModel.config

        def wrong_tensor(model: MaterializedModel, name: str) -> torch.Tensor:
            value = exact(model, name)
            return self.tensors[name](value) if name in self.tensors else value

        def wrong_config(model: MaterializedModel, dtype: str = "float32") -> dict[str, Any]:
            content = config(model, dtype)
            self.config(content)
            return content

        MaterializedModel.exact, MaterializedModel.config = wrong_tensor, wrong_config
        try:
            yield
        finally:
            MaterializedModel.exact, MaterializedModel.config = exact, config


Inject = Callable[[MaterializedModel, random.Random], Injected | None]
ERRORS: dict[str, Inject] = {}
INVISIBLE: dict[str, Inject] = {}  # errors that logits at a few short prompts cannot show


def error(inject: Inject) -> Inject:
    """Register an error that the verification must catch."""
    ERRORS[inject.__name__] = inject
    return inject


def invisible(inject: Inject) -> Inject:
    """Register an error that is known to pass."""
    INVISIBLE[inject.__name__] = inject
    return inject


def sliced_ranks(model: MaterializedModel) -> list[str]:
    """Layers with an adapter of which the sub-network keeps fewer ranks."""
    return [name for name, lora in model._factors.items() if model._widths[name].rank not in (None, len(lora.a))]


def narrowed_of(model: MaterializedModel) -> dict[str, tuple[str, ...]]:
    """Layers that read fewer channels than the base's, with the layers that produce the channels."""
    architecture = model.source.architecture
    return {
        consumer: producers
        for consumer, producers in architecture.producers.items()
        if model._widths[consumer].in_features < architecture.linears[consumer].in_features
    }


def _merged(model: MaterializedModel, layer: str, **changes: Any) -> Change:
    """Merge a layer with other widths or another adapter."""
    lora = changes.pop("lora", model._factors.get(layer))
    widths = replace(model._widths[layer], **changes)
    return lambda _: merge(model.base_tensor(f"{layer}.weight", widths.rows, widths.columns), widths, lora)


def _layer(model: MaterializedModel, rng: random.Random) -> str:
    architecture = model.source.architecture
    return architecture.family.layer(rng.randrange(architecture.config.num_hidden_layers))


def _stored(model: MaterializedModel, name: str) -> Change:
    """Another tensor of the same merge, correct."""
    exact = MaterializedModel.exact
    return lambda _: exact(model, name)


@error
def scale_of_the_sliced_rank(model: MaterializedModel, rng: random.Random) -> Injected | None:
    """alpha / r with the rank of the slice; the rank of the whole adapter is correct."""
    changed = {}
    for name in sliced_ranks(model):
        lora = model._factors[name]
        scale = lora.scale * len(lora.a) / model._widths[name].rank
        changed[f"{name}.weight"] = _merged(model, name, lora=replace(lora, scale=scale))
    return Injected(changed) if changed else None


@error
def full_rank_in_one_layer(model: MaterializedModel, rng: random.Random) -> Injected | None:
    layers = sliced_ranks(model)
    layer = rng.choice(layers) if layers else ""
    return Injected({f"{layer}.weight": _merged(model, layer, rank=None)}) if layers else None


def _shifted(part: Ranges, by: Callable[[int, int], int], full: int) -> Ranges:
    """Move the ranges of a part within their blocks."""
    block = full // len(part)
    return tuple((start + by(block, stop - start), stop + by(block, stop - start)) for start, stop in part)


def _other_channels(
    model: MaterializedModel, rng: random.Random, by: Callable[[int, int], int], producers_too: bool = True
) -> Injected | None:
    """Keep other channels than the first ones: in the producers and the consumer of an MLP, or in its consumer alone."""
    narrowed, linears = narrowed_of(model), model.source.architecture.linears
    if not narrowed:
        return None
    consumer = rng.choice(sorted(narrowed))
    columns = _shifted(model._widths[consumer].columns, by, linears[consumer].in_features)
    changed = {f"{consumer}.weight": _merged(model, consumer, columns=columns)}
    for producer in narrowed[consumer] if producers_too else ():
        rows = _shifted(model._widths[producer].rows, by, linears[producer].out_features)
        changed[f"{producer}.weight"] = _merged(model, producer, rows=rows)
    return Injected(changed)


@error
def slice_off_by_one(model: MaterializedModel, rng: random.Random) -> Injected | None:
    return _other_channels(model, rng, lambda _block, _width: 1)


@error
def slice_off_by_one_in_one_layer(model: MaterializedModel, rng: random.Random) -> Injected | None:
    return _other_channels(model, rng, lambda _block, _width: 1, producers_too=False)


@error
def last_channels(model: MaterializedModel, rng: random.Random) -> Injected | None:
    return _other_channels(model, rng, lambda block, width: block - width)


@error
def adapter_not_merged(model: MaterializedModel, rng: random.Random) -> Injected | None:
    layer = rng.choice(sorted(model._factors))
    return Injected({f"{layer}.weight": _merged(model, layer, lora=None)})


@error
def adapter_merged_twice(model: MaterializedModel, rng: random.Random) -> Injected | None:
    layer = rng.choice(sorted(model._factors))
    lora = model._factors[layer]
    return Injected({f"{layer}.weight": _merged(model, layer, lora=replace(lora, scale=2 * lora.scale))})


@error
def square_weight_transposed(model: MaterializedModel, rng: random.Random) -> Injected | None:
    square = [name for name, shape in model.shapes.items() if len(shape) == 2 and shape[0] == shape[1]]
    return Injected({rng.choice(square): torch.t}) if square else None


def _attention(model: MaterializedModel, layer: str) -> tuple[str, ...]:
    """Weights of q, k and v of a layer; one name if they are fused."""
    candidates = [
        tuple(f"{layer}.self_attn.{name}_proj.weight" for name in "qkv"),
        tuple(f"{layer}.attention.self.{name}.weight" for name in ("query", "key", "value")),
        *((f"{layer}.{name}.weight",) for name in ("attention.query_key_value", "self_attention.query_key_value")),
        (f"{layer}.self_attn.qkv_proj.weight",),
    ]
    return next(names for names in candidates if names[0] in model.shapes)


@error
def q_and_k_swapped(model: MaterializedModel, rng: random.Random) -> Injected | None:
    """Swap the rows of q and k; with fewer key heads, those of the first query heads."""
    config = model.source.architecture.config
    names, heads = _attention(model, _layer(model, rng)), config.num_attention_heads
    if len(names) == 3:
        (q, k, _), exact = names, MaterializedModel.exact
        rows = model.shapes[k][0]
        return Injected({q: lambda value: torch.cat([exact(model, k), value[rows:]]), k: lambda value: exact(model, q)[:rows]})
    (fused,) = names
    if fused.endswith("query_key_value.weight"):  # [heads, (q, k, v), head_dim]
        order = torch.tensor([1, 0, 2])
        return Injected({fused: lambda value: value.unflatten(0, (heads, 3, -1))[:, order].flatten(0, 2)})
    queries, keys = config.hidden_size, config.num_key_value_heads * config.hidden_size // heads

    def swapped(value: torch.Tensor) -> torch.Tensor:
        q, k, v = value[:queries], value[queries : queries + keys], value[queries + keys :]
        return torch.cat([k, q[keys:], q[:keys], v])

    return Injected({fused: swapped})


@error
def k_and_v_swapped(model: MaterializedModel, rng: random.Random) -> Injected | None:
    names = _attention(model, _layer(model, rng))
    return Injected({names[1]: _stored(model, names[2]), names[2]: _stored(model, names[1])}) if len(names) == 3 else None


@error
def wrong_norm_eps(model: MaterializedModel, rng: random.Random) -> Injected | None:
    names = {"gpt_neox": "layer_norm_eps", "bert": "layer_norm_eps", "bloom": "layer_norm_epsilon"}
    name = names.get(model.source.architecture.model_type, "rms_norm_eps")
    return Injected(config=lambda content: content.update({name: 1e-6 if content.get(name, 1e-5) > 5e-6 else 1e-5}))


@error
def wrong_rope_base(model: MaterializedModel, rng: random.Random) -> Injected | None:
    if model.source.architecture.model_type in ("bloom", "bert"):  # without rotary embeddings
        return None

    def raised(parameters: dict[str, Any]) -> dict[str, Any]:
        if "rope_theta" in parameters:
            return {**parameters, "rope_theta": parameters["rope_theta"] * 1.001}
        return {name: raised(value) if isinstance(value, dict) else value for name, value in parameters.items()}

    default = {"rope_type": "default", "rope_theta": 10_000}
    return Injected(config=lambda content: content.update(rope_parameters=raised(content.get("rope_parameters") or default)))


@error
def multiplier_of_one(model: MaterializedModel, rng: random.Random) -> Injected | None:
    """Drop one of Granite's multipliers."""
    names = ("embedding_multiplier", "residual_multiplier", "attention_multiplier", "logits_scaling")
    known = [name for name in names if getattr(model.source.architecture.config, name, 1) != 1]
    chosen = rng.choice(known) if known else ""
    return Injected(config=lambda content: content.update({chosen: 1.0})) if known else None


@error
def layer_without_rotation(model: MaterializedModel, rng: random.Random) -> Injected | None:
    """Remove the rotary embedding of one of SmolLM3's layers that have one."""
    rotated = getattr(model.source.architecture.config, "no_rope_layers", None)
    if not rotated:
        return None
    layer = rng.choice([index for index, value in enumerate(rotated) if value])
    wrong = [0 if index == layer else value for index, value in enumerate(rotated)]
    return Injected(config=lambda content: content.update(no_rope_layers=wrong))


@error
def segments_swapped(model: MaterializedModel, rng: random.Random) -> Injected | None:
    name = next((name for name in model.shapes if name.endswith("token_type_embeddings.weight")), None)
    return Injected({name: lambda value: value.flip(0)}) if name else None


@error
def pooler_removed(model: MaterializedModel, rng: random.Random) -> Injected | None:
    name = next((name for name in model.shapes if name.endswith("pooler.dense.weight")), None)
    return Injected({name: lambda value: torch.eye(len(value), dtype=value.dtype)}) if name else None


@error
def norm_in_another_order(model: MaterializedModel, rng: random.Random) -> Injected | None:
    layers = model.source.architecture.family.layers
    norms = [name for name in model.shapes if name.startswith(layers) and "norm" in name.lower() and name.endswith(".weight")]
    return Injected({rng.choice(norms): lambda value: value.flip(0)})


@error
def wrong_head(model: MaterializedModel, rng: random.Random) -> Injected | None:
    """Shift the rows of a tied head, which then is not the embedding; replace an untied head with the embedding."""
    family = model.source.architecture.family
    head, embedding = f"{family.head}.weight", f"{family.embedding}.weight"
    untied = head in model.shapes and model.shapes[head] == model.shapes[embedding]
    return Injected({head: _stored(model, embedding) if untied else lambda value: value.roll(1, 0)})


@error
def wrong_bias_slice(model: MaterializedModel, rng: random.Random) -> Injected | None:
    narrowed = [producer for producers in narrowed_of(model).values() for producer in producers]
    # the bias of BERT's keys, which are not rotated, adds the same to each score of a query, and softmax cancels it
    biased = [name for name in narrowed if f"{name}.bias" in model.shapes and not name.endswith(".self.key")]
    if not biased:
        return None
    layer = rng.choice(biased)
    rows = _shifted(model._widths[layer].rows, lambda block, width: block - width, model.base.shapes[f"{layer}.bias"][0])
    return Injected({f"{layer}.bias": lambda _: model.base_tensor(f"{layer}.bias", rows).double()})


@invisible
def embedding_of_an_unused_token(model: MaterializedModel, rng: random.Random) -> Injected | None:
    architecture, ids = model.source.architecture, inputs_of(model)["input_ids"]
    name = f"{architecture.family.embedding}.weight"
    if architecture.tied:
        return None
    kept = torch.ones(model.shapes[name][0], 1)
    kept[next(row for row in range(len(kept)) if not (ids == row).any())] = 0
    return Injected({name: lambda value: value * kept})


@invisible
def window_longer_than_the_prompts(model: MaterializedModel, rng: random.Random) -> Injected | None:
    if model.source.architecture.model_type not in ("mistral", "phi3"):
        return None
    return Injected(config=lambda content: content.update(sliding_window=inputs_of(model)["input_ids"].shape[1]))


def inputs_of(model: MaterializedModel) -> dict[str, torch.Tensor]:
    """The inputs that an export compares on, by name."""
    architecture = model.source.architecture
    return compared_inputs(architecture.family.kind, load_tokenizer(model.source.base.folder), architecture.config)


def _on_disk(change: Change) -> Callable[[Path, str], None]:
    """Change one tensor in a correct file."""

    def write(file: Path, name: str) -> None:
        tensors = load_file(file)
        tensors[name] = change(tensors[name].clone())
        save_file(tensors, file, metadata={"format": "pt"})

    return write


def _one_unit_off(value: torch.Tensor) -> torch.Tensor:
    """Every element to the next larger number; the exact value of a single one may lie halfway to it."""
    return torch.nextafter(value, torch.tensor(float("inf")))


ON_DISK: dict[str, Callable[[Path, str], None]] = {
    "stored_rounded_twice": _on_disk(lambda value: value.bfloat16().float()),
    "stored_one_unit_off": _on_disk(_one_unit_off),
    "stored_flipped": _on_disk(lambda value: value.flip(0)),
    "stored_in_another_dtype": _on_disk(lambda value: value.double()),
}
