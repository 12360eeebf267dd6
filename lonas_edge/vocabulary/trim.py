"""Write a Hugging Face model with a smaller vocabulary: fewer rows of embedding and head, and a tokenizer to match."""

import json
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from lonas_edge.files import read_json, replace_text, sha256
from lonas_edge.network.checkpoints import TensorFiles, open_base, write_shards
from lonas_edge.network.configuration import GENERATION, read_generation_config
from lonas_edge.network.source import Source
from lonas_edge.network.vocabulary_record import VOCABULARY, VocabularyRecord, vocabulary_of
from lonas_edge.space.architecture import Architecture
from lonas_edge.vocabulary.tokenizer_file import TokenizerFile

_COPIED = ("special_tokens_map.json", "*.jinja", "additional_chat_templates/*.jinja", "LICENSE*")
_SUPPRESSED = ("suppress_tokens", "begin_suppress_tokens")  # that a generation does not produce


def trim_model(
    source: Source,
    tokenizer: TokenizerFile,
    kept: Sequence[int],
    data: Path,
    tokens_per_text: float,
    folder: Path,
    done: Callable[[float], None],
) -> None:
    """Write the base model and its tokenizer into a directory.

    Args:
        source: The model.
        tokenizer: Its tokenizer.
        kept: Ids of the tokens that stay, in order; a token's new id is its index.
        data: File whose tokens were kept, for the record.
        tokens_per_text: Tokens per text relative to the model's, for the record.
        folder: The directory, which exists.
        done: Called with the share that is written.
    """
    base, architecture = source.base, source.architecture
    tensors = open_base(base.folder, architecture, {})
    _write_configs(base.folder, folder, kept)
    tokenizer.write(folder, kept)
    if source.pooling and source.pooling.stated:
        source.pooling.write(folder, architecture.config.hidden_size)
    _write_weights(tensors, architecture, kept, folder, done)
    hashes = {path.name: sha256(path) for path in (base.folder / "config.json", *tensors.files)}
    rows, read = architecture.config.vocab_size, {data.name: sha256(data)}
    record = VocabularyRecord(base.name, base.revision, hashes, rows, read, tokens_per_text, tuple(kept))
    _compose(base.folder, record).write(folder / VOCABULARY)


def _compose(base: Path, record: VocabularyRecord) -> VocabularyRecord:
    """A record from the model with the whole vocabulary, where the base itself was trimmed.

    It takes the adapters that fit the base. Those of an export were trained on the export itself.
    """
    first = vocabulary_of(base)
    if first is None:
        return record
    return replace(
        first,
        sha256=first.sha256 or record.sha256,
        through=(record.sha256, *first.through) if first.sha256 else (),
        data=record.data,
        tokens_per_text=first.tokens_per_text * record.tokens_per_text,
        kept=tuple(first.kept[index] for index in record.kept),
    )


def special_ids(folder: Path) -> set[int]:
    """Ids of the special tokens that the configurations of a model directory name."""
    ids: set[int] = set()
    for content in (read_json(folder / "config.json"), read_generation_config(folder) or {}):
        for name, value in content.items():
            if name.endswith("_token_id"):
                ids |= {number for number in (value if isinstance(value, list) else [value]) if number is not None}
    return ids


def _write_configs(source: Path, folder: Path, kept: Sequence[int]) -> None:
    """Write the files that hold token ids, with the new ids, and copy those that do not."""
    new = {old: index for index, old in enumerate(kept)}
    config = _renumber(read_json(source / "config.json"), new)
    replace_text(folder / "config.json", json.dumps({**config, "vocab_size": len(kept)}, indent=2) + "\n")
    if generation := read_generation_config(source):
        replace_text(folder / GENERATION, json.dumps(_renumber(generation, new), indent=2) + "\n")
    if (source / "tokenizer_config.json").is_file():
        content = read_json(source / "tokenizer_config.json")
        if added := content.get("added_tokens_decoder"):
            numbers = {int(old): entry for old, entry in added.items()}
            content["added_tokens_decoder"] = {str(new[old]): entry for old, entry in numbers.items() if old in new}
        replace_text(folder / "tokenizer_config.json", json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    for pattern in _COPIED:
        for path in source.glob(pattern):
            copy = folder / path.relative_to(source)
            copy.parent.mkdir(exist_ok=True)
            shutil.copyfile(path, copy)


def _renumber(content: Mapping[str, Any], new: Mapping[int, int]) -> dict[str, Any]:
    """A configuration with the new ids of its special and suppressed tokens; those of dropped tokens are gone."""
    changed = dict(content)
    for name, old in content.items():
        if old is None:
            continue
        if name == "bad_words_ids":  # sequences; transformers refuses an empty list
            changed[name] = [[new[number] for number in word] for word in old if new.keys() >= set(word)] or None
        elif name in _SUPPRESSED or name.endswith("_token_id"):
            changed[name] = [new[number] for number in old if number in new] or None if isinstance(old, list) else new.get(old)
    return changed


def _write_weights(
    tensors: TensorFiles, architecture: Architecture, kept: Sequence[int], folder: Path, done: Callable[[float], None]
) -> None:
    """Write all tensors in their dtype, those of the tables with the kept rows."""
    tables, stored = architecture.token_tables, {name: tensors.shapes[name] for name in architecture.shapes}
    shapes = {name: (len(kept), *shape[1:]) if name in tables else shape for name, shape in stored.items()}
    dtypes = {name: getattr(torch, tensors.dtypes[name]) for name in shapes}
    rows = torch.tensor(kept)

    def read(name: str) -> torch.Tensor:
        return tensors.read(name)[rows] if name in tables else tensors.read(name)

    write_shards(folder, shapes, dtypes, read, done)


def estimate_bytes(architecture: Architecture, tokens: int) -> int:
    """Estimate the size of the directory: weights in fp32 at most, and the tokenizer."""
    tables = architecture.token_tables
    shapes = ((tokens, *shape[1:]) if name in tables else shape for name, shape in architecture.shapes.items())
    return 4 * sum(math.prod(shape) for shape in shapes) + 200 * tokens
