"""Encoders of BERT's structure, of every model type and task: shapes, names, sub-networks, IRs in stock clients, trainings."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import openvino_genai
import pytest
import torch
from one_pass_models import check_network, exported
from optimum.intel import OVModelForFeatureExtraction, OVModelForSequenceClassification
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from tiny_bert import CONFIG, CONTEXT, HIDDEN, LAYERS, VOCAB, affine, chosen_weights, hidden_states, oracle_embeddings
from tiny_encoders import TARGETS, as_bert, config_of, relative_bias, tokenizer, write, write_classifier
from tiny_models import TinySource
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification

from lonas_edge.families import CLASSIFICATION, EMBEDDING, FAMILIES
from lonas_edge.network.source import open_source
from lonas_edge.network.super_network import load_super_network
from lonas_edge.space.architecture import Architecture
from lonas_edge.space.generate import generate_space
from lonas_edge.training.defaults import adapter_ranks
from lonas_edge.training.options import TrainOptions

UNEQUAL = [32, 64, 48, 6, 8, 6, 64, 96, 128]
EXACT = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}
TEXTS = ["the good film", "not bad", "the same film is not the good film", "not " * 80]
QUERY, PASSAGES = "good film", ["the bad film", "the film is good", "not", "not good film is bad", "same"]
ENCODERS = ["xlm-roberta", "mpnet", *(pytest.param(name, marks=pytest.mark.slow) for name in ("distilbert", "roberta"))]
CLASSIFIERS = ["xlm-roberta", *(pytest.param(name, marks=pytest.mark.slow) for name in ("distilbert", "roberta"))]
ADAPTED = {**TARGETS, "bert": ["query", "value"]}
KINDS = [(family, model_type) for family in FAMILIES for model_type in family.model_types if model_type in ADAPTED]


def batch(*texts: list[str]) -> dict[str, torch.Tensor]:
    encoded = tokenizer()(*(texts or (TEXTS,)), padding=True, truncation=True, return_tensors="pt")
    return {**encoded, "token_type_ids": torch.zeros_like(encoded["input_ids"])}


def oracle(source: TinySource, folder: Path, widths: list[int], inputs: Any) -> torch.Tensor:
    """Hidden states of a sub-network, or a classifier's logits, float64."""
    bert = as_bert(source, folder)
    weights, kept = chosen_weights(bert.base, bert.adapter, bert.space, widths)
    bias, eps = (
        relative_bias(weights, inputs["input_ids"].shape[1]),
        1e-12 if source.case == "distilbert" else CONFIG["layer_norm_eps"],
    )
    hidden = hidden_states(weights, kept, inputs, bias, eps)
    if "pre_classifier.weight" in weights:
        return affine(weights, affine(weights, hidden[:, 0], "pre_classifier").relu(), "classifier")
    if "classifier.out_proj.weight" in weights:
        return affine(weights, torch.tanh(affine(weights, hidden[:, 0], "classifier.dense")), "classifier.out_proj")
    return hidden


def unequal(source: TinySource) -> list[int]:
    """Other widths in every layer; MPNet has no elastic heads."""
    return UNEQUAL[-len(source.groups()) :]


