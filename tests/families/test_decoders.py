"""Decoders as embedding models and classifiers, of every model type: names, sub-networks, IRs in stock clients, trainings."""

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import openvino_genai
import pytest
import torch
from one_pass_models import check_network, exported
from optimum.intel import OVModelForFeatureExtraction, OVModelForSequenceClassification
from oracle import oracle_model
from peft import LoraConfig, get_peft_model
from tiny_models import TARGETS, TinyModels, TinySource, randomize_trainable
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

from lonas_edge.data.pooling import Pooling
from lonas_edge.errors import LonasEdgeError
from lonas_edge.families import CLASSIFICATION, EMBEDDING, FAMILIES, Family
from lonas_edge.network.source import open_source
from lonas_edge.space.architecture import Architecture
from lonas_edge.space.generate import generate_space

EXACT = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}
TEXTS = ["the good film", "not bad", "the same film is not the good film"]
DECODERS = [
    "llama",
    "qwen3-tied",
    "gemma3-tied",
    *(pytest.param(name, marks=pytest.mark.slow) for name in ("mistral", "qwen2", "gemma", "gemma2", "smollm3")),
]
OUTPUTS = 3


def write(models: TinyModels, case: str, folder: Path, outputs: int = 0) -> TinySource:
    """An adapter by PEFT of an embedding model or, with `outputs`, of a classifier, on the base of a language model.

    The space has ranks, MLP widths and two blocks that can be removed.
    """
    torch.manual_seed(5)
    base, auto = models.base(case), AutoModelForSequenceClassification if outputs else AutoModel
    model = auto.from_pretrained(base, dtype=torch.float32, **({"num_labels": outputs} if outputs else {}))
    task = "SEQ_CLS" if outputs else "FEATURE_EXTRACTION"
    peft = get_peft_model(model, LoraConfig(r=8, lora_alpha=16, target_modules=TARGETS, task_type=task))
    randomize_trainable(peft)
    peft.save_pretrained(folder / "adapter")
    model.config.architectures = [type(model).__name__]
    architecture, space = Architecture.from_config(model.config, case), folder / "space.json"
    layer = architecture.family.layer
    blocks = (f"{layer(0)}.self_attn", f"{layer(2)}.mlp")
    space.write_text(json.dumps(generate_space(architecture, (1, 0.75, 0.5), (8, 6), blocks=[[block] for block in blocks])))
    return TinySource(case, base, folder / "adapter", space)


def batch(base: Path, *texts: list[str]) -> dict[str, torch.Tensor]:
    return dict(
        AutoTokenizer.from_pretrained(base, padding_side="right")(*(texts or (TEXTS,)), padding=True, return_tensors="pt")
    )


def unequal(source: TinySource) -> list[int]:
    """Other widths in every layer; both blocks are removed."""
    return [values[index % len(values)] if 0 not in values else 0 for index, values in enumerate(source.groups())]


@pytest.mark.parametrize("case", DECODERS)
def test_embeds_as_defined(case: str, run_cli: Callable, tiny_models: TinyModels, tmp_path: Path) -> None:
    """Activated, materialized, and as an IR in optimum-intel and openvino_genai, which pools the last token."""
    source = write(tiny_models, case, tmp_path)
    inputs = batch(source.base)
    mask = inputs["attention_mask"]
    assert source.opened().architecture.family.kind is EMBEDDING and mask.min() == 0
    with torch.no_grad():
        model = oracle_model(AutoModel, source.base, source.adapter, source.space, unequal(source))
        expected = model(**inputs, use_cache=False).last_hidden_state
    check_network(source, unequal(source), inputs, expected, mask)
    ir = exported(run_cli, source, unequal(source), tmp_path)
    opened = OVModelForFeatureExtraction.from_pretrained(ir, ov_config=dict(EXACT))
    hidden = opened(**{name: inputs[name] for name in opened.input_names}).last_hidden_state
    assert ((hidden - expected) * mask[..., None]).abs().max() < 1e-3
    last = openvino_genai.TextEmbeddingPipeline.PoolingType.LAST_TOKEN
    pipeline = openvino_genai.TextEmbeddingPipeline(str(ir), "CPU", pooling_type=last, normalize=True, **EXACT)
    pooled = expected[range(len(TEXTS)), mask.sum(1) - 1]
    embedded = np.array(pipeline.embed_documents(TEXTS))
    assert np.abs(embedded - (pooled / pooled.norm(dim=1, keepdim=True)).numpy()).max() < 1e-4


