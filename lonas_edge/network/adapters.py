"""PEFT LoRA adapters: configuration and factors. Anything that cannot be merged correctly is refused by name."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from re import _parser  # type: ignore[attr-defined]
from reprlib import repr as shortened
from typing import Any

import torch
from peft import LoraConfig
from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils.other import get_pattern_key
from safetensors.torch import load_file

from lonas_edge.errors import LonasEdgeError, raise_all
from lonas_edge.families import FAMILIES
from lonas_edge.files import read_by, read_json
from lonas_edge.network.checkpoints import FLOATS, TensorFiles, load_pickle, number_fault, read_damaged, stored_shapes
from lonas_edge.network.configuration import AdapterFields
from lonas_edge.schema import field_faults
from lonas_edge.space.architecture import Architecture
from lonas_edge.space.elasticity import Elasticity

CONFIG, SAFETENSORS, PICKLE = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"

# Fields of a LoRA configuration that are honoured here or that do not change what the adapter computes. Any other field
# that is set is refused: a new PEFT method must not be merged as if it were plain LoRA.
_HONOURED = {
    *(
        "peft_type",
        "task_type",
        "auto_mapping",
        "base_model_name_or_path",
        "revision",
        "inference_mode",
        "peft_version",
    ),
    *("r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "lora_dropout", "bias", "lora_bias"),
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "modules_to_save"),
    *("ensure_weight_tying", "init_lora_weights", "runtime_config"),
    *("eva_config", "corda_config", "lora_ga_config", "loftq_config"),  # PEFT reads them to initialize the factors only
    "fan_in_fan_out",  # PEFT resets it for nn.Linear, which all layers of the supported families are
    *("megatron_core", "qalora_group_size"),  # defaults of methods that other fields switch on
}
_PLAIN_INITIALIZATIONS = (True, False, "gaussian", "eva", "orthogonal")  # the others rewrite the base weight
_PREFIX = "base_model.model."


def _is_set(name: str, value: Any) -> bool:
    """Whether a field switches something on; the empty configuration of a method (`kasa_config`) does, with its defaults."""
    if value == {}:
        field = LoraConfig.__dataclass_fields__.get(name)
        return field is not None and field.default is None
    return value not in (None, False, 0, "", [])


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
        refused = [
            f"{name} = {value!r}: changes what the adapter computes in a way that cannot be sliced and merged"
            for name, value in content.items()
            if name not in _HONOURED and _is_set(name, value)
        ]
        faults = field_faults(AdapterFields, content) or _pattern_faults(content)
        raise_all(f"{path}: not a valid LoRA configuration:", faults, "Use the file that was saved with the adapter.")
        initialization = content.get("init_lora_weights", True)
        if initialization not in _PLAIN_INITIALIZATIONS:
            refused.append(
                f"init_lora_weights = {initialization!r}: rewrites the base weights; save the adapter converted to plain "
                "LoRA (path_initial_model_for_weight_conversion in PEFT's save_pretrained)"
            )
        raise_all(
            f"{path}: unsupported adapter:",
            refused,
            "Merge it with PEFT first, or train plain LoRA.",
        )
        known = {name: value for name, value in content.items() if name in LoraConfig.__dataclass_fields__}
        with read_by("peft", path):
            return cls(path, LoraConfig(**known))

    def ranks(self, architecture: Architecture) -> dict[str, int]:
        """The adapter's rank by module path, for each linear layer that has one."""
        named = bool(self.lora.target_modules)  # PEFT writes what it chose where nothing was named
        if named and check_target_module_exists(self.lora, architecture.family.embedding) is True:
            raise LonasEdgeError(f"{self.path}: an adapter on {architecture.family.embedding} is not supported; merge it first")
        targeted = [name for name in architecture.linears if named and self._targets(architecture, name)]
        ranks = {name: self._pattern("rank", name) for name in targeted}
        if not ranks:
            raise LonasEdgeError(
                f"{self.path}: target_modules {self.lora.target_modules!r} name no linear layer of this "
                f"{architecture.model_type} model"
            )
        return ranks

    def _targets(self, architecture: Architecture, name: str) -> bool:
        if self.lora.target_modules == "all-linear":  # PEFT leaves the output layer out
            return not architecture.in_head(name)
        return check_target_module_exists(self.lora, name) is not None and bool(check_target_module_exists(self.lora, name))

    def _pattern(self, kind: str, name: str) -> Any:
        patterns, default = (
            (self.lora.rank_pattern, self.lora.r) if kind == "rank" else (self.lora.alpha_pattern, self.lora.lora_alpha)
        )
        return patterns.get(get_pattern_key(list(patterns), name), default)

    def scale(self, name: str) -> float:
        """The factor of B·A: alpha / r, or alpha / sqrt(r) with rsLoRA (Kalajdzievski 2023).

        It is that of the super-adapter for every elastic rank: slicing a rank does not change it.
        """
        rank, alpha = self._pattern("rank", name), self._pattern("alpha", name)
        return float(alpha / rank**0.5 if self.lora.use_rslora else alpha / rank)

    def replaced(self, architecture: Architecture) -> dict[str, tuple[int, ...]]:
        """Shapes of the base's tensors that the adapter replaces."""
        return _replaced_shapes(architecture, self, self.ranks(architecture))

    def unties(self, architecture: Architecture) -> bool:
        """Whether merging gives the head of a tied base a weight of its own."""
        if not architecture.tied or self.lora.ensure_weight_tying:
            return False
        ranks = self.ranks(architecture)
        head, embedding = architecture.family.head, f"{architecture.family.embedding}.weight"
        replaced = self.replaced(architecture)
        return head in ranks or f"{head}.weight" in replaced or embedding in replaced


