"""Kinds of SOURCE: super-adapter, PEFT adapter, plain LoRA, base model."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub.utils import filter_repo_objects
from tiny_models import TinySource

import lonas_edge.network.source
from lonas_edge.errors import LonasEdgeError
from lonas_edge.network.source import open_source


def test_super_adapter_brings_base_and_search_space(llama_copy: TinySource) -> None:
    shutil.copy(llama_copy.space, llama_copy.adapter / "nncf_config.json")
    source = open_source(str(llama_copy.adapter))
    recorded = json.loads((llama_copy.adapter / "adapter_config.json").read_text())["base_model_name_or_path"]
    assert source.base.folder == Path(recorded)
    assert len(source.space.groups) == 9
    assert source.base.name == Path(recorded).name  # no absolute path in what may be published


def test_a_super_adapter_whose_search_space_is_gone(llama_copy: TinySource, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would be taken for plain LoRA, and answer as the maximal network."""
    record = SimpleNamespace(search_space="0123", base=SimpleNamespace(sha256={}))
    monkeypatch.setattr(lonas_edge.network.source.TrainingRecord, "read", lambda _path: record)
    (llama_copy.adapter / "training.json").write_text("{}")
    with pytest.raises(LonasEdgeError, match=rf"{llama_copy.adapter / 'nncf_config.json'}: missing; .*--nncf-config"):
        open_source(str(llama_copy.adapter), str(llama_copy.base))


@pytest.mark.parametrize("file", ["chat_template.jinja", "tokenizer_config.json"])
def test_the_chat_template_of_an_adapter(llama_copy: TinySource, file: str) -> None:
    """As PEFT and TRL save it; that of a training record comes first."""
    assert llama_copy.opened().prompt_record.chat is None
    text = "{{ messages }}" if file.endswith("jinja") else json.dumps({"chat_template": "{{ messages }}"})
    (llama_copy.adapter / file).write_text(text)
    assert llama_copy.opened().prompt_record.chat == "{{ messages }}"


def test_model_with_a_base_as_source(llama: TinySource) -> None:
    with pytest.raises(LonasEdgeError, match=r"no adapter_config.json; with --model, SOURCE is a PEFT adapter"):
        open_source(str(llama.base), str(llama.adapter))


def test_adapter_whose_base_is_gone(llama_copy: TinySource) -> None:
    path = llama_copy.adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": "/nowhere/base"}))
    with pytest.raises(LonasEdgeError, match=r"/nowhere/base.*named by .*adapter_config.json; pass --model for another"):
        open_source(str(llama_copy.adapter))
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": None}))
    with pytest.raises(LonasEdgeError, match=r"names no base model; pass --model"):
        open_source(str(llama_copy.adapter))


def test_a_directory_has_no_revision(llama_copy: TinySource) -> None:
    with pytest.raises(LonasEdgeError, match=r"base@v2: .*base is a local path; revisions exist on the hub only. Omit @v2\."):
        open_source(f"{llama_copy.base}@v2")
    folder = llama_copy.base.rename(llama_copy.base.with_name("base@v2"))
    assert open_source(str(folder)).base.folder == folder


def test_hub_ids_ask_for_the_files_needed(llama: TinySource, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {}

    def snapshot_download(repo: str, revision: str | None, allow_patterns: list[str], ignore_patterns: list[str]) -> str:
        asked[repo] = (revision, allow_patterns)
        pooling = {"1_Pooling/config.json", "sentence_bert_config.json", "sentence_xlm-roberta_config.json"}
        files = {"config.json", *pooling, "openvino/config.json", "onnx/model.json"}
        kept = set(filter_repo_objects(files, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns))
        assert kept == {"config.json", *pooling}  # other formats of the same model are left there
        return str({"me/base": llama.base, "me/adapter": llama.adapter}[repo])

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    source = open_source("me/adapter", "me/base@v2", llama.space, weights=False)
    assert (source.base.name, source.adapter and source.adapter.name) == ("me/base", "me/adapter")
    assert asked["me/base"][0] == "v2"
    assert asked["me/adapter"][0] is None
    assert not any("*.safetensors" in pattern for _, patterns in asked.values() for pattern in patterns)
    open_source("me/adapter", "me/base@v2", llama.space)
    assert all("*.safetensors" in patterns for _, patterns in asked.values())
