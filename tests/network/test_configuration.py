"""Configurations of models and tokenizers, checked before a library reads them."""

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_models import CASES, STRUCTURES, VOCAB, TinySource, tokenizer
from transformers import AddedToken

from lonas_edge.errors import LonasEdgeError
from lonas_edge.network.configuration import parse_config, read_config, read_generation_config
from lonas_edge.network.modeling import check_builds
from lonas_edge.network.source import open_source
from lonas_edge.network.tokenizer import check_vocabulary, load_tokenizer
from lonas_edge.space.architecture import Architecture

# of the hub: what must not be refused
PUBLISHED: dict[str, dict[str, Any]] = json.loads((Path(__file__).parents[1] / "data/published_configs.json").read_text())


@pytest.mark.parametrize("content", [*PUBLISHED.values(), *(CASES[case] for case in STRUCTURES)], ids=[*PUBLISHED, *STRUCTURES])
def test_published_configurations_are_accepted(content: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(content))
    config = parse_config(read_config(tmp_path), "it")
    check_builds(Architecture.from_config(config, "it"), "it")
    assert config.num_hidden_layers == content.get("num_hidden_layers", content.get("n_layer"))


WRONG: list[tuple[str, Any, str]] = [
    ("hidden_size", "64", "Field 'hidden_size' expected int, got str"),
    ("num_attention_heads", 3, "attention heads"),
    ("num_key_value_heads", 3, "num_attention_heads 4 is no multiple of num_key_value_heads 3"),
    ("rope_scaling", {"rope_type": "nonsense", "factor": 2.0}, "nonsense"),
    ("eos_token_id", VOCAB, f"eos_token_id: expected a token of the vocabulary, 0 to {VOCAB - 1}, found {VOCAB}"),
    ("quantization_config", {"quant_method": "gptq"}, "quantized bases are not supported"),
]


@pytest.mark.parametrize(("field", "value", "message"), WRONG)
def test_a_field_that_is_wrong(llama_copy: TinySource, field: str, value: Any, message: str) -> None:
    path = llama_copy.base / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: value}))
    with pytest.raises(LonasEdgeError, match=rf"(?s)base.*{message}") as caught:
        open_source(str(llama_copy.base))
    assert "config" in str(caught.value)


# generation_config.json


def test_generation_as_it_is(tmp_path: Path) -> None:
    assert read_generation_config(tmp_path, VOCAB) is None
    content = {"eos_token_id": [1, 2], "do_sample": True, "temperature": 0.6, "top_k": 20, "chat_format": "chatml", "top_p": 1}
    (tmp_path / "generation_config.json").write_text(json.dumps(content))
    assert read_generation_config(tmp_path, VOCAB) == content


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"eos_token_id": VOCAB}, rf"eos_token_id: expected a token of the vocabulary, 0 to {VOCAB - 1}, found {VOCAB}"),
        ([], "expected a JSON object, found list"),
    ],
)
def test_generation_that_is_wrong(tmp_path: Path, content: Any, message: str) -> None:
    (tmp_path / "generation_config.json").write_text(json.dumps(content))
    with pytest.raises(LonasEdgeError, match=rf"(?s)generation_config\.json: .*{message}"):
        read_generation_config(tmp_path, VOCAB)


# tokenizers


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A directory with a tokenizer."""
    tokenizer().save_pretrained(tmp_path)
    return tmp_path


def test_tokenizer_as_it_is(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    loaded = load_tokenizer(folder)
    assert loaded("the on")["input_ids"] == tokenizer()("the on")["input_ids"]
    (folder / "tokenizer_config.json").unlink()
    assert load_tokenizer(folder)("the on")["input_ids"] == tokenizer()("the on")["input_ids"]
    assert load_tokenizer(tmp_path_factory.mktemp("none")) is None


@pytest.mark.parametrize("file", ["tokenizer.json", "tokenizer_config.json"])
def test_tokenizer_that_is_damaged(folder: Path, file: str) -> None:
    (folder / file).write_text("{")
    with pytest.raises(LonasEdgeError, match=f"(?s){folder}.*transformers cannot read it"):
        load_tokenizer(folder)


def test_tokens_beyond_the_vocabulary(folder: Path) -> None:
    found = load_tokenizer(folder)
    size = len(found)
    check_vocabulary(found, size, folder)
    with pytest.raises(
        LonasEdgeError, match=rf"(?s)beyond the model's vocabulary, 0 to {size - 3}.*token {size - 2}.*token {size - 1}"
    ):
        check_vocabulary(found, size - 2, folder)
    found.add_special_tokens({"additional_special_tokens": [AddedToken("<image>", special=True)]})
    check_vocabulary(found, size, folder)  # as Gemma 3's
    found.pad_token = "<image>"
    with pytest.raises(LonasEdgeError, match=rf"token {size} \('<image>'\)"):
        check_vocabulary(found, size, folder)
    found.pad_token = "</s>"
    found.add_tokens(["ordinary"])
    with pytest.raises(LonasEdgeError, match=rf"token {size + 1} \('ordinary'\)"):
        check_vocabulary(found, size, folder)
