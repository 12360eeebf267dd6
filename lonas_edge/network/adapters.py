"""PEFT LoRA adapters: configuration and factors. Anything that cannot be merged correctly is refused by name."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils.other import get_pattern_key

from lonas_edge.errors import LonasEdgeError, raise_all
from lonas_edge.families import FAMILIES
from lonas_edge.files import read_by, read_json
from lonas_edge.network.checkpoints import TensorFiles, describe_damage, load_tensors
from lonas_edge.space.architecture import Architecture
from lonas_edge.space.elasticity import Elasticity

CONFIG, SAFETENSORS, PICKLE = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"

# Fields of a LoRA configuration that are honoured here or that do not change what the adapter computes. Any other field
# that is set is refused: a new PEFT method must not be merged as if it were plain LoRA.
_HONOURED = {
    *("peft_type", "task_type", "auto_mapping", "base_model_name_or_path", "revision", "inference_mode", "peft_version"),
    *("r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "lora_dropout", "bias", "lora_bias"),
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "modules_to_save"),
    *("ensure_weight_tying", "init_lora_weights", "runtime_config"),
    *("eva_config", "corda_config", "lora_ga_config", "loftq_config"),  # PEFT reads them to initialize the factors only
    "fan_in_fan_out",  # PEFT resets it for nn.Linear, which all layers of the supported families are
    *("megatron_core", "qalora_group_size"),  # defaults of methods that other fields switch on
}
_PLAIN_INITIALIZATIONS = (True, False, "gaussian", "eva", "orthogonal")  # the others rewrite the base weight
_PREFIX = "base_model.model."
Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class AdapterConfig:
    """A LoRA adapter's configuration. `lora` is PEFT's own reading of it."""

    path: Path
    lora: LoraConfig

    @classmethod
    def read(cls, folder: Path) -> "AdapterConfig":
        """Read `adapter_config.json` of an adapter's directory."""
        path = folder / CONFIG
        content = read_json(path)
        if content.get("peft_type") != "LORA":
            raise LonasEdgeError(f"{path}: peft_type {content.get('peft_type')!r} is not supported; expected 'LORA'")
        errors = [
            f"{name} = {value!r}: changes what the adapter computes in a way that cannot be sliced and merged"
            for name, value in content.items()
            if name not in _HONOURED and _is_set(name, value)
        ]
        initialization = content.get("init_lora_weights", True)
        if initialization not in _PLAIN_INITIALIZATIONS:
            errors.append(
                f"init_lora_weights = {initialization!r}: rewrites the base weights; save the adapter converted to plain "
                "LoRA (path_initial_model_for_weight_conversion in PEFT's save_pretrained)"
            )
        raise_all(f"{path}: unsupported adapter:", errors, "Merge it with PEFT first, or train plain LoRA.")
        known = {name: value for name, value in content.items() if name in LoraConfig.__dataclass_fields__}
        with read_by("peft", path):
            return cls(path, LoraConfig(**known))

    def ranks(self, architecture: Architecture) -> dict[str, int]:
        """The adapter's rank by module path, for each linear layer that has one."""
        named = bool(self.lora.target_modules)  # PEFT writes what it chose where nothing was named
        with read_by("peft", self.path):  # an invalid regular expression
            if named and check_target_module_exists(self.lora, architecture.family.embedding) is True:
                raise LonasEdgeError(
                    f"{self.path}: an adapter on {architecture.family.embedding} is not supported; merge it first"
                )
            targets = [name for name in architecture.linears if named and self._is_target(architecture, name)]
            ranks = {name: int(self._pattern(self.lora.rank_pattern, name, self.lora.r)) for name in targets}
        if not ranks:
            raise LonasEdgeError(
                f"{self.path}: target_modules {self.lora.target_modules!r} name no linear layer of this "
                f"{architecture.model_type} model"
            )
        return ranks

    def _is_target(self, architecture: Architecture, name: str) -> bool:
        if self.lora.target_modules == "all-linear":  # PEFT leaves the output layer out
            return not architecture.in_head(name)
        return bool(check_target_module_exists(self.lora, name))

    def _pattern(self, patterns: Mapping[str, Any], name: str, default: Any) -> Any:
        return patterns.get(get_pattern_key(list(patterns), name), default)

    def scale(self, name: str) -> float:
        """The factor of B·A: alpha / r, or alpha / sqrt(r) with rsLoRA (Kalajdzievski 2023).

        It is that of the super-adapter for every elastic rank: slicing a rank does not change it.
        """
        rank = self._pattern(self.lora.rank_pattern, name, self.lora.r)
        alpha = self._pattern(self.lora.alpha_pattern, name, self.lora.lora_alpha)
        return float(alpha / rank**0.5 if self.lora.use_rslora else alpha / rank)

    def replaced(self, architecture: Architecture) -> Shapes:
        """Shapes of the base's tensors that the adapter replaces: trained biases, and `modules_to_save` outside its layers."""
        ranks = self.ranks(architecture)
        of_layers = {f"{name}.weight" for name in architecture.linears if not architecture.in_head(name)}
        modules = tuple(self.lora.modules_to_save or ())
        shapes: Shapes = {}
        for name, shape in (architecture.shapes | architecture.head).items():
            owner = name.rpartition(".")[0]
            trained = self.lora.bias == "all" or (self.lora.bias == "lora_only" and owner in ranks)
            saved = name not in of_layers and any(path.endswith(modules) for path in _paths(owner))  # as PEFT
            if saved or (trained and name.endswith(".bias")):
                shapes[name] = shape
        return shapes

    def unties(self, architecture: Architecture) -> bool:
        """Whether merging gives the head of a tied base a weight of its own."""
        if not architecture.tied or self.lora.ensure_weight_tying:
            return False
        replaced, family = self.replaced(architecture), architecture.family
        tables = (f"{family.head}.weight", f"{family.embedding}.weight")
        return family.head in self.ranks(architecture) or any(name in replaced for name in tables)


