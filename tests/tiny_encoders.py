"""Tiny random encoders of BERT's structure, their adapters and spaces on disk, and the same networks as a BERT for its oracle.

A network becomes a BERT by new names of its weights alone; the position table starts at the first token's row.
"""

import json
import math
import re
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from tiny_bert import ALPHA, CONFIG, CONTEXT, HEADS, HIDDEN, LAYERS, MLP, RANK, RANKS, RATIOS, VOCAB
from tiny_models import TinySource, randomize_trainable
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, PreTrainedTokenizerFast

from lonas_edge.space.architecture import Architecture
from lonas_edge.space.generate import generate_space

PAD = 1
_SHAPE: dict[str, Any] = {
    "num_hidden_layers": LAYERS,
    "hidden_size": HIDDEN,
    "intermediate_size": MLP,
    "num_attention_heads": HEADS,
}
_BEHIND: dict[str, Any] = {
    "max_position_embeddings": CONTEXT + PAD + 1,
    "pad_token_id": PAD,
    "layer_norm_eps": CONFIG["layer_norm_eps"],
}
SHAPES: dict[str, dict[str, Any]] = {
    "roberta": {**_SHAPE, **_BEHIND, "type_vocab_size": 1},
    "xlm-roberta": {**_SHAPE, **_BEHIND, "type_vocab_size": 1},
    "mpnet": {**_SHAPE, **_BEHIND},
    "distilbert": {"n_layers": LAYERS, "dim": HIDDEN, "hidden_dim": MLP, "n_heads": HEADS, "max_position_embeddings": CONTEXT},
}
TARGETS = {
    "roberta": ["query", "value"],
    "xlm-roberta": ["query", "value"],
    "mpnet": ["q", "v"],
    "distilbert": ["q_lin", "v_lin"],
}
_NAMES: dict[str, dict[str, str]] = {  # parts of names, with BERT's
    "roberta": {},
    "xlm-roberta": {},
    "mpnet": {
        ".attention.attn.q.": ".attention.self.query.",
        ".attention.attn.k.": ".attention.self.key.",
        ".attention.attn.v.": ".attention.self.value.",
        ".attention.attn.o.": ".attention.output.dense.",
        ".attention.LayerNorm.": ".attention.output.LayerNorm.",
    },
    "distilbert": {
        "transformer.": "encoder.",
        ".attention.q_lin.": ".attention.self.query.",
        ".attention.k_lin.": ".attention.self.key.",
        ".attention.v_lin.": ".attention.self.value.",
        ".attention.out_lin": ".attention.output.dense",
        ".sa_layer_norm.": ".attention.output.LayerNorm.",
        ".ffn.lin1": ".intermediate.dense",
        ".ffn.lin2": ".output.dense",
        ".output_layer_norm.": ".output.LayerNorm.",
    },
}
_PREFIX = re.compile(r"^(base_model\.model\.)?((?:roberta|mpnet|distilbert)\.)?")


def tokenizer() -> PreTrainedTokenizerFast:
    """Words with RoBERTa's special tokens: <s> text </s>, or <s> text </s></s> text </s>, padded by id 1."""
    words = ["<s>", "<pad>", "</s>", "<unk>", "the", "good", "bad", "film", "not", "is", "same"]
    made = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    made.normalizer, made.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    special = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "cls_token": "<s>", "sep_token": "</s>"}
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>", model_max_length=CONTEXT, **special)


def config_of(model_type: str, **fields: Any) -> Any:
    return AutoConfig.for_model(model_type, **SHAPES[model_type], vocab_size=VOCAB, **fields)


