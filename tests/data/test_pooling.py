"""sentence-transformers' files, and pooling against its definition."""

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_bert import tokenizer as word_pieces
from transformers import AutoTokenizer

from lonas_edge.data.pooling import Pooling, embeds, pooling_of, read_pooling
from lonas_edge.errors import LonasEdgeError, LonasEdgeWarning

OLD, NEW = "sentence_transformers.models.", "sentence_transformers.{}.modules."
FLAGS = {f"pooling_mode_{name}": False for name in ("cls_token", "max_tokens", "mean_sqrt_len_tokens")}
MEAN = {"word_embedding_dimension": 8, **FLAGS, "pooling_mode_mean_tokens": True}  # as MiniLM's


def write_files(folder: Path, pooling: Any = MEAN, kinds: tuple[str, ...] = ("Transformer", "Pooling"), **others: Any) -> Path:
    """A directory with sentence-transformers' files: `length`, `settings` and `modules` replace what is in it."""
    paths = {"Transformer": "", "Pooling": "1_Pooling", "Normalize": "2_Normalize", "Dense": "2_Dense"}
    modules = [{"idx": i, "name": str(i), "path": paths[kind], "type": OLD + kind} for i, kind in enumerate(kinds)]
    (folder / "1_Pooling").mkdir(parents=True)
    (folder / "modules.json").write_text(json.dumps(others.get("modules", modules)))
    if pooling is not None:
        (folder / "1_Pooling/config.json").write_text(json.dumps(pooling))
    for name, key in (("sentence_bert_config", "length"), ("config_sentence_transformers", "settings")):
        if key in others:
            (folder / f"{name}.json").write_text(json.dumps(others[key]))
    return folder


def by_definition(hidden: torch.Tensor, lengths: list[int], mode: str, normalize: bool) -> torch.Tensor:
    """Embeddings, text by text, without padding."""
    rows = []
    for states, length in zip(hidden.double(), lengths, strict=True):
        tokens = states[:length]
        row = {"mean": sum(tokens) / length, "cls": tokens[0], "lasttoken": tokens[-1]}[mode]
        rows.append(row / (row @ row).sqrt() if normalize else row)
    return torch.stack(rows)


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("mode", ["mean", "cls", "lasttoken"])
def test_as_defined(mode: str, normalize: bool) -> None:
    hidden, lengths = torch.randn(3, 7, 8), [7, 4, 1]
    mask = torch.tensor([[1] * length + [0] * (7 - length) for length in lengths])
    expected = by_definition(hidden, lengths, mode, normalize)
    pooling = Pooling(mode, normalize)
    assert (pooling.pool(hidden, mask) - expected).abs().max() < 1e-6
    assert (pooling.pool(hidden.double(), mask) - expected).abs().max() < 1e-12
    rounded = pooling.pool(hidden.bfloat16(), mask)  # summed in fp32
    assert rounded.dtype == torch.float32
    assert (rounded - by_definition(hidden.bfloat16(), lengths, mode, normalize)).abs().max() < 1e-6


@pytest.mark.parametrize(
    ("pooling", "mode"),
    [
        (MEAN, "mean"),
        ({**FLAGS, "pooling_mode_cls_token": True}, "cls"),
        ({"pooling_mode_lasttoken": True, "include_prompt": True}, "lasttoken"),
        ({"embedding_dimension": 8}, "mean"),  # as sentence-transformers assumes
        ({"embedding_dimension": 8, "pooling_mode": "cls", "include_prompt": True}, "cls"),  # version 6
        ({"pooling_mode": ["lasttoken"]}, "lasttoken"),
    ],
)
def test_modes(pooling: dict[str, Any], mode: str, tmp_path: Path) -> None:
    read = read_pooling(write_files(tmp_path / "model", pooling))
    assert read == Pooling(mode, stated=True)
    assert read.description == f"{mode}, not normalized"


