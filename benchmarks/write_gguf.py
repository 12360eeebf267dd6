"""A Hugging Face LLaMA checkpoint as GGUF, so that llama.cpp can run what OpenVINO and PyTorch run.

    python benchmarks/write_gguf.py CHECKPOINT_DIR OUTPUT.gguf                        Q8_0, norms in fp32
    python benchmarks/write_gguf.py CHECKPOINT_DIR OUTPUT.gguf --type f32 --check     and compares logits with transformers

Tensors pass one by one, so memory holds the largest of them only. Key names and the order of rotary rows are those of
llama.cpp's conversion/llama.py and gguf-py.
"""

import argparse
import json
from math import prod
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType, TokenType

from lonas_edge.errors import LonasEdgeError, raise_all
from lonas_edge.network.checkpoints import open_base
from lonas_edge.network.source import Located, read_model_config
from lonas_edge.space.architecture import Architecture

TYPES = {
    "q8_0": (GGMLQuantizationType.Q8_0, gguf.LlamaFileType.MOSTLY_Q8_0),
    "f32": (GGMLQuantizationType.F32, gguf.LlamaFileType.ALL_F32),
}
# Of f32, which shows whether the layout is right: 1e-6 is found, 0.6 with q and k in a wrong order. What q8_0 costs depends on
# the model (0.05 to 0.27 was found in right files), so it is printed and not judged.
TOLERANCE = 1e-4
PROMPTS = [
    "The sun is a star, and the planets",
    "Water boils at a temperature of 100",
    "def add(a, b):\n    return",
    "Once upon a time there was a little",
    "In 1492, Columbus sailed across the Atlantic",
    "The capital of France is Paris, and the capital of Italy is",
    "Plants make their food from light, which they",
    "A triangle has three sides, a square has",
]


def write_gguf(folder: Path, output: Path, kind: str) -> None:
    """Write a checkpoint as GGUF; the file appears when it is whole.

    Args:
        folder: The checkpoint: config.json, safetensors, tokenizer.json.
        output: The file to write; replaced if it exists.
        kind: Type of the matrices, a key of `TYPES`.

    Raises:
        LonasEdgeError: If the checkpoint is not what llama.cpp's `llama` architecture expresses.
    """
    config = read_model_config(Located(folder.name, folder))
    refuse_others(config, folder)
    architecture = Architecture.from_config(config, str(folder))
    tensors = open_base(folder, architecture)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    matrix_type, file_type = TYPES[kind]
    types = {n: matrix_type if len(shape) > 1 else GGMLQuantizationType.F32 for n, shape in architecture.shapes.items()}
    blocks = {name: gguf.GGML_QUANT_SIZES[type_] for name, type_ in types.items()}
    uneven = [f"{n}: {shape[-1]} columns" for n, shape in architecture.shapes.items() if shape[-1] % blocks[n][0]]
    raise_all(f"{folder}: {kind} wants multiples of {gguf.GGML_QUANT_SIZES[matrix_type][0]}:", uneven, "Take --type f32.")

    partial = output.with_name(f".{output.name}.incomplete")
    writer = gguf.GGUFWriter(partial, "llama")
    add_shape(writer, config)
    writer.add_file_type(file_type)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    add_vocabulary(writer, config, folder / "tokenizer.json")
    for name, shape in architecture.shapes.items():
        size = prod(shape) // blocks[name][0] * blocks[name][1]
        to = names.get_name(name, try_suffixes=(".weight", ".bias"))
        writer.add_tensor_info(to, shape, np.dtype(np.float32), size, raw_dtype=types[name])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name in architecture.shapes:
        tensor = interleave(name, tensors.read(name).float(), config)
        writer.write_tensor_data(gguf.quants.quantize(tensor.numpy(), types[name]))
    writer.close()
    partial.rename(output)


def refuse_others(config: Any, folder: Path) -> None:
    """Raise an error that lists what this writer, or llama.cpp's `llama` architecture, cannot express."""
    if config.model_type != "llama":
        raise LonasEdgeError(f"{folder}: model_type is {config.model_type!r}; only 'llama' can be written as GGUF")
    problems = []
    if (rope_type := config.rope_parameters.get("rope_type", "default")) != "default":
        problems.append(f"rope_type {rope_type!r}; expected 'default'")
    if getattr(config, "per_layer_config", None):
        problems.append("per_layer_config: llama.cpp has one MLP width for all layers of a LLaMA")
    if config.hidden_act != "silu":
        problems.append(f"hidden_act {config.hidden_act!r}; expected 'silu'")
    raise_all(f"{folder}: cannot be written as GGUF:", problems)