@pytest.mark.parametrize(("family", "model_type"), KINDS)
def test_shapes_and_names_are_those_of_the_modules(family: Any, model_type: str) -> None:
    """NNCF names a weight by the classes and names of the modules that hold it, from the PEFT model down."""
    fields = {"num_labels": 3, "architectures": [family.class_names[model_type]["model"]]}
    config = AutoConfig.for_model(**CONFIG, **fields) if model_type == "bert" else config_of(model_type, **fields)
    architecture = Architecture.from_config(config, model_type)
    assert type(architecture.family) is type(family)
    kind = AutoModel if family.kind is EMBEDDING else AutoModelForSequenceClassification
    model = kind.from_config(config, **family.options)
    assert architecture.shapes == {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    peft: Any = get_peft_model(model, LoraConfig(r=8, target_modules=ADAPTED[model_type], task_type=family.kind.peft))
    width = generate_space(architecture, (1, 0.5), (8, 6))["bootstrapNAS"]["training"]["elasticity"]["width"]
    nodes = [node for group in width["overwrite_groups"] for node in group] + width.get("add_dynamic_inputs", [])
    assert len(nodes) >= LAYERS * 3
    for node in nodes:
        module, parts = peft, node.split("/")[:-1]
        assert parts[0] == type(peft).__name__
        for part in parts[1:]:
            named, name = part.rstrip("]").split("[")
            if name != "self_linear":
                module = getattr(module, name) if not name.isdecimal() else module[int(name)]
                assert named in (type(module).__name__, f"NNCF{type(module).__name__}"), node


@pytest.mark.parametrize("model_type", ENCODERS)
def test_embeds_as_defined(model_type: str, run_cli: Callable, tmp_path: Path) -> None:
    """Activated, materialized, and as an IR in openvino_genai; a text of the whole context is cut, none before."""
    source, inputs = write(model_type, tmp_path), batch()
    assert source.opened().architecture.context == CONTEXT and inputs["input_ids"].shape[1] == CONTEXT
    expected, mask = oracle(source, tmp_path / "bert", unequal(source), inputs), inputs["attention_mask"]
    check_network(source, unequal(source), batch(), expected, mask)
    first = openvino_genai.TextEmbeddingPipeline.PoolingType.CLS
    ir = str(exported(run_cli, source, unequal(source), tmp_path))
    model = OVModelForFeatureExtraction.from_pretrained(ir, ov_config=dict(EXACT))
    hidden = model(**{name: inputs[name] for name in model.input_names}).last_hidden_state
    assert ((hidden - expected) * mask[..., None]).abs().max() < 1e-3
    assert "token_type_ids" not in model.input_names
    pipeline = openvino_genai.TextEmbeddingPipeline(ir, "CPU", pooling_type=first, normalize=True, **EXACT)
    embedded = np.array(pipeline.embed_documents(TEXTS))
    assert np.abs(embedded - oracle_embeddings(expected, mask, "cls").numpy()).max() < 1e-4


@pytest.mark.parametrize("model_type", CLASSIFIERS)
def test_classifies_as_defined(model_type: str, run_cli: Callable, tmp_path: Path) -> None:
    """Activated, materialized, and as an IR in optimum-intel; the base has no head, and the adapter's is whole."""
    source = write(model_type, tmp_path, outputs=3).ordered(tmp_path / "ordered")
    expected = oracle(source, tmp_path / "bert", unequal(source), batch())
    assert source.opened().architecture.family.kind is CLASSIFICATION and expected.std() > 0.1
    check_network(source, unequal(source), batch(), expected)
    ir = exported(run_cli, source, unequal(source), tmp_path)
    model = OVModelForSequenceClassification.from_pretrained(ir, ov_config=dict(EXACT))
    assert (model(**{name: batch()[name] for name in model.input_names}).logits - expected).abs().max() < 1e-3
    assert json.loads((ir / "config.json").read_text())["architectures"] == [model.config.architectures[0]]


@pytest.mark.slow
@pytest.mark.parametrize("model_type", CLASSIFIERS)
def test_a_reranker(model_type: str, run_cli: Callable, tmp_path: Path) -> None:
    """Its layers are searched and recovered on pairs; `TextRerankPipeline` ranks passages by the oracle's scores."""
    base, space, data = write_classifier(model_type, tmp_path / "base"), tmp_path / "space.json", tmp_path / "pairs.jsonl"
    data.write_text("".join(json.dumps({"query": QUERY, "passage": text}) + "\n" for text in (*PASSAGES, *TEXTS[:3])))
    run_cli("space", "--model", base, "--depth", "layer", "--ratios", 1, "--ranks", 32, "--output", space).ok()
    inputs, minimal = ("--nncf-config", space, "--data", data), ("--subnet", "minimal", "--teacher", base, "--eval-data", data)
    run_cli("search", base, *inputs, "--num-samples", 8, "--evals", 4, "--cost", "macs", "--output", tmp_path / "search").ok()
    steps = ("--steps", 30, "--batch-size", 8, "--lr", 0.005, "--dtype", "fp32", "--output", tmp_path / "out")
    run_cli("train", "--from", base, *inputs, *minimal, *steps).ok()
    losses = json.loads((tmp_path / "out/training.json").read_text())["eval_data"]["losses"]
    assert losses[-1]["loss"] < 0.6 * losses[0]["loss"]

    run_cli("export", tmp_path / "out", "--weight-format", "fp32", "--output", tmp_path / "ir").ok()
    pruned = TinySource(model_type, base, tmp_path / "out", space)
    widths = [values[-1] for values in pruned.groups()]
    assert widths[-1] == 0
    scores = oracle(pruned, tmp_path / "bert", widths, batch([QUERY] * len(PASSAGES), PASSAGES))[:, 0].sigmoid()
    pipeline = openvino_genai.TextRerankPipeline(str(tmp_path / "ir"), "CPU", top_n=len(PASSAGES), **EXACT)
    ranked = dict(pipeline.rerank(QUERY, PASSAGES))
    assert [ranked[index] for index in range(len(PASSAGES))] == pytest.approx(scores.tolist(), abs=1e-4)
    assert scores.max() - scores.min() > 0.01


@pytest.mark.slow
@pytest.mark.parametrize("model_type", CLASSIFIERS)
def test_a_new_head(model_type: str, run_cli: Callable, tmp_path: Path) -> None:
    """A GLUE task on a body alone: all layers of the new head are in the adapter, and clients get its logits."""
    source = write(model_type, tmp_path / "written")
    (tmp_path / "RTE").mkdir()
    rows = [f"{n}\t{QUERY}\t{text}\t{'not_' * (n % 2)}entailment" for n, text in enumerate((*PASSAGES, *TEXTS[:3]))]
    for name in ("train", "dev"):
        (tmp_path / f"RTE/{name}.tsv").write_text("\n".join(["index\tsentence1\tsentence2\tlabel", *rows]) + "\n")
    new = ("--model", source.base, "--nncf-config", source.space, "--data", tmp_path / "RTE/train.tsv", "--rank", 8)
    ran = run_cli("train", *new, "--steps", 2, "--batch-size", 4, "--output", tmp_path / "super").ok()
    trained = TinySource(model_type, source.base, tmp_path / "super", source.space)
    expected = oracle(trained, tmp_path / "bert", unequal(trained), batch())
    assert expected.shape == (len(TEXTS), 2)
    check_network(trained, unequal(trained), batch(), expected)
    ran = run_cli(
        "eval", trained.adapter, exported(run_cli, trained, unequal(trained), tmp_path), "--datasets", tmp_path, "--json"
    )
    assert ran.code == 0 and json.loads(ran.out)["targets"][0]["tasks"][0]["questions"] == len(rows), ran.err


@pytest.mark.slow
@pytest.mark.parametrize("model_type", TARGETS)
def test_search_and_training(model_type: str, run_cli: Callable, tmp_path: Path) -> None:
    """Layers, ranks and MLP widths are searched; the smallest network is recovered, and is the oracle's as an IR."""
    source, texts = write(model_type, tmp_path), tmp_path / "texts.jsonl"
    texts.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS * 2))
    space = ("--depth", "layer", "--ratios", "1,0.5", "--ranks", 32, "--output", source.space, "--overwrite")
    ran = run_cli("space", "--model", source.base, *space).ok()
    data = ("--nncf-config", source.space, "--data", texts)
    ran = run_cli(
        "search", source.base, *data, "--num-samples", 8, "--evals", 8, "--cost", "macs", "--output", tmp_path / "s"
    ).ok()
    recovery = ("--subnet", "minimal", "--teacher", source.base, "--eval-data", texts, "--lr", 0.01)
    steps = ("--steps", 30, "--batch-size", 4, "--dtype", "fp32")
    ran = run_cli("train", "--from", source.base, *data, *recovery, *steps, "--output", tmp_path / "out").ok()
    losses = json.loads((tmp_path / "out/training.json").read_text())["eval_data"]["losses"]
    assert losses[-1]["loss"] < 0.6 * losses[0]["loss"]
    ran = run_cli("export", tmp_path / "out", "--weight-format", "fp32", "--output", tmp_path / "ir").ok()
    trained, inputs = replace(source, adapter=tmp_path / "out"), batch()
    widths = [values[-1] for values in trained.groups()]
    expected = oracle(trained, tmp_path / "bert", widths, inputs)
    kept = LAYERS - widths.count(0)
    assert kept < LAYERS and AutoConfig.from_pretrained(tmp_path / "ir").num_hidden_layers == kept
    model = OVModelForFeatureExtraction.from_pretrained(tmp_path / "ir", ov_config=dict(EXACT))
    hidden = model(**{name: inputs[name] for name in model.input_names}).last_hidden_state
    assert ((hidden - expected) * inputs["attention_mask"][..., None]).abs().max() < 1e-3
    ran = run_cli("train", "--from", source.base, *data, *recovery, "--max-length", CONTEXT + 1, "--output", tmp_path / "more")
    assert ran.code == 1 and f"has a context of {CONTEXT} tokens" in ran.err