def _is_set(name: str, value: Any) -> bool:
    """Whether a field switches something on; the empty configuration of a method (`kasa_config`) does, with its defaults."""
    if value == {}:
        field = LoraConfig.__dataclass_fields__.get(name)
        return field is not None and field.default is None
    return value not in (None, False, 0, "", [])


def _paths(module: str) -> list[str]:
    """A module's path, and those of the modules that contain it."""
    parts = module.split(".")
    return [".".join(parts[:end]) for end in range(len(parts), 0, -1)]


@dataclass(frozen=True)
class LoraFactors:
    """One layer's adapter: `a` [rank, in], `b` [out, rank], `bias` [out] of lora_B or None, and the scale of b·a."""

    a: torch.Tensor
    b: torch.Tensor
    scale: float
    bias: torch.Tensor | None = None


@dataclass(frozen=True)
class Adapter:
    """A loaded adapter: factors by module path, and tensors that replace those of the base, by name."""

    factors: dict[str, LoraFactors] = field(default_factory=dict)
    replaced: dict[str, torch.Tensor] = field(default_factory=dict)


def adapter_file(folder: Path) -> Path:
    """The adapter's weights in a directory, safetensors preferred."""
    for name in (SAFETENSORS, PICKLE):
        if (folder / name).exists():
            return folder / name
    raise LonasEdgeError(f"{folder}: no adapter weights ({SAFETENSORS} or {PICKLE})")


def head_outputs(folder: Path) -> int | None:
    """Number of outputs of the classification head in an adapter; None without one, or without weights."""
    heads = {f"{family.head}.weight" for family in FAMILIES if family.kind.new_head}
    if not any((folder / name).exists() for name in (SAFETENSORS, PICKLE)):
        return None
    for key, shape in TensorFiles.of_file(adapter_file(folder)).shapes.items():
        if plain_name(key) in heads:
            return shape[0]
    return None


def plain_name(key: str) -> str:
    """A key of an adapter file or PEFT model without prefix, adapter name and wrappers of PEFT."""
    name = key.removeprefix(_PREFIX)
    for wrapper in (".base_layer", ".modules_to_save.default", ".modules_to_save"):
        name = name.replace(f"{wrapper}.", ".")
    for factor in (".lora_A", ".lora_B"):
        name = name.replace(f"{factor}.default.", f"{factor}.")
    return name