@pytest.mark.parametrize("padding", ["left", "right"])
def test_sentence_transformers(padding: str, run_cli: Callable, tiny_models: TinyModels, tmp_path: Path) -> None:
    """Texts with a prompt, padded on either side, and one that is cut, as the PyTorch model embeds them."""
    sentence_transformers = pytest.importorskip("sentence_transformers")
    base = shutil.copytree(tiny_models.base("qwen3-tied"), tmp_path / "base")
    Pooling("lasttoken", normalize=True, max_length=12, prompts={"query": "find: "}).write(base, 64)
    words = AutoTokenizer.from_pretrained(base, padding_side=padding)
    words.chat_template = "{% for message in messages %}<s>{{ message.content }}</s>{% endfor %}"  # embeddings have no turns
    words.save_pretrained(base)
    run_cli("export", base, "--weight-format", "fp32", "--output", tmp_path / "ir").ok()
    options = {"backend": "openvino", "model_kwargs": {"ov_config": dict(EXACT)}, "local_files_only": True}
    embedded = sentence_transformers.SentenceTransformer(str(tmp_path / "ir"), **options).encode(TEXTS, prompt_name="query")
    model = AutoModel.from_pretrained(base, dtype=torch.float32)
    for text, embedding in zip(TEXTS, embedded, strict=True):
        ids = words(f"find: {text}", truncation=True, max_length=12, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            last = model(ids, use_cache=False).last_hidden_state[0, -1]
        assert np.abs(embedding - (last / last.norm()).numpy()).max() < 1e-4


@pytest.mark.parametrize("case", DECODERS)
def test_classifies_as_defined(case: str, run_cli: Callable, tiny_models: TinyModels, tmp_path: Path) -> None:
    """Activated, materialized, and as an IR in optimum-intel: by the last token of each text of a padded batch."""
    source = write(tiny_models, case, tmp_path, OUTPUTS)
    inputs = batch(source.base)
    with torch.no_grad():
        auto = AutoModelForSequenceClassification
        model = oracle_model(auto, source.base, source.adapter, source.space, unequal(source), num_labels=OUTPUTS)
        expected = torch.cat([model(**batch(source.base, [text]), use_cache=False).logits for text in TEXTS])
    assert source.opened().architecture.family.kind is CLASSIFICATION and expected.std() > 0.05
    check_network(source, unequal(source), inputs, expected)
    ir = exported(run_cli, source, unequal(source), tmp_path)
    opened = OVModelForSequenceClassification.from_pretrained(ir, ov_config=dict(EXACT))
    assert (opened(**{name: inputs[name] for name in opened.input_names}).logits - expected).abs().max() < 1e-3
    assert json.loads((ir / "config.json").read_text())["architectures"] == [type(model).__name__]


@pytest.mark.parametrize("family", FAMILIES)
def test_processes_get_a_family(family: Family) -> None:
    """A latency table is measured in another process."""
    assert type(pickle.loads(pickle.dumps(family))) is type(family)


def test_a_checkpoint_without_blocks(run_cli: Callable, tiny_models: TinyModels, tmp_path: Path) -> None:
    """It can be inspected and exported again: attention that is missing has no MACs."""
    source = write(tiny_models, "llama", tmp_path, OUTPUTS)
    chosen = tmp_path / "chosen.json"
    chosen.write_text(json.dumps({"widths": unequal(source)}))
    ran = run_cli(
        "export", *source.arguments(), "--subnet", chosen, "--stage", "checkpoint", "--output", tmp_path / "once"
    ).ok()
    assert "fill the removed blocks with random weights" in (tmp_path / "once/README.md").read_text()
    ran = run_cli("inspect", tmp_path / "once", "--json").ok()
    first = run_cli("inspect", *source.arguments(), "--subnet", chosen, "--json")
    macs = [json.loads(each.out)[key]["macs"] for each, key in ((first, "subnetwork"), (ran, "unpruned"))]
    assert macs[1] < macs[0]  # the adapter is merged
    ran = run_cli("export", tmp_path / "once", "--weight-format", "fp32", "--output", tmp_path / "again").ok()


@pytest.mark.parametrize("case", ["llama", "qwen2", "gemma3-tied", "smollm3"])
@pytest.mark.parametrize("gone", [1, 2])
def test_a_removed_layer_leaves_a_stock_model(
    case: str, gone: int, run_cli: Callable, tiny_models: TinyModels, tmp_path: Path
) -> None:
    """transformers opens it: kinds of layers in lists of the configuration keep their layers."""
    source = write(tiny_models, case, tmp_path, OUTPUTS)
    layer, space = source.opened().architecture.family.layer(gone), json.loads(source.space.read_text())
    blocks = [[f"{layer}.self_attn"], [f"{layer}.mlp"]]
    space["bootstrapNAS"]["training"]["elasticity"]["lonas_edge"]["blocks"] = blocks
    source.space.write_text(json.dumps(space))
    widths, chosen = [max(values) if 0 not in values else 0 for values in source.groups()], tmp_path / "chosen.json"
    chosen.write_text(json.dumps({"widths": widths}))
    options = ["--subnet", chosen, "--stage", "checkpoint", "--output", tmp_path / "out"]
    run_cli("export", *source.arguments(), *options).ok()
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["num_hidden_layers"] == 2 and "removed_blocks" not in config
    stock = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    inputs, auto = batch(source.base), AutoModelForSequenceClassification
    with torch.no_grad():
        model = oracle_model(auto, source.base, source.adapter, source.space, widths, num_labels=OUTPUTS)
        assert (stock(**inputs).logits - model(**inputs).logits).abs().max() < 1e-4


def test_reranks_as_defined(run_cli: Callable, tiny_models: TinyModels, tmp_path: Path) -> None:
    """`TextRerankPipeline` ranks passages by the scores of the base with a head of one output."""
    torch.manual_seed(7)
    base = tmp_path / "base"
    model = AutoModelForSequenceClassification.from_pretrained(tiny_models.base("llama"), num_labels=1, dtype=torch.float32)
    model.score.weight.data *= 20
    model.save_pretrained(base)
    words = AutoTokenizer.from_pretrained(tiny_models.base("llama"))
    words.chat_template = "{% for message in messages %}<s>{{ message.content }}{% endfor %}"  # the language model's
    words.save_pretrained(base)
    run_cli("export", base, "--weight-format", "fp32", "--output", tmp_path / "ir").ok()
    query, passages = "good film", ["the bad film", "the film is good", "not", "same"]
    with torch.no_grad():
        scores = [model(**batch(base, [query], [passage])).logits.sigmoid().item() for passage in passages]
    pipeline = openvino_genai.TextRerankPipeline(str(tmp_path / "ir"), "CPU", top_n=len(passages), **EXACT)
    ranked = dict(pipeline.rerank(query, passages))
    assert [ranked[index] for index in range(len(passages))] == pytest.approx(scores, abs=1e-4)
    assert max(scores) - min(scores) > 0.01
    sentence_transformers = pytest.importorskip("sentence_transformers")
    options = {"backend": "openvino", "model_kwargs": {"ov_config": dict(EXACT)}, "local_files_only": True}
    encoder = sentence_transformers.CrossEncoder(str(tmp_path / "ir"), **options)
    assert encoder.predict([(query, passage) for passage in passages]).tolist() == pytest.approx(scores, abs=1e-4)


@pytest.mark.parametrize(
    "field, message",
    [
        ({"use_bidirectional_attention": True}, "use_bidirectional_attention True is not supported"),
        ({"is_causal": False}, "is_causal False is not supported"),
    ],
)
def test_attention_to_later_tokens_is_refused(field: dict, message: str, tiny_models: TinyModels, tmp_path: Path) -> None:
    """As EmbeddingGemma's; the exporter and search would see other windows."""
    base = shutil.copytree(tiny_models.base("gemma3-tied"), tmp_path / "base")
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | field))
    with pytest.raises(LonasEdgeError, match=message):
        open_source(str(base), kind=EMBEDDING)


