"""Tiny random models of every supported `model_type`, with PEFT adapters and search spaces, on disk.

`TinyModels` (fixture `tiny_models`) creates each on first use in a session. Do not change them: damage a copy,
`TinySource.copied_to(tmp_path)`.
"""

import copy
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from _pytest.mark import ParameterSet
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from lonas_edge.network.source import Source, open_source
from lonas_edge.space.architecture import Architecture
from lonas_edge.space.generate import generate_space
from lonas_edge.space.subnetwork import Subnetwork

LAYERS, HIDDEN, MLP, HEADS, KV_HEADS, VOCAB = 3, 64, 128, 4, 2, 288
RANK, ALPHA = 8, 16  # scale 2.0, as published
RANKS = (8, 6)
RATIOS = (1, 0.75, 0.5)
MLP_WIDTHS = (128, 96, 64)  # 32 divides each: an INT4 group size fits
TARGETS = ["q_proj", "k_proj", "v_proj", "up_proj", "gate_proj", "down_proj"]  # as published
OTHER_TARGETS = {  # where layers have other names
    "gpt_neox": ["query_key_value", "dense_h_to_4h", "dense_4h_to_h"],
    "bloom": ["query_key_value", "dense_h_to_4h", "dense_4h_to_h"],
    "phi3": ["qkv_proj", "gate_up_proj", "down_proj"],
    "granitemoehybrid": ["q_proj", "k_proj", "v_proj", "in_proj", "input_linear", "output_linear"],
}