def test_all_files(tmp_path: Path) -> None:
    """As version 6 writes them: other module paths, prompts without text, a length."""
    kinds = (("base", "Transformer"), ("sentence_transformer", "Pooling"), ("base", "Normalize"))
    paths = ("", "01_pooling", "2_Normalize")
    modules = [{"path": path, "type": NEW.format(where) + kind} for (where, kind), path in zip(kinds, paths, strict=True)]
    settings = {
        "model_type": "SentenceTransformer",
        "prompts": {"query": "query: ", "document": None},
        "default_prompt_name": "query",
        "similarity_fn_name": "dot",
    }
    folder = write_files(tmp_path / "model", None, modules=modules, settings=settings, length={"max_seq_length": 24})
    (folder / "1_Pooling").rename(folder / "01_pooling")
    (folder / "01_pooling/config.json").write_text('{"pooling_mode": "cls"}')
    read = read_pooling(folder)
    assert read == Pooling("cls", True, 24, {"query": "query: ", "document": ""}, "query", "dot", True)
    assert embeds(folder)
    assert read.prompt() == read.prompt("passage") == "query: " and read.prompt("document") == "" == Pooling().prompt("query")


@pytest.mark.parametrize("kind", ["roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet"])
def test_older_names_of_the_length(kind: str, tmp_path: Path) -> None:
    """As sentence-transformers reads them: the first name of its list counts."""
    folder = write_files(tmp_path / "model")
    (folder / f"sentence_{kind}_config.json").write_text('{"max_seq_length": 128}')
    assert read_pooling(folder) == Pooling(max_length=128, stated=True)
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 64}')
    assert read_pooling(folder) == Pooling(max_length=64, stated=True)
    (folder / "sentence_bert_config.json").unlink()
    (folder / f"sentence_{kind}_config.json").write_text('{"max_seq_length": 0}')
    with pytest.raises(LonasEdgeError, match=rf"sentence_{kind}_config\.json: max_seq_length"):
        read_pooling(folder)


def test_dot_products_are_warned_of(tmp_path: Path) -> None:
    """Training preserves directions, not lengths; normalized embeddings have none."""
    kinds, dot = ("Transformer", "Pooling", "Normalize"), {"similarity_fn_name": "dot"}
    with pytest.warns(LonasEdgeWarning, match="compares embeddings by the dot product"):
        pooling_of(write_files(tmp_path / "model", settings=dot))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert pooling_of(write_files(tmp_path / "normalized", kinds=kinds, settings=dot)).normalize


def test_the_longest_text() -> None:
    """The stated one, else the tokenizer's, but no more than the context; tokenizers may state nonsense."""
    for stated, tokenizer, expected in ((24, 1e30, 24), (None, 1e30, 64), (None, 32, 32), (1000, 512, 64), (None, -1, 64)):
        assert Pooling(max_length=stated).limit(tokenizer, 64).max_length == expected


def test_no_files(tmp_path: Path) -> None:
    assert read_pooling(tmp_path) is None and not embeds(tmp_path)
    assert Pooling() == Pooling("mean", normalize=False, stated=False)


def test_a_cross_encoder(tmp_path: Path) -> None:
    """sentence-transformers 6 writes modules.json for it, too."""
    folder = write_files(tmp_path / "model", kinds=("Transformer",), settings={"model_type": "CrossEncoder"})
    assert not embeds(folder)


@pytest.mark.parametrize(
    "pooling",
    [
        Pooling("mean", True, 256, stated=True),
        Pooling("cls", False, None, {"query": "q: "}, "query", "dot", True),
        Pooling("lasttoken", True, 32, {"a": ""}, stated=True),
    ],
)
def test_written_files(pooling: Pooling, tmp_path: Path) -> None:
    """Read again as they were; with fields that the oldest versions know."""
    pooling.write(tmp_path, 8)
    assert read_pooling(tmp_path) == pooling
    modules = json.loads((tmp_path / "modules.json").read_text())
    assert [module["type"].removeprefix(OLD) for module in modules] == ["Transformer", "Pooling", "Normalize"][: len(modules)]
    assert len(modules) == 2 + pooling.normalize
    written = json.loads((tmp_path / "1_Pooling/config.json").read_text())
    assert written.pop("word_embedding_dimension") == 8
    fields = {"mean": "mean_tokens", "cls": "cls_token", "lasttoken": "lasttoken"}
    assert [name for name, value in written.items() if value] == [f"pooling_mode_{fields[pooling.mode]}"]
    assert "pooling_mode_lasttoken" not in written or pooling.mode == "lasttoken"  # version 2.0 does not know it


