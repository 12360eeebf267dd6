"""End to end on a real embedding model, all-MiniLM-L6-v2: a layer removed, recovered on generated sentences, exported."""

import json
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import openvino_genai
import pytest
import torch
from test_e2e_glue import BAD, ENDS, EXACT, GOOD, minilm, run
from torch.nn import functional as F
from transformers import AutoModel, AutoTokenizer

__all__ = ["minilm"]  # the fixture
pytestmark = [pytest.mark.e2e, pytest.mark.slow]

SENTENCES = [text + end for text in (*GOOD, *BAD) for end in ENDS]


def embeddings(folder: Path, texts: list[str], layers: list[int] | None = None) -> torch.Tensor:
    """Normalized means of the last hidden states, by transformers, of a model with some of its layers only."""
    model, tokenizer = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    if layers is not None:
        model.encoder.layer = torch.nn.ModuleList(model.encoder.layer[index] for index in layers)
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.inference_mode():
        hidden, mask = model(**batch).last_hidden_state, batch["attention_mask"][..., None]
    return F.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)


def write_data(folder: Path) -> tuple[Path, Path]:
    """Texts to learn, and pairs in the format of STS-B: 5 for the same statement, else 0."""
    texts, rows = folder / "texts.jsonl", []
    texts.write_text("".join(json.dumps({"text": text}) + "\n" for text in SENTENCES))
    draw = random.Random(1)
    for n in range(60):
        first, end = draw.randrange(len(SENTENCES)), draw.randrange(len(ENDS))
        second = first // len(ENDS) * len(ENDS) + end if n % 2 else draw.randrange(len(SENTENCES))
        same = first // len(ENDS) == second // len(ENDS)
        rows.append(f"{n}\t{SENTENCES[first]}\t{SENTENCES[second]}\t{5 * same}")
    (folder / "STS-B").mkdir()
    (folder / "STS-B/dev.tsv").write_text("\n".join(["index\tsentence1\tsentence2\tscore", *rows]) + "\n")
    return texts, folder


def test_remove_recover_export_eval(minilm: Path, tmp_path: Path) -> None:
    texts, datasets = write_data(tmp_path)
    program = [Path(sys.executable).parent / "lonas-edge", "space", "--model", minilm, "--depth", "layer", "--ratios", 1]
    subprocess.run([*map(str, program), "--output", str(tmp_path / "space.json")], check=True, capture_output=True)
    options = ["--nncf-config", tmp_path / "space.json", "--data", texts]
    bounds = ["--cost", "macs", "--pick", "macs<=0.85x", "--num-samples", 32]
    searched = run(tmp_path, "search", minilm, *options, *bounds, "--output", tmp_path / "search")
    [pick] = searched["picks"]
    subnet = tmp_path / "search/subnetworks" / f"{pick['file']}.json"
    widths = json.loads(subnet.read_text())["widths"]
    removed = [int(name.rpartition(".")[2]) for name, width in widths.items() if width == 0]
    assert len(removed) == 1

    whole = embeddings(minilm, SENTENCES)
    before = embeddings(minilm, SENTENCES, [index for index in range(6) if index not in removed])
    training = ["--steps", 60, "--batch-size", 16, "--lr", "1e-3", "--dtype", "fp32", "--eval-data", texts]
    command = ["train", "--from", minilm, *options, "--subnet", subnet, "--teacher", minilm, *training]
    record = run(tmp_path, *command, "--output", tmp_path / "recovered")
    losses = [entry["loss"] for entry in record["eval_data"]["losses"]]
    assert losses[0] == pytest.approx(float((1 - (whole * before).sum(1)).mean()), rel=1e-3)
    assert losses[-1] < 0.7 * losses[0]

    for name, options in (("ir", ["--weight-format", "fp32"]), ("checkpoint", ["--stage", "checkpoint"])):
        run(tmp_path, "export", tmp_path / "recovered", *options, "--output", tmp_path / name)
    stock = embeddings(tmp_path / "checkpoint", SENTENCES)  # stock transformers opens the renumbered layers
    assert float((1 - (whole * stock).sum(1)).mean()) == pytest.approx(losses[-1], rel=1e-2)
    mean = openvino_genai.TextEmbeddingPipeline.PoolingType.MEAN
    pipeline = openvino_genai.TextEmbeddingPipeline(str(tmp_path / "ir"), "CPU", pooling_type=mean, normalize=True, **EXACT)
    assert np.abs(np.array(pipeline.embed_documents(SENTENCES)) - stock.numpy()).max() < 1e-4

    report = run(tmp_path, "eval", minilm, tmp_path / "ir", "--tasks", "STS-B", "--datasets", datasets)
    unpruned, ours = (target["tasks"][0] for target in report["targets"])
    assert unpruned["metric"] == ours["metric"] == "spearman"
    assert ours["accuracy"] > unpruned["accuracy"] - 5 > 40


def test_compress(minilm: Path, tmp_path: Path) -> None:
    """One command: two layers are removed; the reported distance is that of embeddings by openvino_genai and transformers."""
    texts, _ = write_data(tmp_path)
    options = ["--data", texts, "--target", "weights<=0.7x", "--recovery-steps", 20, "--prompt-len", 16]
    program = [Path(sys.executable).parent / "lonas-edge", "compress", minilm, *options, "--output", tmp_path / "out"]
    done = subprocess.run([*map(str, program)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "out/compress.json").read_text())
    first, *_, ours = record["networks"]  # without AMX, the stock file also with an activation group
    assert sum(all(part["kept"] == 0 for part in layer) for layer in ours["removed"]) == 2
    assert ours["file_bytes"] < 0.9 * first["file_bytes"] and ours["latency"]["latency"]["samples"]
    held_out = [json.loads(line)["text"] for line in (tmp_path / "out/steps/data/held_out.jsonl").read_text().splitlines()]
    mean = openvino_genai.TextEmbeddingPipeline.PoolingType.MEAN
    pipeline = openvino_genai.TextEmbeddingPipeline(tmp_path / "out/model", "CPU", pooling_type=mean, normalize=True, **EXACT)
    found = torch.tensor([pipeline.embed_query(text) for text in held_out])
    expected = 1 - (found * embeddings(minilm, held_out)).sum(-1).mean()
    assert ours["quality"]["distance"]["value"] == pytest.approx(float(expected), rel=0.1)