def _pattern_faults(content: Mapping[str, Any]) -> list[str]:
    """Check the patterns that PEFT matches module names with: regular expressions whose matching ends."""
    whole = [content.get(name) for name in ("target_modules", "exclude_modules")]
    patterns = [pattern for pattern in whole if isinstance(pattern, str)] + list(content.get("modules_to_save") or ())
    patterns += [*(content.get("rank_pattern") or ()), *(content.get("alpha_pattern") or ())]
    listed = content.get("layers_pattern") or ()
    patterns += [listed] if isinstance(listed, str) else listed
    faults = []
    for pattern in patterns:
        try:
            if _explodes(_parser.parse(pattern)):
                faults.append(f"{shortened(pattern)}: matching may not terminate; remove the repetition inside a repetition")
        except (re.error, RecursionError, OverflowError) as error:
            faults.append(f"{shortened(pattern)}: not a regular expression: {error}")
    return faults


def _explodes(parsed: Any, repeated: bool = False) -> bool:
    """Whether an unbounded repetition contains several ways to match: their number then grows exponentially."""
    for kind, argument in parsed:
        unbounded = kind in (_parser.MAX_REPEAT, _parser.MIN_REPEAT) and argument[1] > 10
        if repeated and (unbounded or kind is _parser.BRANCH):
            return True
        parts = argument if isinstance(argument, (tuple, list)) else (argument,)
        inner = [part for part in parts if isinstance(part, _parser.SubPattern)]
        inner += [part for parts in parts if isinstance(parts, list) for part in parts if isinstance(part, _parser.SubPattern)]
        if any(_explodes(part, repeated or unbounded) for part in inner):
            return True
    return False


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
    shapes = {plain_name(key): shape for key, shape in stored_shapes(adapter_file(folder)).items()}
    return next((shape[0] for name, shape in shapes.items() if name in heads and len(shape) == 2 and shape[0] > 0), None)


def _read_tensors(path: Path) -> dict[str, torch.Tensor]:
    if path.suffix != ".safetensors":
        return load_pickle(path)
    with read_damaged(path):
        return load_file(path)


def plain_name(key: str) -> str:
    """A key of an adapter file or PEFT model without prefix, adapter name and wrappers of PEFT."""
    name = key.removeprefix(_PREFIX)
    for wrapper in (".base_layer", ".modules_to_save.default", ".modules_to_save"):
        name = name.replace(f"{wrapper}.", ".")
    for factor in (".lora_A", ".lora_B"):
        name = name.replace(f"{factor}.default.", f"{factor}.")
    return name


def _of_other_head(key: str, architecture: Architecture) -> bool:
    """Whether a key is a LoRA factor of a part that the model lacks: PEFT also adapts the pooler of an embedding model."""
    return ".lora_" in key and plain_name(key).startswith(architecture.family.other_heads)