_COMMON = {
    "num_hidden_layers": LAYERS,
    "hidden_size": HIDDEN,
    "intermediate_size": MLP,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "vocab_size": VOCAB,
    "max_position_embeddings": 128,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
}
_FAMILIES = {
    "llama": {"model_type": "llama"},
    "mistral": {"model_type": "mistral", "sliding_window": None},
    "qwen2": {"model_type": "qwen2"},
    "qwen3": {"model_type": "qwen3", "head_dim": 24},
    "gemma": {"model_type": "gemma", "head_dim": 24},
    "gemma2": {"model_type": "gemma2", "head_dim": 16, "query_pre_attn_scalar": 16},
    "gemma3": {
        "model_type": "gemma3_text",
        "head_dim": 16,
        "query_pre_attn_scalar": 16,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        "sliding_window": 6,
    },
    "gemma3n": {
        "model_type": "gemma3n_text",
        "vocab_size_per_layer_input": VOCAB,
        "hidden_size_per_layer_input": 32,
        "head_dim": 16,
        "laurel_rank": 8,
        "altup_num_inputs": 3,
        "layer_types": ["full_attention", "sliding_attention", "sliding_attention"],
        "num_kv_shared_layers": 1,  # the third layer reads keys and values of the second
        "sliding_window": 6,
        "activation_sparsity_pattern": [0.0, 0.8, 0.0],
    },
    "neox": {"model_type": "gpt_neox", "rotary_pct": 0.5},
    "smollm3": {"model_type": "smollm3", "no_rope_layers": [1, 0, 1]},
    "olmo2": {"model_type": "olmo2"},
    "granite": {
        "model_type": "granite",
        "embedding_multiplier": 3.0,
        "residual_multiplier": 0.5,
        "attention_multiplier": 0.2,
        "logits_scaling": 0.7,
    },
    "granite4": {
        "model_type": "granitemoehybrid",
        "num_local_experts": 0,
        "use_cache": False,  # transformers 5.5 fails with one, unless `Family.repair` was called
        "shared_intermediate_size": MLP,
        "layer_types": ["attention"] * LAYERS,
        "position_embedding_type": "rope",
        "embedding_multiplier": 3.0,
        "residual_multiplier": 0.5,
        "attention_multiplier": 0.2,
        "logits_scaling": 0.7,
    },
    "granite4-mamba": {
        "model_type": "granitemoehybrid",
        "num_local_experts": 0,
        "shared_intermediate_size": MLP,
        "layer_types": ["mamba", "attention", "attention"],
        "position_embedding_type": "nope",
        "embedding_multiplier": 3.0,
        "residual_multiplier": 0.5,
        "attention_multiplier": 0.2,
        "logits_scaling": 0.7,
        "mamba_n_heads": 8,
        "mamba_d_head": 16,
        "mamba_d_state": 16,
        "mamba_chunk_size": 8,
    },
    "phi3": {"model_type": "phi3", "original_max_position_embeddings": 128},
    "bloom": {"model_type": "bloom", "hidden_size": MLP // 4},
}

# name of a case -> its model configuration. `-tied` shares head and embedding, the others do not; `llama-biased` has a bias
# on every linear layer of a decoder layer (qwen2 has one on q, k, v).
CASES = {
    name + suffix: {**_COMMON, **family, "tie_word_embeddings": tied}
    for name, family in _FAMILIES.items()
    for suffix, tied in (("", False), ("-tied", True))
}
for _name, _absent in (
    ("neox", ("num_key_value_heads",)),
    ("bloom", ("num_key_value_heads", "intermediate_size")),
    ("granite4", ("intermediate_size",)),
    ("granite4-mamba", ("intermediate_size",)),
):
    for _field in _absent:  # it has no such field
        del CASES[_name][_field], CASES[f"{_name}-tied"][_field]
CASES["llama-biased"] = {**CASES["llama"], "attention_bias": True, "mlp_bias": True}
CASES["phi3-partial"] = {**CASES["phi3"], "partial_rotary_factor": 0.75}  # as Phi-4-mini's: not all of a head is rotated
STRUCTURES = ("llama", "qwen2-tied", "gemma3", "neox", "phi3", "bloom")  # one case per structure; BERT is in `tiny_bert`


def families(*cases: str) -> list[ParameterSet]:
    """Parameters of a test over model families: `@pytest.mark.parametrize("case", families())`.

    Args:
        cases: Names from `CASES`; all of them when none is given. Those outside `STRUCTURES` are marked slow.
    """
    return [pytest.param(case, id=case, marks=() if case in STRUCTURES else pytest.mark.slow) for case in cases or tuple(CASES)]


def say_only(base: Path, characters: str, louder: str = "") -> None:
    """Let a model on disk with an untied head generate tokens of these characters only; `louder` ones have double logits."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    vocabulary = PreTrainedTokenizerFast.from_pretrained(base)
    head = model.get_output_embeddings().weight.data
    head[[token for token in range(len(vocabulary)) if not set(vocabulary.decode([token])) <= set(characters)]] = 0
    head[vocabulary.convert_tokens_to_ids(list(louder))] *= 2
    model.save_pretrained(base)


def mlp_names(case: str) -> tuple[tuple[str, ...], str]:
    """Names of the layers that widen a case's MLP, and of the one that narrows it again."""
    ungated = (("dense_h_to_4h",), "dense_4h_to_h")
    others = {"gpt_neox": ungated, "bloom": ungated, "phi3": (("gate_up_proj",), "down_proj")}
    others["granitemoehybrid"] = (("input_linear",), "output_linear")
    return others.get(CASES[case]["model_type"], (("gate_proj", "up_proj"), "down_proj"))


def has_heads(case: str) -> bool:
    """Whether the heads of all of a case's layers can be elastic."""
    return CASES[case]["model_type"] not in ("bloom", "olmo2", "gemma3n_text") and "mamba" not in CASES[case].get(
        "layer_types", ()
    )


def has_beams(case: str) -> bool:
    """Whether optimum-intel keeps apart the caches of a case's beams."""
    return CASES[case]["model_type"] != "granitemoehybrid"


def has_width_field(case: str) -> bool:
    """Whether stock transformers reads the width of a case's MLPs from config.json."""
    return CASES[case]["model_type"] != "bloom"


def layer_paths(case: str) -> tuple[str, str]:
    """Path of the list of decoder layers, and the name of attention in a layer."""
    others = {"gpt_neox": ("gpt_neox.layers", "attention"), "bloom": ("transformer.h", "self_attention")}
    return others.get(CASES[case]["model_type"], ("model.layers", "self_attn"))


def mlp_name(case: str) -> str:
    """Name of the MLP in a layer."""
    return "shared_mlp" if CASES[case]["model_type"] == "granitemoehybrid" else "mlp"


def mlp_consumers(case: str) -> list[str]:
    """Paths of the layers that narrow the MLPs again, decoder layer by decoder layer."""
    layers, _ = layer_paths(case)
    return [f"{layers}.{layer}.{mlp_name(case)}.{mlp_names(case)[1]}" for layer in range(LAYERS)]


def unused_layers(case: str) -> list[str]:
    """Paths of the linear layers that nothing reads: keys and values of the last layer, which reads those of another."""
    shares = "num_kv_shared_layers" in CASES[case]
    return [f"model.layers.{LAYERS - 1}.self_attn.{name}_proj" for name in "kv"] if shares else []


def removable_blocks(case: str) -> tuple[tuple[tuple[int, str], ...], ...]:
    """Groups of elastic depth: the first layer's attention, a whole layer, an MLP."""
    second, third = (2, 1) if unused_layers(case) else (1, 2)  # attention that is read stays
    return ((0, "attention"),), ((second, "attention"), (second, "mlp")), ((third, "mlp"),)


def block_path(case: str, layer: int, kind: str) -> str:
    """Path of a layer's attention or MLP."""
    layers, attention = layer_paths(case)
    mixer = "mamba" if CASES[case].get("layer_types", [""] * LAYERS)[layer] == "mamba" else attention
    return f"{layers}.{layer}.{mixer if kind == 'attention' else mlp_name(case)}"


@dataclass(frozen=True)
class TinySource:
    """A base, an adapter on it, and a search space, as `open_source` takes them."""

    case: str
    base: Path
    adapter: Path
    space: Path

    def groups(self) -> list[list[int]]:
        """The admissible widths of each group, from the file."""
        elasticity = json.loads(self.space.read_text())["bootstrapNAS"]["training"]["elasticity"]
        return elasticity["width"]["overwrite_groups_widths"] + [
            [1, 0] for _ in elasticity.get("lonas_edge", {}).get("blocks", [])
        ]

    def arguments(self) -> list[str]:
        """SOURCE and its options on the command line."""
        return [str(self.adapter), "--model", str(self.base), "--nncf-config", str(self.space)]

    def opened(self) -> Source:
        """The source as the package opens it."""
        return open_source(str(self.adapter), str(self.base), self.space)

    def subnetwork(self, widths: Sequence[int], name: str = "test") -> Subnetwork:
        """The package's sub-network of these widths, in group order."""
        return self.opened().subnetwork(widths, name)

    def ordered(self, folder: Path) -> "TinySource":
        """The same, with a random order of heads and MLP channels next to the adapter, which is copied to `folder`."""
        generator = torch.Generator().manual_seed(3)
        architecture, columns = self.opened().architecture, {}
        for name, unit in architecture.units.items():
            order = torch.randperm(architecture.linears[name].in_features // unit, generator=generator)
            columns[name] = (order[:, None] * unit + torch.arange(unit)).flatten()
        shutil.copytree(self.adapter, folder)
        save_file(columns, folder / "channel_order.safetensors")
        return replace(self, adapter=folder)

    def with_order(self, folder: Path, columns: Mapping[str, torch.Tensor]) -> "TinySource":
        """A copy whose search space has an order of channels."""
        copy = self.copied_to(folder)
        content = json.loads(copy.space.read_text())
        section = content["bootstrapNAS"]["training"]["elasticity"].setdefault("lonas_edge", {"version": 1})
        section["channel_order"] = {name: " ".join(map(str, channels.tolist())) for name, channels in columns.items()}
        copy.space.write_text(json.dumps(content))
        return copy

    def with_blocks(self, folder: Path, *blocks: str) -> "TinySource":
        """A copy in which these blocks can be removed, each alone."""
        copy = self.copied_to(folder)
        content = json.loads(copy.space.read_text())
        section = {"version": 1, "blocks": [[block] for block in blocks]}
        content["bootstrapNAS"]["training"]["elasticity"]["lonas_edge"] = section
        copy.space.write_text(json.dumps(content))
        return copy

    def copied_to(self, folder: Path) -> "TinySource":
        """A copy that may be damaged; the files are in `base/`, `adapter/` and `space.json`."""
        shutil.copytree(self.base, folder / "base")
        shutil.copytree(self.adapter, folder / "adapter")
        shutil.copy(self.space, folder / "space.json")
        return replace(self, base=folder / "base", adapter=folder / "adapter", space=folder / "space.json")


class TinyModels:
    """Creates the files on first use. Seeds are fixed: a case is the same model in every session."""

    def __init__(self, folder: Path):
        self.folder = folder

    def base(self, case: str, sharded: bool = False, pickled: bool = False) -> Path:
        """A Hugging Face checkpoint (fp32) with a tokenizer; `sharded` in several files, `pickled` as `.bin`."""
        folder = self.folder / f"base-{case}{'-sharded' * sharded}{'-pickled' * pickled}"
        if not folder.exists():
            model = random_model(case)
            model.save_pretrained(folder, max_shard_size="100KB" if sharded else "1GB")
            tokenizer().save_pretrained(folder)
            if pickled:
                torch.save(model.state_dict(), folder / "pytorch_model.bin")
                (folder / "model.safetensors").unlink()
        return folder

    def adapter(self, case: str, safe: bool = True, **options: object) -> Path:
        """An adapter that PEFT saved; `options` go to `LoraConfig`, over rank 8, alpha 16 and the published targets."""
        label = "-".join([case, *(f"{key}={value}" for key, value in sorted(options.items())), *([] if safe else ["bin"])])
        folder = self.folder / "adapters" / "".join(c if c.isalnum() or c in "-_=." else "_" for c in label)
        if not folder.exists():
            targets = OTHER_TARGETS.get(CASES[case]["model_type"], TARGETS)
            settings = {"r": RANK, "lora_alpha": ALPHA, "target_modules": list(targets), "task_type": "CAUSAL_LM"}
            settings |= copy.deepcopy(options)  # LoraConfig and PEFT change the lists they are given
            model = AutoModelForCausalLM.from_pretrained(self.base(case), dtype=torch.float32)
            model = get_peft_model(model, LoraConfig(**settings))
            randomize_trainable(model)
            model.save_pretrained(folder, safe_serialization=safe)
        return folder

    def space(self, case: str) -> Path:
        """The search space: ranks 8, 6 and MLP widths 128, 96, 64; 9 groups."""
        path = self.folder / f"space-{case}.json"
        if not path.exists():
            architecture = Architecture.from_config(AutoConfig.for_model(**CASES[case]), case)
            path.write_text(json.dumps(generate_space(architecture, RATIOS, RANKS)))
        return path

    def deep_space(self, case: str, heads: bool = False) -> Path:
        """The search space, with elastic heads or not, and with `removable_blocks` after its groups of widths."""
        path = self.folder / f"{'heads' if heads else 'deep'}-space-{case}.json"
        if not path.exists():
            architecture = Architecture.from_config(AutoConfig.for_model(**CASES[case]), case)
            content = generate_space(architecture, RATIOS, RANKS, heads=heads)
            blocks = [[block_path(case, layer, kind) for layer, kind in group] for group in removable_blocks(case)]
            content["bootstrapNAS"]["training"]["elasticity"]["lonas_edge"] = {"version": 1, "blocks": blocks}
            path.write_text(json.dumps(content))
        return path

    def heads_source(self, case: str) -> TinySource:
        """As `deep_source`, with elastic heads between the widths of MLPs and the blocks: 12 groups of widths and ranks."""
        return replace(self.source(case), space=self.deep_space(case, heads=True))

    def deep_source(self, case: str) -> TinySource:
        """As `source`, with elastic depth."""
        return replace(self.source(case), space=self.deep_space(case))

    def source(self, case: str, sharded: bool = False, **options: object) -> TinySource:
        """Base, adapter and search space of a case."""
        return TinySource(case, self.base(case, sharded), self.adapter(case, **options), self.space(case))


def random_model(case: str, seed: int = 0) -> torch.nn.Module:
    """A model whose every weight matters: logits of order 1, no norm at 1, no bias at 0."""
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**CASES[case]), dtype=torch.float32).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() == 2:
                parameter.copy_(noise / parameter.shape[1] ** 0.5)
            else:
                parameter.add_(0.2 * noise)  # norms keep their 1 (Gemma's their 0), biases are no longer 0
    return model


def randomize_trainable(model: torch.nn.Module, seed: int = 1) -> None:
    """Move all trainable parameters, both factors included, clearly away from PEFT's initial values."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not parameter.requires_grad:
                continue
            noise = torch.randn(parameter.shape, generator=generator)
            if "lora_" in name and parameter.dim() == 2:
                parameter.copy_(noise / parameter.shape[1] ** 0.5 / 2)
            else:
                parameter.add_(0.1 * noise)


def tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of 256 bytes, two special tokens and a few merges; ids stay below `VOCAB`."""
    merges = [("t", "h"), ("th", "e"), ("Ġ", "the"), ("i", "n"), ("Ġ", "a"), ("e", "r"), ("o", "n"), ("Ġ", "i")]
    pieces = ["<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet()), *("".join(pair) for pair in merges)]
    bpe = Tokenizer(models.BPE({piece: index for index, piece in enumerate(pieces)}, merges))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.add_special_tokens([AddedToken("<s>", special=True), AddedToken("</s>", special=True)])
    return PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<s>", eos_token="</s>", pad_token="</s>")