def test_poolings_of_a_decoder(tiny_models: TinyModels, tmp_path: Path) -> None:
    """The first token sees no other one. Texts are cut where its tokenizer cuts them."""
    base = shutil.copytree(tiny_models.base("llama"), tmp_path / "base")
    Pooling("cls").write(base, 64)
    with pytest.raises(LonasEdgeError, match="pooling cls: the first token of a decoder sees no other token"):
        open_source(str(base))
    Pooling("lasttoken", max_length=24).write(base, 64)
    assert open_source(str(base)).pooling == Pooling("lasttoken", max_length=24, stated=True)
    Pooling("lasttoken").write(base, 64)
    config = json.loads((base / "tokenizer_config.json").read_text())
    del config["model_max_length"]
    (base / "tokenizer_config.json").write_text(json.dumps(config | {"max_len": 17}))  # an old name
    data = tmp_path / "texts.jsonl"
    data.write_text('{"text": "' + "the good film " * 20 + '"}\n')
    assert open_source(str(base)).open_data(data).lengths(AutoTokenizer.from_pretrained(base)) == [17]


def test_an_embedding_model_without_padding(run_cli: Callable, tiny_models: TinyModels, tmp_path: Path) -> None:
    """A tokenizer without a padding token is refused before any work."""
    base, data = shutil.copytree(tiny_models.base("llama"), tmp_path / "base"), tmp_path / "texts.jsonl"
    Pooling("lasttoken").write(base, 64)
    config = json.loads((base / "tokenizer_config.json").read_text())
    (base / "tokenizer_config.json").write_text(json.dumps({key: config[key] for key in config if key != "pad_token"}))
    data.write_text("".join(f'{{"text": "the good film {n}"}}\n' for n in range(80)))
    ran = run_cli("compress", base, "--data", data, "--output", tmp_path / "small")
    assert ran.code == 1 and "the tokenizer has no PAD token" in ran.err, ran.err
    assert not (tmp_path / "small").exists()


def test_another_padding_is_refused(run_cli: Callable, tiny_models: TinyModels, tmp_path: Path) -> None:
    """By whoever opens a finished classifier: clients would read the padding."""
    base, data = tmp_path / "base", tmp_path / "data.jsonl"
    AutoModelForSequenceClassification.from_pretrained(tiny_models.base("llama"), num_labels=2).save_pretrained(base)
    AutoTokenizer.from_pretrained(tiny_models.base("llama")).save_pretrained(base)
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "pad_token_id": 7}))
    data.write_text('{"text": "good", "label": 1}\n')
    for command in (("export", base, "--output", tmp_path / "ir"), ("eval", base, "--data", data)):
        ran = run_cli(*command)
        assert ran.code == 1 and "pads with token 1, but pad_token_id in config.json is 7" in " ".join(ran.err.split()), ran.err
