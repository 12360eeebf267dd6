"""Tiny random BERT classifiers and embedding models, their adapters and search spaces on disk, and oracles of their outputs.

An oracle is plain torch in float64, written from the definitions (Devlin et al. 2019; LoNAS). It runs no model of transformers
and nothing of the package. It removes channels and whole heads beyond a width, and whole layers.
"""

import json
import shutil
import zlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from tiny_models import TinySource, randomize_trainable
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, BertTokenizerFast

from lonas_edge.space.architecture import Architecture
from lonas_edge.space.generate import generate_space

LAYERS, HIDDEN, MLP, HEADS, VOCAB, CONTEXT = 3, 64, 128, 4, 320, 64
RANK, ALPHA, RANKS, RATIOS = 8, 16, (8, 6), (1, 0.75, 0.5)
CONFIG = {
    "model_type": "bert",
    "num_hidden_layers": LAYERS,
    "hidden_size": HIDDEN,
    "intermediate_size": MLP,
    "num_attention_heads": HEADS,
    "vocab_size": VOCAB,
    "max_position_embeddings": CONTEXT,
    "type_vocab_size": 2,
    "pad_token_id": 0,
    "layer_norm_eps": 1e-6,
}
ORDER = "channel_order.safetensors"


class TinyBert:
    """Creates the files on first use, as `TinyModels` does."""

    def __init__(self, folder: Path):
        self.folder = folder

    def base(self, headless: bool = False) -> Path:
        """A checkpoint with a tokenizer: a classifier of two classes, or `headless`, as MiniLM's body."""
        folder = self.folder / f"bert{'-headless' * headless}"
        if not folder.exists():
            model = random_classifier()
            (model.bert if headless else model).save_pretrained(folder)
            tokenizer().save_pretrained(folder)
        return folder

    def body(self, mode: str = "mean", normalize: bool = True, **settings: Any) -> Path:
        """An embedding model: `base(headless=True)` with the files of sentence-transformers.

        Args:
            mode: Its pooling: mean, cls or lasttoken.
            normalize: Whether embeddings have length 1.
            settings: `max_length`, or fields of `config_sentence_transformers.json`.
        """
        label = zlib.crc32(json.dumps(settings, sort_keys=True).encode())
        folder = self.folder / "bodies" / f"{mode}-{normalize}-{label}"
        if not folder.exists():
            shutil.copytree(self.base(headless=True), folder)
            kinds = ["Transformer", "Pooling", *["Normalize"] * normalize]
            paths = ["", "1_Pooling", "2_Normalize"]
            modules = [{"path": paths[i], "type": f"sentence_transformers.models.{kind}"} for i, kind in enumerate(kinds)]
            pooling = {"word_embedding_dimension": HIDDEN, "pooling_mode": mode}
            length = {"max_seq_length": settings.pop("max_length", None), "do_lower_case": False}
            (folder / "1_Pooling").mkdir()
            files = {"modules": modules, "1_Pooling/config": pooling, "sentence_bert_config": length}
            files |= {"config_sentence_transformers": settings} if settings else {}
            for name, content in files.items():
                (folder / f"{name}.json").write_text(json.dumps(content))
        return folder

    def embedder(self, base: Path | None = None, targets: Any = ("query", "value"), **options: object) -> TinySource:
        """An adapter that PEFT saved for feature extraction, and the space of `space`; by default on `body()`."""
        label = "-".join([*targets, *(f"{key}={value}" for key, value in sorted(options.items()))])
        folder = self.folder / "embedders" / label
        if not folder.exists():
            torch.manual_seed(5)
            model = AutoModel.from_pretrained(self.base(headless=True))
            settings = {
                "r": RANK,
                "lora_alpha": ALPHA,
                "target_modules": targets if isinstance(targets, str) else list(targets),
            }
            model = get_peft_model(model, LoraConfig(**{**settings, "task_type": "FEATURE_EXTRACTION", **options}))
            randomize_trainable(model)
            model.save_pretrained(folder)
        return TinySource("bert", base or self.body(), folder, self.space())

    def adapter(self, outputs: int = 2, targets: tuple[str, ...] = ("query", "value"), **options: object) -> Path:
        """An adapter that PEFT saved, with a classifier of so many outputs, on the headless base."""
        label = "-".join([str(outputs), *targets, *(f"{key}={value}" for key, value in sorted(options.items()))])
        folder = self.folder / "adapters" / label
        if not folder.exists():
            torch.manual_seed(outputs)
            model = AutoModelForSequenceClassification.from_pretrained(self.base(headless=True), num_labels=outputs)
            settings = {"r": RANK, "lora_alpha": ALPHA, "target_modules": list(targets), "task_type": "SEQ_CLS", **options}
            model = get_peft_model(model, LoraConfig(**settings))
            randomize_trainable(model)
            with torch.no_grad():
                for name, parameter in model.named_parameters():
                    if "modules_to_save" in name:
                        parameter.mul_(20)  # initialized at 0.02; logits become of order 1
            model.save_pretrained(folder)
        return folder

    def space(self) -> Path:
        """Three groups of heads (64, 48, 32), of ranks (8, 6) and of MLP widths (128, 96, 64)."""
        path = self.folder / "space.json"
        if not path.exists():
            architecture = Architecture.from_config(AutoConfig.for_model(**CONFIG), "bert")
            path.write_text(json.dumps(generate_space(architecture, RATIOS, RANKS)))
        return path

    def deep(self, source: TinySource, *removable: int, only: bool = False) -> TinySource:
        """A source whose space also has `removable` layers, by default 2 and 0; and `only` these where nothing else varies."""
        path = self.folder / f"deep-{removable}-{only}.json"
        content = json.loads(source.space.read_text())
        elasticity = content["bootstrapNAS"]["training"]["elasticity"]
        blocks = [[f"bert.encoder.layer.{index}"] for index in removable or (2, 0)]
        elasticity["lonas_edge"] = {"version": 1, "blocks": blocks}
        if only:
            elasticity["width"]["overwrite_groups_widths"] = [v[:1] for v in elasticity["width"]["overwrite_groups_widths"]]
        path.write_text(json.dumps(content))
        return replace(source, space=path)

    def source(self, outputs: int = 2, headless: bool = True, **options: Any) -> TinySource:
        """Base, adapter and search space."""
        return TinySource("bert", self.base(headless), self.adapter(outputs, **options), self.space())


