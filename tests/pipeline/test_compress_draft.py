"""`compress --draft`: a draft next to the model, rows with it in the report, and the reason where there is none."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pipeline_runs import QUICK, forbidden, plan_steps
from tiny_bert import TinyBert
from tiny_models import TinySource

from lonas_edge.cli.compress import compress
from lonas_edge.drafting import measure, training
from lonas_edge.errors import LonasEdgeError
from lonas_edge.exporting.drafts import DraftRecord, open_draft
from lonas_edge.exporting.exported import open_exported
from lonas_edge.exporting.manifest import DRAFT
from lonas_edge.pipeline import drafts
from lonas_edge.pipeline.record import CompressRecord
from lonas_edge.pipeline.report import summary

OPTIONS = {**QUICK, "draft": "auto"}
BASELINE, OURS = "unpruned INT8 (optimum-cli)", "compressed INT8"


@pytest.fixture(autouse=True)
def _short_training(monkeypatch: pytest.MonkeyPatch, quick: None) -> None:
    monkeypatch.setattr(training, "STEPS", 4)
    monkeypatch.setattr(training, "EVERY", 2)
    monkeypatch.setattr(measure, "PROPOSED", (2,))


def run(llama: TinySource, data: Path, output: Path) -> CompressRecord:
    return compress(llama.base, data=data, output=output, **OPTIONS)


def test_a_draft_that_pays(llama: TinySource, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A random model's draft does not; here, any does."""
    monkeypatch.setattr(DraftRecord, "pays", property(lambda _: True))
    out = tmp_path / "out"
    record = run(llama, data, out)

    assert [network.name for network in record.networks] == [
        BASELINE, f"{BASELINE}, activation group", OURS, f"{BASELINE} + draft", f"{OURS} + draft",
    ]  # fmt: skip
    assert open_draft(out / "draft", open_exported(out / "model")).num_assistant_tokens == 2
    assert DraftRecord.read(out / "draft" / DRAFT).prompts["train"] > 32
    assert "num_assistant_tokens=2" in (out / "model/README.md").read_text()
    by_name = {network.name: network for network in record.networks}
    for name in (BASELINE, OURS):
        drafted = by_name[f"{name} + draft"]
        assert drafted.latency.keys() == {"ttft", "tpot", "answer"}
        assert drafted.quality["loss"] == by_name[name].quality["loss"]
        assert drafted.quality["exact-match"].difference is not None
        assert (drafted.folder, drafted.file_bytes) == (None, by_name[name].file_bytes)
    assert len(record.table().rows) == 5
    assert f"Take {BASELINE} + draft for the least loss of accuracy, {OURS} + draft for the least time." in summary(record)[-1]
    [step] = [step for step in record.steps if step.name == "draft"]
    assert step.command.startswith(f"lonas-edge draft {out / 'model'} --data {out / 'steps/data/train.jsonl'}")

    monkeypatch.setattr(drafts, "make_draft", forbidden)
    assert run(llama, data, out) == record  # nothing is repeated
    assert (out / "draft" / DRAFT).exists()


def test_a_draft_that_does_not_pay(llama: TinySource, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DraftRecord, "pays", property(lambda _: False))
    record = run(llama, data, tmp_path / "out")
    assert [network.name for network in record.networks] == [BASELINE, f"{BASELINE}, activation group", OURS]
    assert any(warning.startswith("No draft: The draft does not save 10% of TPOT") for warning in record.warnings)
    assert not (tmp_path / "out/draft").exists()


def test_a_draft_that_fails(llama: TinySource, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The finished model is not lost."""

    def fail(*_given: object) -> None:
        raise RuntimeError("bad \x1b node")

    monkeypatch.setattr(drafts, "make_draft", fail)
    record = run(llama, data, tmp_path / "out")
    assert "No draft: it failed: bad \\x1b node" in record.warnings
    assert (tmp_path / "out/model/openvino_model.xml").exists()


def test_a_draft_that_is_refused(llama: TinySource, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The report has the reason, without the advice to continue."""

    def fail(*_given: object) -> None:
        try:
            raise LonasEdgeError("all answers are empty")
        except LonasEdgeError as error:
            raise LonasEdgeError(f"{error}\nThe work so far is kept.") from error

    monkeypatch.setattr(drafts, "make_draft", fail)
    assert "No draft: all answers are empty" in run(llama, data, tmp_path / "out").warnings


def test_texts_have_no_prompts(llama: TinySource, tmp_path: Path) -> None:
    """The run goes on without a draft."""
    data = tmp_path / "texts.jsonl"
    data.write_text("".join(json.dumps({"text": f"The number {n} is a number."}) + "\n" for n in range(96)))
    options = {name: value for name, value in OPTIONS.items() if name != "template"}
    record = compress(llama.base, data=data, output=tmp_path / "out", **options)
    assert any("No draft: " in warning and "plain texts have no prompts" in warning for warning in record.warnings)


def test_a_draft_is_trained_where_it_is_wanted(llama: TinySource, data: Path, tmp_path: Path) -> None:
    """By default for a language model."""
    assert "draft" in plan_steps(llama.base, tmp_path, data, draft=None)
    assert "draft" not in plan_steps(llama.base, tmp_path, data, draft="none")


def test_encoders_take_none(refused: Callable[..., str], tiny_bert: TinyBert) -> None:
    source: Any = tiny_bert.source(2)
    assert "--draft auto: a sequence classifier generates no text; omit it" in refused(
        source.adapter, model=source.base, draft="auto"
    )