@pytest.mark.parametrize(
    ("files", "faults"),
    [
        ({"kinds": ("Transformer", "Pooling", "Dense")}, ["expected the modules .*, found Transformer, Pooling, Dense"]),
        (
            {"pooling": {"pooling_mode_max_tokens": True}},
            [r"1_Pooling/config\.json: pooling max is not supported; expected one of mean"],
        ),
        (
            {"pooling": {**MEAN, "pooling_mode_cls_token": True, "include_prompt": False}, "length": {"do_lower_case": 1}},
            ["pooling cls \\+ mean is not supported", "include_prompt false is not supported"],
        ),
        ({"pooling": None}, [r"1_Pooling/config\.json: missing"]),
        ({"length": {"max_seq_length": 0}}, [r"sentence_bert_config\.json: max_seq_length 0"]),
        ({"modules": [{"path": ""}]}, [r"modules\.json: not a list of modules: .*type"]),
    ],
)
def test_refused(files: dict[str, Any], faults: list[str], tmp_path: Path) -> None:
    """All faults in one message."""
    with pytest.raises(LonasEdgeError) as raised:
        read_pooling(write_files(tmp_path / "model", **files))
    for fault in faults:
        assert raised.match(f"(?m){fault}")


def bert(lowercase: bool) -> dict[str, Any]:
    return {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True, "lowercase": lowercase}


def write_tokenizer(folder: Path, normalizer: Any, kind: str, lower: bool | None) -> None:
    """A tokenizer with this normalizer in tokenizer.json, and `lower` as do_lower_case in tokenizer_config.json."""
    word_pieces().save_pretrained(folder)
    content = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps(content | {"normalizer": normalizer}))
    stated = {} if lower is None else {"do_lower_case": lower}
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": kind, "model_max_length": 64, **stated}))


LOWERCASE = {"type": "Sequence", "normalizers": [{"type": "NFD"}, {"type": "Lowercase"}, {"type": "StripAccents"}]}


@pytest.mark.parametrize(
    ("normalizer", "kind", "lower", "read"),
    [
        (bert(True), "BertTokenizer", True, True),  # as BGE's
        (bert(True), "BertTokenizer", None, True),
        (LOWERCASE, "PreTrainedTokenizerFast", None, True),
        (bert(True), "BertTokenizer", False, False),
        (bert(False), "BertTokenizer", False, False),
        (bert(False), "PreTrainedTokenizerFast", True, False),
        ({"type": "Sequence", "normalizers": [{"type": "NFC"}]}, "PreTrainedTokenizerFast", None, False),
        (None, "PreTrainedTokenizerFast", None, False),
    ],
)
def test_texts_in_lower_case(normalizer: Any, kind: str, lower: bool | None, read: bool, tmp_path: Path) -> None:
    """`do_lower_case` changes nothing where the tokenizer lower-cases; others are refused, also of an adapter's base."""
    folder = write_files(tmp_path / "model", length={"max_seq_length": 24, "do_lower_case": True})
    assert read_pooling(folder) == Pooling("mean", max_length=24, stated=True)  # without a tokenizer nothing can differ
    write_tokenizer(folder, normalizer, kind, lower)
    write_tokenizer(tmp_path / "base", normalizer, kind, lower)
    adapter = write_files(tmp_path / "adapter", length={"do_lower_case": True})
    by = AutoTokenizer.from_pretrained(folder)
    assert (by("the GOOD film")["input_ids"] == by("the good film")["input_ids"]) is read
    if read:
        assert read_pooling(folder) == Pooling("mean", max_length=24, stated=True)
        assert pooling_of(adapter, tmp_path / "base").stated
        return
    for folders in ((folder,), (adapter, tmp_path / "base")):
        with pytest.raises(LonasEdgeError, match="do_lower_case true is not supported; expected a tokenizer that does it"):
            pooling_of(*folders)


@pytest.mark.parametrize("path", ["../secret", "/etc", "1_Pooling/../../secret", "", "1_Pooling\\x", "1_Pooling\n"])
def test_paths_of_strangers(path: str, tmp_path: Path) -> None:
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret/config.json").write_text(json.dumps(MEAN))
    modules = [{"path": "", "type": OLD + "Transformer"}, {"path": path, "type": OLD + "Pooling"}]
    with pytest.raises(LonasEdgeError, match="expected a path like '1_Pooling' for Pooling, found "):
        read_pooling(write_files(tmp_path / "model", modules=modules))
    modules = [{"path": "0_Transformer", "type": OLD + "Transformer"}, {"path": "1_Pooling", "type": OLD + "Pooling"}]
    with pytest.raises(LonasEdgeError, match="expected the Transformer in the model's directory, found path '0_Transformer'"):
        read_pooling(write_files(tmp_path / "other", modules=modules))