CLASS_NAMES = ("low", "middle", "high")


def reranker(tiny_bert: TinyBert, folder: Path, outputs: int, classes: Sequence[str] = CLASS_NAMES) -> Path:
    """A classifier with a head of its own: one score, as of a cross-encoder, or classes with names."""
    shutil.copytree(tiny_bert.base(), folder)
    tensors, draw = load_file(folder / "model.safetensors"), torch.Generator().manual_seed(outputs)
    tensors["classifier.weight"] = torch.randn(outputs, HIDDEN, generator=draw) / 4
    tensors["classifier.bias"] = torch.randn(outputs, generator=draw)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    names = {str(index): name for index, name in enumerate(classes[:outputs])}
    config = json.loads((folder / "config.json").read_text()) | {"id2label": names}
    config["label2id"] = {name: int(index) for index, name in names.items()}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def random_classifier(seed: int = 0) -> Any:
    """A classifier in which every weight matters: no norm at 1, no bias at 0, large segment and position embeddings."""
    model = AutoModelForSequenceClassification.from_config(AutoConfig.for_model(**CONFIG), dtype=torch.float32).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if "_embeddings" in name:
                parameter.copy_(noise / 4)
            elif parameter.dim() == 2:
                parameter.copy_(1.5 * noise / parameter.shape[1] ** 0.5)
            else:
                parameter.add_(0.2 * noise)
    return model


