"""Describe a model's tokenizer by fields of a GGUF file, from which llama.cpp makes its own.

llama.cpp identifies a tokenizer by its kind of model and, for byte-level BPE, by the name of its pre-tokenizer (`pre`). Both
are derived from the tokenizer itself. Unknown ones are refused: another name would give other tokens.

Source: `conversion/base.py` and `src/llama-vocab.cpp` of llama.cpp (0.3.36 of llama-cpp-python).
"""

import json
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from gguf import TokenType

from lonas_edge.errors import raise_all

_LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN_2 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_GPT_2 = ("ByteLevel", True)  # its own regular expression
_BYTES = ("ByteLevel", False)
_PRE = {  # llama.cpp's names, by the stages of a tokenizer.json's pre_tokenizer
    (_GPT_2,): "gpt-2",
    (("Digits", True), _GPT_2): "smollm",
    (("Split", _LLAMA_3), _BYTES): "llama-bpe",
    (("Split", _QWEN_2), _BYTES): "qwen2",
}
_IGNORES_MERGES = "llama-bpe"  # a piece that is a token is not merged
TOKENIZED_TEXTS = (  # two tokenizers that differ hardly agree on these
    "The year 1492, 'twas  so:\n\n\tcafé naïve 東京 🙂 3.14159",
    " leading",
    "x = [1,2];\n    return x",
)


def vocabulary_of(tokenizer: Any, size: int, where: str) -> dict[str, Any]:
    """Describe a transformers tokenizer as llama.cpp does; fail with every reason if llama.cpp does not support it.

    Args:
        tokenizer: The tokenizer, or None.
        size: Entries of the model's embedding; ids without a token get a name, since llama.cpp needs one for each.
        where: Name of the model in errors.

    Returns:
        Fields of a GGUF file, by the names of gguf-py's `GGUFWriter.add_…`.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        fault = "there is none" if tokenizer is None else "it is not a fast one"
        _refuse(where, [fault], "A GGUF file contains the tokenizer: save its tokenizer.json there.")
    content = json.loads(backend.to_str())  # type: ignore[union-attr]
    stages = _stages(content["pre_tokenizer"])
    byte_level = any(stage["type"] == "ByteLevel" for stage in stages)
    faults = [] if content["model"]["type"] == "BPE" else [f"its model is {content['model']['type']}: expected BPE"]
    _refuse(where, faults or (_byte_level_faults(content, stages) if byte_level else _pieces_faults(content)))
    adds_bos, adds_eos, faults = _added_around(tokenizer)
    _refuse(where, faults)
    added = {token["id"]: token for token in content["added_tokens"]}
    tokens = {i: token for token, i in content["model"]["vocab"].items()} | {i: t["content"] for i, t in added.items()}
    types = _types(content, tokens, added, byte_level)
    roles = {role: getattr(tokenizer, f"{role}_token_id", None) for role in ("bos", "eos", "unk", "pad")}
    special = {f"{role}_token_id": int(i) for role, i in roles.items() if i is not None and i < size}
    return {
        "tokenizer_model": "gpt2" if byte_level else "llama",
        "tokenizer_pre": _PRE[_signature(stages)] if byte_level else "default",
        "token_list": [tokens.get(i, f"[PAD{i}]") for i in range(size)],
        "token_types": [types.get(i, TokenType.UNUSED) for i in range(size)],
        **_merges(content["model"], tokens, size, byte_level),
        "add_space_prefix": not byte_level and _prepends_space(content),
        **special,
        "add_bos_token": adds_bos,
        "add_eos_token": adds_eos,
        **_chat_template(tokenizer),
    }


def _types(content: dict[str, Any], tokens: Mapping[int, str], added: Mapping[int, Any], byte_level: bool) -> dict[int, int]:
    unknown = content["model"].get("unk_token")

    def kind(i: int, token: str) -> TokenType:
        if token == unknown:
            return TokenType.UNKNOWN
        if i in added:
            return TokenType.CONTROL if added[i]["special"] else TokenType.USER_DEFINED
        return TokenType.BYTE if not byte_level and _is_byte(token) else TokenType.NORMAL

    return {i: kind(i, token) for i, token in tokens.items()}


def _merges(model: dict[str, Any], tokens: Mapping[int, str], size: int, byte_level: bool) -> dict[str, Any]:
    """Return the merges of byte-level BPE, or the scores of SentencePiece's BPE: the order of merges by their results."""
    if byte_level:
        merges = [" ".join(pair) for pair in _pairs(model)]
        # llama.cpp refuses an empty list. Without other merges "<unk>" never is one symbol, so this one has no effect.
        return {"token_merges": merges or ["<unk> <unk>"]}
    made = map("".join, _pairs(model))
    rank = {piece: index for index, (piece, _) in enumerate(groupby(made))}
    return {"token_scores": [-float(rank.get(tokens.get(i, ""), len(rank))) for i in range(size)]}


def _pairs(model: dict[str, Any]) -> list[tuple[str, ...]]:
    """Return the merges, which tokenizer.json writes as texts or lists."""
    return [tuple(merge.split(" ") if isinstance(merge, str) else merge) for merge in model["merges"]]


