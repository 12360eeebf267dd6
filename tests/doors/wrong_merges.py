"""Wrong merges, injected into a right one: each with a random choice of its own, None where it would change nothing."""

import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from lonas_edge.data.calibration import compared_inputs
from lonas_edge.families import Part
from lonas_edge.network.materialize import MaterializedModel, merge
from lonas_edge.network.tokenizer import load_tokenizer

Tensors = Mapping[str, Callable[[torch.Tensor], torch.Tensor]]


@dataclass(frozen=True)
class Fault:
    """A wrong merge: what becomes of some tensors, and of the configuration."""

    tensors: Tensors = field(default_factory=dict)
    config: Callable[[dict[str, Any]], Any] = lambda content: None

    @contextmanager
    def injected(self) -> Iterator[None]:
        """The merge does it wrongly meanwhile."""
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


FAULTS: dict[str, Callable[[MaterializedModel, random.Random], Fault | None]] = {}


def fault(make: Callable[[MaterializedModel, random.Random], Fault | None]) -> Callable[..., Fault | None]:
    """Enter a fault; None where a sub-network has nothing that it would change."""
    FAULTS[make.__name__] = make
    return make


def sliced_ranks(model: MaterializedModel) -> list[str]:
    """Layers with an adapter of which the sub-network has fewer ranks."""
    widths, factors = model._widths, model._factors
    return [name for name, lora in factors.items() if widths[name].rank not in (None, len(lora.a))]


def narrowed_of(model: MaterializedModel) -> dict[str, tuple[str, ...]]:
    """Consumers of which the sub-network has fewer channels, with their producers."""
    linears = model.source.architecture.linears
    return {
        consumer: producers
        for consumer, producers in model.source.architecture.producers.items()
        if model._widths[consumer].in_features < linears[consumer].in_features
    }