def test_a_checkpoint_of_pre_training(tmp_path: Path) -> None:
    """Its body has a prefix; its head and its pooler are ignored, by both tasks."""
    for outputs in (0, 3):
        source = write("roberta", tmp_path / str(outputs), outputs)
        tensors = {f"roberta.{name}": tensor for name, tensor in load_file(source.base / "model.safetensors").items()}
        tensors |= {"lm_head.dense.weight": torch.zeros(HIDDEN, HIDDEN), "lm_head.bias": torch.zeros(VOCAB)}
        assert "roberta.pooler.dense.weight" in tensors
        save_file(tensors, source.base / "model.safetensors", {"format": "pt"})
        network: Any = load_super_network(open_source(str(source.adapter), str(source.base), source.space))
        network.activate(UNEQUAL)
        expected = oracle(source, tmp_path / f"bert{outputs}", UNEQUAL, batch())
        with torch.inference_mode():
            answer = network.model(**batch(), use_cache=False)
        distance = answer.logits - expected if outputs else answer.last_hidden_state - expected
        assert (distance if outputs else distance * batch()["attention_mask"][..., None]).abs().max() < 1e-4


def test_a_head_is_no_target(run_cli: Callable, tmp_path: Path) -> None:
    """PEFT trains it whole, so it has no rank; a body alone is refused by the head's names."""
    source = write("xlm-roberta", tmp_path, outputs=3)
    config = json.loads((source.adapter / "adapter_config.json").read_text())
    (source.adapter / "adapter_config.json").write_text(json.dumps({**config, "target_modules": "all-linear"}))
    opened = source.opened()
    ranks = adapter_ranks(TrainOptions(target_modules=("dense",)), opened.architecture)
    assert len(ranks) == 3 * LAYERS and not any("classifier" in name for name in (*ranks, *opened.ranks()))
    config = json.loads((source.base / "config.json").read_text())
    (source.base / "config.json").write_text(json.dumps({**config, "architectures": ["XLMRobertaForMaskedLM"]}))
    ran = run_cli("export", source.base, "--output", tmp_path / "out")
    message = " ".join(ran.err.split())
    assert ran.code == 1 and all(f"classifier.{name}.weight: missing" in message for name in ("dense", "out_proj"))


def test_other_networks_are_refused(run_cli: Callable, tmp_path: Path) -> None:
    """Classifiers of a model type that has none, by name."""
    base = write("mpnet", tmp_path).base
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "architectures": ["MPNetForSequenceClassification"]}))
    ran = run_cli("inspect", base)
    assert ran.code == 1 and "classifiers and rerankers of mpnet are not supported" in " ".join(ran.err.split()), ran.err
    (base / "config.json").write_text(json.dumps(config))
    ran = run_cli("space", "--model", base, "--heads", "--output", tmp_path / "heads.json")
    assert ran.code == 1 and "a column for each head" in " ".join(ran.err.split()), ran.err
