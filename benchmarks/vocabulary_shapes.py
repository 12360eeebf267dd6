"""A trimmed vocabulary on the shapes of models whose vocabulary is large: Gemma 3 270M and Qwen3 0.6B, random weights.

    python benchmarks/vocabulary_shapes.py models/smollm2-135m --work DIR --output benchmarks/results/vocabulary_shapes.json

The tokenizer is that of the given model, extended by merges to the size of the shape's vocabulary. `lonas-edge trim` keeps
32,768 tokens. Times and memory do not depend on the training of the weights; the texts are meaningless. optimum-intel 2.2
does not export Gemma 3 with transformers 5.5, so the baseline is the INT8 export of all tokens by lonas-edge.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from study import conditions, exported, lonas_edge
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

SHAPES: dict[str, dict[str, Any]] = {
    "gemma-3-270m": {
        "model_type": "gemma3_text",
        "hidden_size": 640,
        "intermediate_size": 2048,
        "num_hidden_layers": 18,
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "head_dim": 256,
        "vocab_size": 262144,
        "max_position_embeddings": 4096,
        "sliding_window": 512,
        "query_pre_attn_scalar": 256,
    },
    "qwen3-0.6b": {
        "model_type": "qwen3",
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 151936,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": True,
    },
}
KEPT, BASELINE = 32768, "INT8"


def random_base(shape: str, original: Path, folder: Path) -> Path:
    """Make a model with random weights and a tokenizer with as many tokens as it has."""
    if (folder / "config.json").exists():
        return folder
    config = AutoConfig.for_model(**SHAPES[shape])
    extend_tokenizer(original, folder, config.vocab_size)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    config.update({"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id})
    config.pad_token_id = tokenizer.pad_token_id
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    return folder


def extend_tokenizer(original: Path, folder: Path, size: int) -> None:
    """Write a tokenizer with further merges of pairs of its tokens."""
    AutoTokenizer.from_pretrained(original).save_pretrained(folder)
    content = json.loads((folder / "tokenizer.json").read_text())
    vocabulary, merges = content["model"]["vocab"], content["model"]["merges"]
    pieces = [piece for piece in vocabulary if not piece.startswith("<|")]
    pairs = ((left, right) for right in pieces[300:] for left in pieces[300:2000])
    while len(vocabulary) < size:
        left, right = next(pairs)
        if left + right not in vocabulary:
            vocabulary[left + right] = len(vocabulary)
            merges.append([left, right])
    (folder / "tokenizer.json").write_text(json.dumps(content))


def networks(shape: str, arguments: argparse.Namespace) -> dict[str, Path]:
    """The IRs of a shape by name."""
    work = arguments.work / shape
    base, trimmed = random_base(shape, arguments.model, work / "base"), work / "trimmed"
    if not trimmed.exists():
        lonas_edge("trim", base, "--data", arguments.data, "--vocabulary", KEPT, "--output", trimmed)
    return {
        BASELINE: exported(work / "int8", base),
        "INT4": exported(work / "int4", base, "--weight-format", "int4_sym"),
        f"INT8, {KEPT} tokens": exported(work / "trimmed-int8", trimmed),
        f"INT4, {KEPT} tokens": exported(work / "trimmed-int4", trimmed, "--weight-format", "int4_sym"),
    }


def measured(irs: dict[str, Path], work: Path, rounds: int) -> dict[str, dict[str, Any]]:
    """Latency, memory and size of every IR, interleaved in one run; ratios are those of the medians to INT8."""
    subject, *others = irs.values()
    if not (work / "bench").exists():
        arms = ",".join(["subnet", *map(str, others)])
        lonas_edge("bench", subject, "--variants", arms, "--rounds", rounds, "--output", work / "bench")
    report = json.loads((work / "bench/bench.json").read_text())
    rows = dict(zip(irs, report["rows"], strict=True))
    facts = {variant["name"]: variant["facts"] for variant in report["variants"]}
    stock = rows[BASELINE]
    return {
        name: {
            "ttft_ms": row["ttft"]["p50"],
            "tpot_ms": row["tpot"]["p50"],
            "ttft_ratio": round(row["ttft"]["p50"] / stock["ttft"]["p50"], 3),
            "tpot_ratio": round(row["tpot"]["p50"] / stock["tpot"]["p50"], 3),
            "memory_mb": round(facts[row["variant"]]["peak_memory_bytes"] / 1e6),
            "file_mb": round((irs[name] / "openvino_model.bin").stat().st_size / 1e6, 1),
        }
        for name, row in rows.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="model whose tokenizer is extended")
    parser.add_argument("--work", type=Path, required=True, help="directory for the models, which are kept")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--shapes", type=lambda text: text.split(","), default=list(SHAPES))
    parser.add_argument("--rounds", type=int, default=12)
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    arguments.data = arguments.work / "orders.jsonl"
    orders = [sys.executable, Path(__file__).parent.parent / "scripts/orders.py", arguments.data, "--examples", 300]
    subprocess.run([*map(str, orders)], check=True)
    rows = {}
    for shape in arguments.shapes:
        rows[shape] = measured(networks(shape, arguments), arguments.work / shape, arguments.rounds)
        for name, row in rows[shape].items():
            print(f"{shape:14} {name:20} TPOT {row['tpot_ratio']:.2f}x, TTFT {row['ttft_ratio']:.2f}x, {row['file_mb']:.0f} MB")
    arguments.output.write_text(json.dumps({"conditions": conditions(), "shapes": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
