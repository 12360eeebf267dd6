"""Models with random weights in the shapes of the benchmarks: base, adapter, search space, tokenizer.

The cost of exporting and running a model does not depend on its training. Its outputs are meaningless.
"""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

ROOT = Path(__file__).parent.parent
TARGETS = ["q_proj", "k_proj", "v_proj", "up_proj", "gate_proj", "down_proj"]  # those of the published adapters
RANK, ALPHA = 32, 64


def _llama(**shape: int) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": 32000,
        **shape,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-6,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "dtype": "bfloat16",
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }


SHAPES = {
    "llama-7b": _llama(hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32),
    "llama-1.1b": _llama(
        hidden_size=2048, intermediate_size=5632, num_hidden_layers=22, num_attention_heads=32, num_key_value_heads=4
    ),
}
BLOOM = {  # of bigscience/bloom-1b1
    "architectures": ["BloomForCausalLM"],
    "model_type": "bloom",
    "hidden_size": 1536,
    "n_layer": 24,
    "n_head": 16,
    "vocab_size": 250880,
    "max_position_embeddings": 2048,
    "dtype": "bfloat16",
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
SHAPES["bloom-1b"] = BLOOM
SHAPES["smollm2-135m"] = _llama(
    hidden_size=576,
    intermediate_size=1536,
    num_hidden_layers=30,
    num_attention_heads=9,
    num_key_value_heads=3,
    vocab_size=49152,
)
SHAPES["smollm2-135m-wide"] = {**SHAPES["smollm2-135m"], "intermediate_size": 3072}
SPACES = {"llama-7b": ROOT / "nncf_config/llama_7b.json"}  # the others are generated

Normal = Callable[..., torch.Tensor]


def random_base(shape: str, work: Path, layers: int | None = None) -> Path:
    """Make a base in bf16 with random weights, unless it exists; return its directory.

    Args:
        shape: A key of `SHAPES`.
        work: The directory of the models.
        layers: Number of decoder layers; default: the shape's.
    """
    config, name = _config(shape, layers)
    base = work / name
    base.mkdir(parents=True, exist_ok=True)
    if not (base / "tokenizer.json").exists():
        write_tokenizer(config, base)
    if not (base / "config.json").exists():
        write = write_base if config["model_type"] == "llama" else write_small_base
        write(config, base, _normal(torch.Generator().manual_seed(0)))
    return base


def _config(shape: str, layers: int | None) -> tuple[dict[str, Any], str]:
    """The configuration of a shape with this number of layers, and the name of the model."""
    if layers is None:
        return SHAPES[shape], shape
    return {**SHAPES[shape], "num_hidden_layers": layers}, f"{shape}-of-{layers}-layers"


def _normal(generator: torch.Generator) -> Normal:
    """Normally distributed tensors."""

    def normal(*shape: int, std: float = 0.02, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
        return torch.empty(shape).normal_(std=std, generator=generator).to(dtype)

    return normal


def random_source(shape: str, work: Path, layers: int | None = None) -> list[str | Path]:
    """Make a base in bf16 and an r=32 adapter, both random, unless they exist.

    Args:
        shape: A key of `SHAPES`.
        work: The directory of the models.
        layers: Number of decoder layers; default: the shape's.

    Returns:
        The arguments of `lonas-edge` for the source: adapter, base, search space.
    """
    config, name = _config(shape, layers)
    base, adapter = random_base(shape, work, layers), work / f"{name}-adapter"
    if not (adapter / "adapter_config.json").exists():
        write = write_adapter if config["model_type"] == "llama" else write_small_adapter
        write(config, adapter, _normal(torch.Generator().manual_seed(1)))
    space = SPACES.get(name, work / f"{name}-space.json")
    if not space.exists():
        command = [sys.executable, "-m", "lonas_edge", "space", "--model", base, "--output", space]
        subprocess.run(command, cwd=ROOT, check=True)
    return [adapter, "--model", base, "--nncf-config", space]


def layer_shapes(config: dict[str, Any]) -> dict[str, tuple[int, int]]:
    """The linear layers of a decoder layer: name and shape, as stored."""
    hidden, mlp, heads = config["hidden_size"], config["intermediate_size"], config["num_attention_heads"]
    rows = dict.fromkeys("qkvo", hidden)
    rows["k"] = rows["v"] = hidden // heads * config.get("num_key_value_heads", heads)
    attention = {f"self_attn.{name}_proj": (rows[name], hidden) for name in "qkvo"}
    return attention | {"mlp.gate_proj": (mlp, hidden), "mlp.up_proj": (mlp, hidden), "mlp.down_proj": (hidden, mlp)}


def write_base(config: dict[str, Any], base: Path, normal: Normal) -> None:
    """Write the weights, one file per layer, so that memory holds one layer at a time; config.json last."""
    weight_map: dict[str, str] = {}

    def shard(file: str, tensors: dict[str, torch.Tensor]) -> None:
        save_file(tensors, base / file, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(tensors, file))

    hidden = config["hidden_size"]
    ones = torch.ones(hidden, dtype=torch.bfloat16)
    outer = {f"{name}.weight": normal(config["vocab_size"], hidden) for name in ("model.embed_tokens", "lm_head")}
    shard("model-00000.safetensors", outer | {"model.norm.weight": ones})
    for index in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{index}"
        tensors = {f"{prefix}.{name}.weight": normal(*shape) for name, shape in layer_shapes(config).items()}
        norms = {f"{prefix}.{name}_layernorm.weight": ones.clone() for name in ("input", "post_attention")}
        shard(f"model-{index + 1:05}.safetensors", tensors | norms)
    (base / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (base / "config.json").write_text(json.dumps(config))


def write_small_base(config: dict[str, Any], base: Path, normal: Normal) -> None:
    """Write a model of any family that fits into memory, as transformers initializes it."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config), dtype=torch.bfloat16)
    model.save_pretrained(base)


def write_small_adapter(config: dict[str, Any], adapter: Path, normal: Normal) -> None:
    """Write an adapter of such a model with PEFT, both factors non-zero, on the linear layers of the family."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoConfig, AutoModelForCausalLM

    from lonas_edge.space.architecture import Architecture

    described = AutoConfig.for_model(**config)
    family = Architecture.from_config(described, "config.json").family
    targets = sorted({linear.name.rsplit(".", 1)[-1] for linear in family.linears(described)})
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(described, dtype=torch.bfloat16)
    lora = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=targets, init_lora_weights=False, task_type="CAUSAL_LM")
    get_peft_model(model, lora).save_pretrained(adapter)


def write_adapter(config: dict[str, Any], adapter: Path, normal: Normal) -> None:
    """Write a PEFT LoRA adapter, both factors non-zero; adapter_config.json last."""
    adapter.mkdir(parents=True, exist_ok=True)
    factors = {}
    for index in range(config["num_hidden_layers"]):
        for name, (out, columns) in layer_shapes(config).items():
            if name.split(".")[1] in TARGETS:
                key = f"base_model.model.model.layers.{index}.{name}"
                factors[f"{key}.lora_A.weight"] = normal(RANK, columns, dtype=torch.float32)
                factors[f"{key}.lora_B.weight"] = normal(out, RANK, dtype=torch.float32)
    save_file(factors, adapter / "adapter_model.safetensors")
    lora = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": RANK, "lora_alpha": ALPHA, "target_modules": TARGETS}
    (adapter / "adapter_config.json").write_text(json.dumps(lora))


def write_tokenizer(config: dict[str, Any], base: Path) -> None:
    """Write a byte-level BPE tokenizer, one token per byte; openvino_genai's LLMPipeline needs a tokenizer."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = {config["pad_token_id"]: "<unk>", config["bos_token_id"]: "<s>", config["eos_token_id"]: "</s>"}
    tokens = [special[i] for i in range(len(special))] + sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([special[i] for i in range(len(special))])
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        pad_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        model_max_length=config["max_position_embeddings"],
        clean_up_tokenization_spaces=False,
    ).save_pretrained(base)