def load_adapter(folder: Path, config: AdapterConfig, architecture: Architecture, base: TensorFiles) -> Adapter:
    """Load an adapter and compare every tensor with the base model; copies of the base's own embedding and head are dropped."""
    path, ranks = adapter_file(folder), config.ranks(architecture)
    stored = {key: tensor for key, tensor in _read_tensors(path).items() if not _of_other_head(key, architecture)}
    tensors = {plain_name(key): tensor for key, tensor in stored.items()}
    twice = [name for name, count in Counter(map(plain_name, stored)).items() if count > 1]
    saved = _replaced_shapes(architecture, config, ranks)
    expected = _expected_shapes(architecture, ranks, config.lora.lora_bias) | saved
    optional = _repeated_head(architecture, config, ranks, saved)
    copies = _copied_shapes(architecture, expected | optional)
    known = expected | optional | copies
    problems = [f"{name}: stored more than once" for name in twice]
    problems += [f"{name}: missing; expected {list(shape)}" for name, shape in expected.items() if name not in tensors]
    for name, tensor in tensors.items():
        wanted = known.get(name)
        if wanted is None:
            problems.append(f"{name}: unexpected; found {list(tensor.shape)}")
        elif tuple(tensor.shape) != wanted:
            problems.append(f"{name}: expected {list(wanted)}, found {list(tensor.shape)}")
        elif str(tensor.dtype).removeprefix("torch.") not in FLOATS:
            problems.append(f"{name}: dtype {tensor.dtype}; expected {', '.join(FLOATS)}")
        elif fault := number_fault(tensor):
            problems.append(f"{name}: {fault}")
        elif name in copies and not _is_copy(name, tensor, base, architecture):
            problems.append(
                f"{name}: differs from the base's; add it to modules_to_save in {CONFIG} if it was trained, or remove it"
            )
    advice = "Is --model the base it was trained on? Is the file complete?"
    tables = f"{architecture.family.embedding}.", f"{architecture.family.head}."
    if architecture.family.kind.generates and any(problem.startswith(tables) for problem in problems):
        advice += (
            " If the vocabulary of the base was trimmed, pass the untrimmed one: the adapter has its own embedding or head, or "
            "copies of the base's, which save_pretrained(…, save_embedding_layers=False) leaves out."
        )
    raise_all(f"{path}: the adapter does not fit the base model ({architecture.model_type}):", problems, advice)
    factors = {
        name: LoraFactors(
            tensors[f"{name}.lora_A.weight"],
            tensors[f"{name}.lora_B.weight"],
            config.scale(name),
            tensors.get(f"{name}.lora_B.bias"),
        )
        for name in ranks
    }
    replaced = {name: tensor for name, tensor in tensors.items() if name in saved or name in optional}
    return Adapter(factors, replaced)


def rank_misfits(elasticity: Elasticity, ranks: Mapping[str, int]) -> list[str]:
    """Elastic ranks that an adapter of these ranks does not have: one line for each pair of ranks that do not fit."""
    misfits: dict[tuple[int, int], list[str]] = {}
    for name, index in elasticity.rank_group.items():
        own, widest = ranks.get(name, 0), elasticity.space.groups[index].widths[0]
        if own < widest:
            misfits.setdefault((own, widest), []).append(name)
    return [
        f"{f'adapter rank {own}' if own else 'no adapter'}, search space rank {widest}, in {len(names)} "
        f"module{'s' * (len(names) > 1)}: {names[0]}{', …' * (len(names) > 1)}"
        for (own, widest), names in misfits.items()
    ]


def _expected_shapes(architecture: Architecture, ranks: dict[str, int], lora_bias: bool) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for name, rank in ranks.items():
        linear = architecture.linears[name]
        shapes[f"{name}.lora_A.weight"] = (rank, linear.in_features)
        shapes[f"{name}.lora_B.weight"] = (linear.out_features, rank)
        if lora_bias:
            shapes[f"{name}.lora_B.bias"] = (linear.out_features,)
    return shapes


def _replaced_shapes(architecture: Architecture, config: AdapterConfig, ranks: dict[str, int]) -> dict[str, tuple[int, ...]]:
    """Base tensors that the adapter replaces: trained biases, and `modules_to_save` outside the decoder's linears."""
    shapes = architecture.shapes | architecture.head
    inner = {f"{name}.weight" for name in architecture.linears if not architecture.in_head(name)}
    modules = tuple(config.lora.modules_to_save or ())
    replaced = {}
    for name, shape in shapes.items():
        owner = name.rpartition(".")[0]
        trained = config.lora.bias == "all" or (config.lora.bias == "lora_only" and owner in ranks)
        whole = name not in inner and bool(modules) and any(path.endswith(modules) for path in _paths(owner))  # as PEFT
        if whole or (trained and name.endswith(".bias")):
            replaced[name] = shape
    return replaced


def _paths(module: str) -> Iterator[str]:
    """A module's path, and those of the modules that contain it."""
    while module:
        yield module
        module = module.rpartition(".")[0]


def _repeated_head(
    architecture: Architecture, config: AdapterConfig, ranks: dict[str, int], saved: dict[str, tuple[int, ...]]
) -> dict[str, tuple[int, ...]]:
    """The head's weight where PEFT saves it again: with an adapter on it, or with the embedding it stays tied to."""
    stays_tied = config.lora.ensure_weight_tying and f"{architecture.family.embedding}.weight" in saved
    return architecture.head if stays_tied or architecture.family.head in ranks else {}


def _copied_shapes(architecture: Architecture, others: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """The embedding and head that PEFT saves untrained, too, with `save_embedding_layers`."""
    shapes = architecture.shapes | architecture.head
    return {name: shapes[name] for name in architecture.token_tables if name not in others}


def _is_copy(name: str, tensor: torch.Tensor, base: TensorFiles, architecture: Architecture) -> bool:
    """Whether a tensor is the base's; a tied head is the embedding. PEFT would load rounded ones over the base's."""
    stored = base.read(name if name in base.shapes else f"{architecture.family.embedding}.weight")
    return torch.equal(stored.float(), tensor.float())