def tokenizer() -> BertTokenizerFast:
    """Word pieces: single characters and a few words; [CLS] A [SEP] B [SEP] with segments; ids below `VOCAB`."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = [chr(code) for code in range(33, 127) if not chr(code).isupper()]
    pieces = [*special, *letters, *(f"##{letter}" for letter in letters), "the", "good", "bad", "film", "not", "is", "same"]
    word_pieces = Tokenizer(models.WordPiece({piece: index for index, piece in enumerate(pieces)}, unk_token="[UNK]"))
    word_pieces.normalizer = normalizers.BertNormalizer(lowercase=True)
    word_pieces.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    word_pieces.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return BertTokenizerFast(tokenizer_object=word_pieces, model_max_length=CONTEXT)


def pairs() -> dict[str, torch.Tensor]:
    """Three sequences of two segments, padded: [3, 12]."""
    generator = torch.Generator().manual_seed(7)
    lengths, splits = torch.tensor([[12], [9], [5]]), torch.tensor([[6], [3], [2]])
    position = torch.arange(12)
    mask = (position < lengths).long()
    return {
        "input_ids": torch.randint(5, VOCAB, (3, 12), generator=generator) * mask,
        "token_type_ids": (position >= splits).long() * mask,
        "attention_mask": mask,
    }


def oracle_logits(base: Path, adapter: Path | None, space: Path | None, widths: list[int], inputs: Any) -> torch.Tensor:
    """Logits [sequences, classes], float64, of the sub-network with these `widths`, in group order."""
    weights, kept = chosen_weights(base, adapter, space, widths)
    pooled = torch.tanh(affine(weights, hidden_states(weights, kept, inputs)[:, 0], "bert.pooler.dense"))
    return affine(weights, pooled, "classifier")


def oracle_hidden(source: TinySource, widths: list[int], inputs: Any) -> torch.Tensor:
    """Hidden states [texts, tokens, hidden], float64, of an embedding model's sub-network."""
    return hidden_states(*chosen_weights(source.base, source.adapter, source.space, widths), inputs)


def expected_of(task: str, source: TinySource, widths: list[int]) -> torch.Tensor:
    """The oracle's outputs for `pairs`: a classifier's logits, or an embedder's hidden states without those at padding."""
    if task == "classifier":
        return oracle_logits(source.base, source.adapter, source.space, widths, pairs())
    return oracle_hidden(source, widths, pairs()) * pairs()["attention_mask"][..., None]


def outputs_of(task: str, model: Any) -> torch.Tensor:
    """The same of a live model, or of a client's."""
    with torch.inference_mode():
        output = model(**pairs())
    return output.logits if task == "classifier" else output.last_hidden_state * pairs()["attention_mask"][..., None]


def oracle_embeddings(hidden: torch.Tensor, mask: torch.Tensor, mode: str = "mean", normalize: bool = True) -> torch.Tensor:
    """Embeddings [texts, hidden] of hidden states, text by text without its padding."""
    rows = []
    for states, length in zip(hidden, mask.sum(1).tolist(), strict=True):
        tokens = states[:length]
        rows.append({"mean": sum(tokens) / length, "cls": tokens[0], "lasttoken": tokens[-1]}[mode])
    return torch.stack([row / (row @ row).sqrt() if normalize else row for row in rows])


def chosen_weights(base: Path, adapter: Path | None, space: Path | None, widths: list[int]) -> tuple[dict, dict]:
    """Merged weights of the whole model, float64, and the channels that each reader keeps; none in removed layers."""
    weights = {name: tensor.double() for name, tensor in load_file(base / "model.safetensors").items()}
    if "embeddings.word_embeddings.weight" in weights:
        weights = {f"bert.{name}": tensor for name, tensor in weights.items()}
    elasticity = json.loads(space.read_text())["bootstrapNAS"]["training"]["elasticity"] if space else {}
    blocks = elasticity.get("lonas_edge", {}).get("blocks", [])
    values = elasticity.get("width", {}).get("overwrite_groups_widths", []) + [[1, 0] for _ in blocks]
    if len(values) - len(blocks) == 2 * LAYERS:  # no elastic heads
        values, widths = [[HIDDEN]] * LAYERS + values, [HIDDEN] * LAYERS + widths
    assert all(width in admissible for width, admissible in zip(widths, values, strict=True))
    removed = {
        int(path.rpartition(".")[2])
        for paths, kept in zip(blocks, widths[3 * LAYERS :], strict=True)
        for path in paths
        if not kept
    }
    heads, ranks, mlps = (widths[start : start + LAYERS] for start in (0, LAYERS, 2 * LAYERS)) if space else ([], [], [])
    if adapter:
        merge(weights, adapter, ranks)
    order = load_file(adapter / ORDER) if adapter and (adapter / ORDER).exists() else {}
    order = {with_prefix(name): columns for name, columns in order.items()}
    kept = {}
    for index in set(range(LAYERS)) - removed:
        layer = f"bert.encoder.layer.{index}"
        for reader, full, chosen in ((f"{layer}.attention.output.dense", HIDDEN, heads), (f"{layer}.output.dense", MLP, mlps)):
            kept[reader] = order.get(reader, torch.arange(full))[: chosen[index] if chosen else full]
    return weights, kept