def randomized(model: Any) -> Any:
    """The model in eval mode with no norm at 1, no bias at 0, and large tables."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.add_(torch.randn(parameter.shape) * (0.25 if "_embeddings" in name or parameter.dim() == 1 else 0.15))
    return model.eval()


def write(model_type: str, folder: Path, outputs: int = 0) -> TinySource:
    """A random body with an adapter by PEFT, and a space of heads, ranks and MLP widths, as of the tiny BERT.

    The adapter has a classifier of so many `outputs`; without any it is that of an embedding model.
    """
    torch.manual_seed(3)
    model = randomized(AutoModel.from_config(config_of(model_type), dtype=torch.float32))
    base, adapter = folder / "base", folder / "adapter"
    model.save_pretrained(base)
    tokenizer().save_pretrained(base)
    if outputs:
        model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=outputs)
    else:
        write_pooling(base)
    task = "SEQ_CLS" if outputs else "FEATURE_EXTRACTION"
    peft = get_peft_model(model, LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=TARGETS[model_type], task_type=task))
    randomize_trainable(peft)
    with torch.no_grad():
        for name, parameter in peft.named_parameters():
            if "modules_to_save" in name:
                parameter.copy_(torch.randn(parameter.shape) / 4)
    peft.save_pretrained(adapter)
    architecture = Architecture.from_config(model.config, model_type)
    (folder / "space.json").write_text(json.dumps(generate_space(architecture, RATIOS, RANKS)))
    return TinySource(model_type, base, adapter, folder / "space.json")


def write_pooling(folder: Path) -> None:
    """Embeddings are the first token's hidden state, at length 1."""
    kinds = {"Transformer": "", "Pooling": "1_Pooling", "Normalize": "2_Normalize"}
    modules = [{"path": path, "type": f"sentence_transformers.models.{kind}"} for kind, path in kinds.items()]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling/config.json").write_text('{"pooling_mode": "cls"}')


def write_classifier(model_type: str, folder: Path, outputs: int = 1) -> Path:
    """A base with a head of its own, such as a reranker."""
    torch.manual_seed(4)
    names = {index: f"name{index}" for index in range(outputs)}
    config = config_of(model_type, num_labels=outputs, id2label=names, label2id={name: index for index, name in names.items()})
    randomized(AutoModelForSequenceClassification.from_config(config, dtype=torch.float32)).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def bert_name(model_type: str, name: str) -> str:
    """A weight's name in a BERT classifier; those of heads stay."""
    name = name if "classifier" in name else _PREFIX.sub(r"\1bert.", name)
    for ours, berts in _NAMES[model_type].items():
        name = name.replace(ours, berts)
    return name


def relative_bias(weights: dict[str, torch.Tensor], length: int) -> torch.Tensor | None:
    """MPNet's biases of scores [heads, queries, keys] by relative position (Raffel et al. 2020), float64; None without a table.

    Half of the 32 buckets are for keys behind the query. The first 8 of a half are one distance each; the others grow.
    """
    table = weights.get("bert.encoder.relative_attention_bias.weight")
    if table is None:
        return None

    def bucket(query: int, key: int) -> int:
        distance = abs(query - key)
        far = 8 + int(8 * math.log(max(distance, 8) / 8) / math.log(16))
        return (16 if key > query else 0) + (distance if distance < 8 else min(15, far))

    return torch.stack([torch.stack([table[bucket(i, j)] for j in range(length)]) for i in range(length)]).permute(2, 0, 1)


def as_bert(source: TinySource, folder: Path) -> TinySource:
    """The same base and adapter as a BERT."""
    (folder / "base").mkdir(parents=True)
    tensors = renamed(source.case, source.base / "model.safetensors")
    table, segments = (f"bert.embeddings.{name}_embeddings.weight" for name in ("position", "token_type"))
    tensors[table] = tensors[table][-CONTEXT:].clone()
    tensors.setdefault(segments, torch.zeros(1, HIDDEN))
    save_file(tensors, folder / "base/model.safetensors")
    if source.adapter.exists():
        (folder / "adapter").mkdir()
        for path in source.adapter.glob("*.safetensors"):  # the factors, and an order of channels
            save_file(renamed(source.case, path), folder / "adapter" / path.name)
        (folder / "adapter/adapter_config.json").write_text((source.adapter / "adapter_config.json").read_text())
    return TinySource("bert", folder / "base", folder / "adapter", source.space)


def renamed(model_type: str, path: Path) -> dict[str, torch.Tensor]:
    return {bert_name(model_type, name): tensor for name, tensor in load_file(path).items()}