def _chat_template(tokenizer: Any) -> dict[str, str]:
    template = getattr(tokenizer, "chat_template", None)
    template = template.get("default") if isinstance(template, dict) else template  # of several by name
    return {"chat_template": template} if isinstance(template, str) and template else {}


def _refuse(where: str, faults: Sequence[str], advice: str = "Use --stage ir or --stage checkpoint.") -> None:
    raise_all(f"{where}: the tokenizer cannot be written as GGUF:", list(faults), advice)


def _stages(part: dict[str, Any] | None) -> list[dict[str, Any]]:
    """Return the stages of a normalizer or a pre_tokenizer, in order."""
    if part is None:
        return []
    return list(part.get("pretokenizers") or part.get("normalizers") or [part])


def _signature(stages: Sequence[Mapping[str, Any]]) -> tuple[tuple[str, Any], ...]:
    """Return the type and the decisive setting of each stage."""
    setting = {
        "ByteLevel": lambda stage: stage.get("use_regex", True),
        "Digits": lambda stage: stage["individual_digits"],
        "Split": lambda stage: stage["pattern"].get("Regex"),
    }
    return tuple((stage["type"], setting[stage["type"]](stage) if stage["type"] in setting else stage) for stage in stages)


def _byte_level_faults(content: dict[str, Any], stages: Sequence[Mapping[str, Any]]) -> list[str]:
    faults = []
    known = ", ".join(_PRE.values())
    names = " and ".join(str(stage["type"]) for stage in stages)
    plain = all(stage["type"] in ("ByteLevel", "Digits", "Split") for stage in stages)
    if not plain or _signature(stages) not in _PRE:
        faults.append(f"unknown pre-tokenizer ({names}); llama.cpp's known ones are {known}")
    split = [stage for stage in stages if stage["type"] == "Split"]
    if any(stage.get("behavior") != "Isolated" or stage.get("invert") for stage in split):
        faults.append("a Split is inverted, or does not isolate its matches")
    if any(stage.get("add_prefix_space") for stage in stages):
        faults.append("it prepends a space (add_prefix_space)")
    if [stage for stage in _stages(content["normalizer"]) if stage["type"] != "NFC"]:  # which llama.cpp leaves to its caller
        faults.append("it normalizes texts")
    if not faults and bool(content["model"].get("ignore_merges")) != (_PRE[_signature(stages)] == _IGNORES_MERGES):
        faults.append(f"ignore_merges: llama.cpp ignores merges with {_IGNORES_MERGES} only")
    return faults


def _pieces_faults(content: dict[str, Any]) -> list[str]:
    """Check SentencePiece's BPE, which llama.cpp merges by the scores of the results, not by a list of merges."""
    model, faults = content["model"], []
    if not model.get("byte_fallback") or any(f"<0x{byte:02X}>" not in model["vocab"] for byte in range(256)):
        faults.append("neither byte-level BPE nor SentencePiece's with a token for each byte (byte_fallback)")
        return faults
    pairs = _pairs(model)
    made = ["".join(pair) for pair in pairs]
    if len(list(groupby(made))) != len(set(made)):
        faults.append("its merges are not in the order of their results, as SentencePiece's are")
    vocabulary, others = model["vocab"], {token["content"] for token in content["added_tokens"]}
    pieces = {piece for piece in vocabulary if piece not in others and not _is_byte(piece)}
    possible = {
        (piece[:cut], piece[cut:])
        for piece in pieces | set(made)
        for cut in range(1, len(piece))
        if piece[:cut] in vocabulary and piece[cut:] in vocabulary
    }
    if possible != set(pairs):
        faults.append("its merges are not all pairs of tokens that make a third, as SentencePiece's are")
    kinds = {stage["type"] for part in ("normalizer", "pre_tokenizer") for stage in _stages(content[part])}
    if kinds - {"Prepend", "Replace", "Metaspace"}:
        faults.append(f"it changes texts by {', '.join(sorted(kinds - {'Prepend', 'Replace', 'Metaspace'}))}")
    return faults


def _prepends_space(content: dict[str, Any]) -> bool:
    stages = _stages(content["normalizer"]) + _stages(content["pre_tokenizer"])
    prepends = any(stage["type"] == "Prepend" for stage in stages)
    return prepends or any(stage.get("prepend_scheme", "never") != "never" for stage in stages if stage["type"] == "Metaspace")


def _is_byte(token: str) -> bool:
    return len(token) == 6 and token.startswith("<0x") and token.endswith(">")


def _added_around(tokenizer: Any) -> tuple[bool, bool, list[str]]:
    """Return whether bos is prepended and eos appended, and faults: other special tokens around a text."""
    inside = tokenizer("the", add_special_tokens=False)["input_ids"]
    complete = list(tokenizer("the")["input_ids"])
    bos = complete[:1] == [tokenizer.bos_token_id] and complete[:1] != inside[:1]
    eos = complete[-1:] == [tokenizer.eos_token_id] and complete[-1:] != inside[-1:]
    same = complete[bos : len(complete) - eos] == list(inside)
    return bos, eos, [] if same else ["it adds other special tokens than bos and eos"]