def add_shape(writer: gguf.GGUFWriter, config: Any) -> None:
    """Add the fields that describe the network."""
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)


def add_vocabulary(writer: gguf.GGUFWriter, config: Any, path: Path) -> None:
    """Add tokens and merges of a byte-level BPE tokenizer; ids beyond them get names, because llama.cpp wants one for each."""
    if not path.exists():
        raise LonasEdgeError(f"{path}: missing. Save the model's fast tokenizer there.")
    content = json.loads(path.read_text(encoding="utf-8"))
    stages = content["pre_tokenizer"] or {}
    stages = stages.get("pretokenizers", [stages])
    if content["model"]["type"] != "BPE" or not any(stage.get("type") == "ByteLevel" for stage in stages):
        raise LonasEdgeError(f"{path}: expected a byte-level BPE tokenizer, the only kind written here")
    added = {token["id"]: token for token in content["added_tokens"]}
    tokens = {i: token for token, i in content["model"]["vocab"].items()} | {i: t["content"] for i, t in added.items()}
    types = dict.fromkeys(tokens, TokenType.NORMAL)
    types |= {i: TokenType.CONTROL if token["special"] else TokenType.USER_DEFINED for i, token in added.items()}
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in content["model"]["merges"]]
    smollm = any(stage.get("type") == "Digits" and stage["individual_digits"] for stage in stages)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm" if smollm else "default")
    writer.add_token_list([tokens.get(i, f"[PAD{i}]") for i in range(config.vocab_size)])
    writer.add_token_types([types.get(i, TokenType.UNUSED) for i in range(config.vocab_size)])
    # llama.cpp refuses an empty list. Without other merges "<unk>" never is one symbol, so this one does nothing.
    writer.add_token_merges(merges or ["<unk> <unk>"])
    if config.bos_token_id is not None:
        writer.add_bos_token_id(config.bos_token_id)
    eos = config.eos_token_id[0] if isinstance(config.eos_token_id, list) else config.eos_token_id
    if eos is not None:
        writer.add_eos_token_id(eos)
    writer.add_add_bos_token(False)


def interleave(name: str, tensor: torch.Tensor, config: Any) -> torch.Tensor:
    """Reorder the rows of q and k: transformers rotates halves of a head [2, d/2], llama.cpp neighbours [d/2, 2]."""
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(name.split(".")[-2])
    if heads is None:
        return tensor
    return tensor.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2).contiguous()


def check(folder: Path, file: Path) -> float:
    """Print how far llama.cpp's logits (KV cache in fp32) are from transformers' (the whole model in fp32).

    Args:
        folder: The checkpoint.
        file: The same as GGUF.

    Returns:
        The largest difference at a prompt's last position, as a share of the largest logit there.
    """
    import llama_cpp
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    f32 = llama_cpp.GGML_TYPE_F32
    llama = llama_cpp.Llama(str(file), n_ctx=256, logits_all=True, type_k=f32, type_v=f32, flash_attn=False, verbose=False)
    equal, total, worst = 0, 0, 0.0
    for prompt in PROMPTS:
        ids = tokenizer(prompt)["input_ids"]
        with torch.inference_mode():
            expected = model(torch.tensor([ids])).logits[0].numpy()
        llama.reset()
        llama.eval(ids)
        found = llama.scores[: len(ids)]
        difference = np.abs(found[-1] - expected[-1]).max() / np.abs(expected[-1]).max()
        same = found.argmax(1) == expected.argmax(1)
        equal, total, worst = equal + same.sum(), total + len(ids), max(worst, float(difference))
        print(f"last position: relative difference {difference:.1e}, argmax {'same' if same[-1] else 'differs'}: {prompt!r}")
    print(f"all positions: same argmax at {equal} of {total}")
    return worst


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path, help="directory with config.json, safetensors and tokenizer.json")
    parser.add_argument("output", type=Path)
    parser.add_argument("--type", choices=TYPES, default="q8_0", help="of the matrices, embedding and head included")
    parser.add_argument("--check", action="store_true", help="compare logits with transformers'; wants llama-cpp-python")
    arguments = parser.parse_args()
    try:
        write_gguf(arguments.checkpoint, arguments.output, arguments.type)
    except LonasEdgeError as error:
        raise SystemExit(str(error)) from None
    print(f"{arguments.output}: {arguments.output.stat().st_size / 1e9:.2f} GB")
    if arguments.check:
        worst = check(arguments.checkpoint, arguments.output)
        if arguments.type == "f32" and not worst <= TOLERANCE:
            raise SystemExit(f"the logits differ by {worst:.1e}, more than {TOLERANCE}")


if __name__ == "__main__":
    main()