def _merged(model: MaterializedModel, layer: str, **changes: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    """The layer's merge with other widths or another adapter."""
    widths, lora = model._widths[layer], model._factors.get(layer)
    lora = changes.pop("lora", lora)
    widths = replace(widths, **changes)
    return lambda _: merge(model.base_tensor(f"{layer}.weight", widths.rows, widths.columns), widths, lora)


@fault
def rank_scale_of_the_sliced_rank(model: MaterializedModel, rng: random.Random) -> Fault | None:
    """alpha / r of the slice where it is alpha / R of the whole adapter."""
    layers = sliced_ranks(model)
    factors = {name: model._factors[name] for name in layers}
    scaled = {name: replace(lora, scale=lora.scale * len(lora.a) / model._widths[name].rank) for name, lora in factors.items()}
    return Fault({f"{name}.weight": _merged(model, name, lora=lora) for name, lora in scaled.items()}) if layers else None


@fault
def full_rank_in_one_layer(model: MaterializedModel, rng: random.Random) -> Fault | None:
    layers = sliced_ranks(model)
    layer = rng.choice(layers) if layers else ""
    return Fault({f"{layer}.weight": _merged(model, layer, rank=None)}) if layers else None


def _shifted(part: Part, by: Callable[[int, int], int], full: int) -> Part:
    """The part's ranges moved within their blocks."""
    block = full // len(part)
    return tuple((start + by(block, stop - start), stop + by(block, stop - start)) for start, stop in part)


def _other_channels(
    model: MaterializedModel, rng: random.Random, by: Callable[[int, int], int], whole_mlp: bool
) -> Fault | None:
    """Other channels than the first ones, in one MLP's producers and consumer, or in its consumer alone."""
    narrowed, linears = narrowed_of(model), model.source.architecture.linears
    if not narrowed:
        return None
    consumer = rng.choice(sorted(narrowed))
    columns = _shifted(model._widths[consumer].columns, by, linears[consumer].in_features)
    changed = {f"{consumer}.weight": _merged(model, consumer, columns=columns)}
    for producer in narrowed[consumer] if whole_mlp else ():
        rows = _shifted(model._widths[producer].rows, by, linears[producer].out_features)
        changed[f"{producer}.weight"] = _merged(model, producer, rows=rows)
    return Fault(changed)


@fault
def slice_off_by_one(model: MaterializedModel, rng: random.Random) -> Fault | None:
    return _other_channels(model, rng, lambda _block, _width: 1, whole_mlp=True)


@fault
def slice_off_by_one_in_one_layer(model: MaterializedModel, rng: random.Random) -> Fault | None:
    return _other_channels(model, rng, lambda _block, _width: 1, whole_mlp=False)


@fault
def last_channels(model: MaterializedModel, rng: random.Random) -> Fault | None:
    return _other_channels(model, rng, lambda block, width: block - width, whole_mlp=True)


@fault
def one_adapter_not_merged(model: MaterializedModel, rng: random.Random) -> Fault | None:
    layer = rng.choice(sorted(model._factors))
    return Fault({f"{layer}.weight": _merged(model, layer, lora=None)})


@fault
def one_adapter_merged_twice(model: MaterializedModel, rng: random.Random) -> Fault | None:
    layer = rng.choice(sorted(model._factors))
    lora = model._factors[layer]
    return Fault({f"{layer}.weight": _merged(model, layer, lora=replace(lora, scale=2 * lora.scale))})


@fault
def a_square_weight_transposed(model: MaterializedModel, rng: random.Random) -> Fault | None:
    square = [name for name, shape in model.shapes.items() if len(shape) == 2 and shape[0] == shape[1]]
    return Fault({rng.choice(square): torch.t}) if square else None


@fault
def q_and_k_swapped(model: MaterializedModel, rng: random.Random) -> Fault | None:
    """Rows of q and of k change places; with fewer key heads, the first heads of q."""
    config = model.source.architecture.config
    layer = model.source.architecture.family.layer(rng.randrange(config.num_hidden_layers))
    q, k = f"{layer}.self_attn.q_proj.weight", f"{layer}.self_attn.k_proj.weight"
    if q in model.shapes:
        exact, rows = MaterializedModel.exact, model.shapes[k][0]
        return Fault({q: lambda value: torch.cat([exact(model, k), value[rows:]]), k: lambda value: exact(model, q)[:rows]})
    separate = [f"{layer}.attention.self.{name}" for name in ("query", "key")]
    if f"{separate[0]}.weight" in model.shapes:
        (q, k), exact = separate, MaterializedModel.exact
        return Fault({f"{one}.weight": lambda _, o=other: exact(model, f"{o}.weight") for one, other in ((q, k), (k, q))})
    heads = config.num_attention_heads
    attentions = [f"{layer}.{name}.query_key_value.weight" for name in ("attention", "self_attention")]
    if fused := next((name for name in attentions if name in model.shapes), ""):  # [heads, (q, k, v), head_dim]
        order = torch.tensor([1, 0, 2])
        return Fault({fused: lambda value: value.unflatten(0, (heads, 3, -1))[:, order].flatten(0, 2)})
    fused = f"{layer}.self_attn.qkv_proj.weight"
    size = config.hidden_size // heads
    queries, keys = heads * size, config.num_key_value_heads * size

    def swapped(value: torch.Tensor) -> torch.Tensor:
        rest = value[keys:queries], value[queries + keys :]
        return torch.cat([value[queries : queries + keys], rest[0], value[:keys], rest[1]])

    return Fault({fused: swapped})


@fault
def k_and_v_swapped(model: MaterializedModel, rng: random.Random) -> Fault | None:
    layer = model.source.architecture.family.layer(rng.randrange(model.source.architecture.config.num_hidden_layers))
    pairs = [("self_attn.k_proj", "self_attn.v_proj"), ("attention.self.key", "attention.self.value")]
    known = [(k, v) for k, v in ((f"{layer}.{k}.weight", f"{layer}.{v}.weight") for k, v in pairs) if k in model.shapes]
    if not known:
        return None
    ((k, v),) = known
    exact = MaterializedModel.exact
    return Fault({k: lambda _: exact(model, v), v: lambda _: exact(model, k)})


@fault
def wrong_norm_eps(model: MaterializedModel, rng: random.Random) -> Fault | None:
    def wrong(content: dict[str, Any]) -> None:
        names = {"gpt_neox": "layer_norm_eps", "bert": "layer_norm_eps", "bloom": "layer_norm_epsilon"}
        name = names.get(content["model_type"], "rms_norm_eps")
        content[name] = 1e-6 if content.get(name, 1e-5) > 5e-6 else 1e-5

    return Fault(config=wrong)


@fault
def wrong_rope_base(model: MaterializedModel, rng: random.Random) -> Fault | None:
    if model.source.architecture.model_type in ("bloom", "bert"):  # which have none
        return None

    def wrong(content: dict[str, Any]) -> None:
        content["rope_parameters"] = _raised(content.get("rope_parameters") or {"rope_type": "default", "rope_theta": 10_000})

    return Fault(config=wrong)


def _raised(parameters: dict[str, Any]) -> dict[str, Any]:
    if "rope_theta" in parameters:
        return {**parameters, "rope_theta": parameters["rope_theta"] * 1.001}
    return {name: _raised(value) if isinstance(value, dict) else value for name, value in parameters.items()}


@fault
def a_multiplier_left_at_one(model: MaterializedModel, rng: random.Random) -> Fault | None:
    names = ("embedding_multiplier", "residual_multiplier", "attention_multiplier", "logits_scaling")
    known = [name for name in names if getattr(model.source.architecture.config, name, 1) != 1]
    chosen = rng.choice(known) if known else ""
    return Fault(config=lambda content: content.update({chosen: 1.0})) if known else None


@fault
def a_layer_with_rotation_without(model: MaterializedModel, rng: random.Random) -> Fault | None:
    """SmolLM3 rotates in some of its layers."""
    if not (rotated := getattr(model.source.architecture.config, "no_rope_layers", None)):
        return None
    place = rng.choice([index for index, one in enumerate(rotated) if one])

    def wrong(content: dict[str, Any]) -> None:
        content["no_rope_layers"] = [0 if index == place else one for index, one in enumerate(rotated)]

    return Fault(config=wrong)


@fault
def segments_swapped(model: MaterializedModel, rng: random.Random) -> Fault | None:
    name = next((one for one in model.shapes if one.endswith("token_type_embeddings.weight")), None)
    return Fault({name: lambda value: value.flip(0)}) if name else None


@fault
def the_pooler_left_out(model: MaterializedModel, rng: random.Random) -> Fault | None:
    name = next((one for one in model.shapes if one.endswith("pooler.dense.weight")), None)
    return Fault({name: lambda value: torch.eye(len(value), dtype=value.dtype)}) if name else None


@fault
def one_norm_in_another_order(model: MaterializedModel, rng: random.Random) -> Fault | None:
    layers = model.source.architecture.family.layers
    norms = [name for name in model.shapes if name.startswith(layers) and "norm" in name.lower() and name.endswith(".weight")]
    return Fault({rng.choice(norms): lambda value: value.flip(0)})


@fault
def wrong_head(model: MaterializedModel, rng: random.Random) -> Fault | None:
    """A tied head that is not the embedding but for a row's shift; an untied one that is the embedding."""
    family = model.source.architecture.family
    head, embedding, exact = f"{family.head}.weight", f"{family.embedding}.weight", MaterializedModel.exact
    if head not in model.shapes or model.shapes[head] != model.shapes[f"{family.embedding}.weight"]:  # tied, or of classes
        return Fault({head: lambda value: value.roll(1, 0)})
    return Fault({head: lambda _: exact(model, embedding)})


@fault
def wrong_bias_slice(model: MaterializedModel, rng: random.Random) -> Fault | None:
    narrowed = [producer for producers in narrowed_of(model).values() for producer in producers]
    # BERT's keys are not rotated: their bias adds the same to every score of a query, which softmax takes out again
    biased = [name for name in narrowed if f"{name}.bias" in model.shapes and not name.endswith(".self.key")]
    if not biased:
        return None
    layer = rng.choice(biased)
    rows = _shifted(model._widths[layer].rows, lambda block, width: block - width, model.base.shapes[f"{layer}.bias"][0])
    return Fault({f"{layer}.bias": lambda _: model.base_tensor(f"{layer}.bias", rows).double()})


# what no comparison of logits at a few short prompts can see; counted apart, and expected to pass


BLIND: dict[str, Callable[[MaterializedModel, random.Random], Fault | None]] = {}


def blind(make: Callable[[MaterializedModel, random.Random], Fault | None]) -> Callable[..., Fault | None]:
    """Enter a fault that is known to pass."""
    BLIND[make.__name__] = make
    return make


@blind
def an_embedding_that_no_prompt_asks_for(model: MaterializedModel, rng: random.Random) -> Fault | None:
    family, ids = model.source.architecture.family, inputs_of(model)["input_ids"]
    if model.source.architecture.tied:
        return None
    row = next(row for row in range(model.shapes[f"{family.embedding}.weight"][0]) if not (ids == row).any())

    def wrong(value: torch.Tensor) -> torch.Tensor:
        value = value.clone()
        value[row] = 0
        return value

    return Fault({f"{family.embedding}.weight": wrong})


@blind
def a_window_longer_than_the_prompts(model: MaterializedModel, rng: random.Random) -> Fault | None:
    if model.source.architecture.model_type not in ("mistral", "phi3"):
        return None
    return Fault(config=lambda content: content.update(sliding_window=inputs_of(model)["input_ids"].shape[1]))


def inputs_of(model: MaterializedModel) -> dict[str, torch.Tensor]:
    """What an export compares on, by name."""
    architecture = model.source.architecture
    return compared_inputs(architecture.family.task, load_tokenizer(model.source.base.folder), architecture.config)


# a checkpoint on disk, after the merge was right


def _stored(change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Path, str], None]:
    def write(file: Path, name: str) -> None:
        tensors = load_file(file)
        tensors[name] = change(tensors[name].clone())
        save_file(tensors, file, metadata={"format": "pt"})

    return write


def _next_to(value: torch.Tensor) -> torch.Tensor:
    flat = value.view(-1)
    place = flat.abs().argmax()
    flat[place] = torch.nextafter(flat[place], torch.tensor(float("inf")))
    return value


ON_DISK: dict[str, Callable[[Path, str], None]] = {
    "stored_rounded_twice": _stored(lambda value: value.bfloat16().float()),
    "stored_one_unit_off": _stored(_next_to),
    "stored_flipped": _stored(lambda value: value.flip(0)),
    "stored_in_another_dtype": _stored(lambda value: value.double()),
}