def load_adapter(folder: Path, config: AdapterConfig, architecture: Architecture, base: TensorFiles) -> Adapter:
    """Load an adapter and compare every tensor with the base model; copies of the base's own embedding and head are dropped."""
    path, family = adapter_file(folder), architecture.family
    tensors = {}
    for key, tensor in load_tensors(path).items():
        # PEFT also adapts parts that the model lacks, such as the pooler of an embedding model
        if not (".lora_" in key and plain_name(key).startswith(family.other_heads)):
            tensors[plain_name(key)] = tensor
    shapes = _Expected(architecture, config)
    errors = [f"{name}: missing; expected {list(shape)}" for name, shape in shapes.required.items() if name not in tensors]
    for name, tensor in tensors.items():
        wanted = shapes.known.get(name)
        if wanted is None:
            errors.append(f"{name}: unexpected; found {list(tensor.shape)}")
        elif tuple(tensor.shape) != wanted:
            errors.append(f"{name}: expected {list(wanted)}, found {list(tensor.shape)}")
        elif damage := describe_damage(tensor):
            errors.append(f"{name}: {damage}")
        elif name in shapes.copies and not _is_copy(name, tensor, base, architecture):
            errors.append(
                f"{name}: differs from the base's; add it to modules_to_save in {CONFIG} if it was trained, or remove it"
            )
    advice = "Is --model the base it was trained on? Is the file complete?"
    if family.kind.generates and any(error.startswith((f"{family.embedding}.", f"{family.head}.")) for error in errors):
        advice += (
            " If the vocabulary of the base was trimmed, pass the untrimmed one: the adapter has its own embedding or head, or "
            "copies of the base's, which save_pretrained(…, save_embedding_layers=False) leaves out."
        )
    raise_all(f"{path}: the adapter does not fit the base model ({architecture.model_type}):", errors, advice)
    factors = {
        name: LoraFactors(
            tensors[f"{name}.lora_A.weight"],
            tensors[f"{name}.lora_B.weight"],
            config.scale(name),
            tensors.get(f"{name}.lora_B.bias"),
        )
        for name in shapes.ranks
    }
    replaced = {name: tensor for name, tensor in tensors.items() if name in shapes.replaced or name in shapes.optional}
    return Adapter(factors, replaced)


class _Expected:
    """Shapes of the tensors that an adapter's file may have, by name."""

    def __init__(self, architecture: Architecture, config: AdapterConfig):
        self.ranks, self.replaced = config.ranks(architecture), config.replaced(architecture)
        embedding, head = f"{architecture.family.embedding}.weight", architecture.family.head
        self.required = dict(self.replaced)
        for name, rank in self.ranks.items():
            linear = architecture.linears[name]
            self.required[f"{name}.lora_A.weight"] = (rank, linear.in_features)
            self.required[f"{name}.lora_B.weight"] = (linear.out_features, rank)
            if config.lora.lora_bias:
                self.required[f"{name}.lora_B.bias"] = (linear.out_features,)
        # PEFT saves the head again where it has an adapter, or is tied to a trained embedding
        repeated = head in self.ranks or (config.lora.ensure_weight_tying and embedding in self.replaced)
        self.optional = architecture.head if repeated else {}
        everything, others = architecture.shapes | architecture.head, self.required | self.optional
        # with `save_embedding_layers`, PEFT saves both tables untrained
        self.copies = {name: everything[name] for name in architecture.token_tables if name not in others}
        self.known = others | self.copies


def _is_copy(name: str, tensor: torch.Tensor, base: TensorFiles, architecture: Architecture) -> bool:
    """Whether a tensor is the base's; a tied head is the embedding. PEFT would load rounded ones over the base's."""
    stored = base.read(name if name in base.shapes else f"{architecture.family.embedding}.weight")
    return torch.equal(stored.float(), tensor.float())


def rank_errors(elasticity: Elasticity, ranks: Mapping[str, int]) -> list[str]:
    """Elastic ranks that an adapter of these ranks does not have: one line for each pair of ranks that do not fit."""
    modules: dict[tuple[int, int], list[str]] = {}
    for name, index in elasticity.rank_group.items():
        own, widest = ranks.get(name, 0), elasticity.space.groups[index].widths[0]
        if own < widest:
            modules.setdefault((own, widest), []).append(name)
    return [
        f"{f'adapter rank {own}' if own else 'no adapter'}, search space rank {widest}, in {len(names)} "
        f"module{'s' * (len(names) > 1)}: {names[0]}{', …' * (len(names) > 1)}"
        for (own, widest), names in modules.items()
    ]