def with_prefix(name: str) -> str:
    """A name in the body of a classifier, also of an embedding model's module."""
    return f"bert.{name}" if name.startswith(("encoder.", "pooler.")) else name


def merge(weights: dict[str, torch.Tensor], adapter: Path, ranks: list[int]) -> None:
    """W += alpha / R * B[:, :r] A[:r], R the full rank; the classifier is the adapter's."""
    config = json.loads((adapter / "adapter_config.json").read_text())
    tensors = {
        with_prefix(k.removeprefix("base_model.model.")): v.double()
        for k, v in load_file(adapter / "adapter_model.safetensors").items()
    }
    for name, tensor in tensors.items():
        if name.startswith(("classifier.", "pre_classifier.")):
            weights[name] = tensor
        elif name.endswith(".lora_A.weight"):
            layer = name.removesuffix(".lora_A.weight")
            elastic = ranks and layer.endswith(("query", "value"))
            rank = ranks[int(layer.split(".")[3])] if elastic else config["r"]
            up = tensors[f"{layer}.lora_B.weight"]
            weights[f"{layer}.weight"] = (
                weights[f"{layer}.weight"] + config["lora_alpha"] / config["r"] * up[:, :rank] @ tensor[:rank]
            )


def affine(
    weights: dict[str, torch.Tensor],
    x: torch.Tensor,
    name: str,
    rows: torch.Tensor | None = None,
    columns: torch.Tensor | None = None,
) -> torch.Tensor:
    """A linear layer with some of its rows and columns."""
    weight, bias = weights[f"{name}.weight"], weights[f"{name}.bias"]
    weight, bias = (weight, bias) if rows is None else (weight[rows], bias[rows])
    return x @ (weight if columns is None else weight[:, columns]).T + bias


def hidden_states(
    weights: dict[str, torch.Tensor],
    kept: dict[str, torch.Tensor],
    inputs: Any,
    bias: torch.Tensor | None = None,
    eps: float = CONFIG["layer_norm_eps"],
) -> torch.Tensor:
    """Hidden states of BERT (Devlin et al. 2019); each reader gets its `kept` channels only; a layer without any is removed.

    A `bias` [heads, tokens, tokens] is added to the scores of every layer, all of whose heads are kept.
    """

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        centred = x - x.mean(-1, keepdim=True)
        scale = (centred.square().mean(-1, keepdim=True) + eps).sqrt()
        return centred / scale * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    ids, mask, size = inputs["input_ids"], inputs["attention_mask"], HIDDEN // HEADS
    tables = [weights[f"bert.embeddings.{name}_embeddings.weight"] for name in ("word", "position", "token_type")]
    x = tables[0][ids] + tables[1][: ids.shape[1]] + tables[2][inputs["token_type_ids"]]
    x = norm(x, "bert.embeddings.LayerNorm")
    for index in range(LAYERS):
        layer = f"bert.encoder.layer.{index}"
        reader = f"{layer}.attention.output.dense"
        if reader not in kept:
            continue
        rows = kept[reader]
        q, k, v = (affine(weights, x, f"{layer}.attention.self.{name}", rows) for name in ("query", "key", "value"))
        values = []
        for first in range(0, len(rows), size):  # a head at a time
            head = slice(first, first + size)
            scores = q[..., head] @ k[..., head].transpose(1, 2) / size**0.5 + (0 if bias is None else bias[first // size])
            values.append(scores.masked_fill(mask[:, None] == 0, -torch.inf).softmax(-1) @ v[..., head])
        x = norm(x + affine(weights, torch.cat(values, -1), reader, columns=rows), f"{layer}.attention.output.LayerNorm")
        rows = kept[f"{layer}.output.dense"]
        inner = affine(weights, x, f"{layer}.intermediate.dense", rows)
        gelu = inner / 2 * (1 + torch.erf(inner / 2**0.5))
        x = norm(x + affine(weights, gelu, f"{layer}.output.dense", columns=rows), f"{layer}.output.LayerNorm")
    return x
