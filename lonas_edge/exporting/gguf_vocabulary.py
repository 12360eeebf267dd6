"""A model's tokenizer as the fields of a GGUF file, from which llama.cpp makes its own.

llama.cpp knows a tokenizer by the kind of its model and, of byte-level BPE, by the name of what cuts a text before (`pre`).
Both are told from the tokenizer itself, and one that is none of those known here is refused: another name gives other tokens.

Source: `conversion/base.py` and `src/llama-vocab.cpp` of llama.cpp (0.3.36 of llama-cpp-python).
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import gguf
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
_WHOLE_FIRST = "llama-bpe"  # a piece that is a token is not put together
_TRIED = ("The year 1492, 'twas  so:\n\n\tcafé naïve 東京 🙂 3.14159", " leading", "x = [1,2];\n    return x")


@dataclass(frozen=True)
class Vocabulary:
    """What llama.cpp has to know of a tokenizer.

    Attributes:
        model: Its kind of tokenizer: gpt2 (byte-level BPE) or llama (SentencePiece's BPE).
        pre: Its name of what cuts a text before; default for SentencePiece's.
        tokens: Every token by id, as many as the model has embeddings.
        types: What each is, a `gguf.TokenType`.
        merges: Of byte-level BPE.
        scores: Of SentencePiece's, by id.
        adds_space: Whether a space is put before a text.
        special: Ids of the special tokens, by role: bos, eos, unk, pad.
        adds_bos: Whether a text begins with bos.
        adds_eos: Whether it ends with eos.
        chat_template: The template, where there is one.
    """

    model: str
    pre: str
    tokens: tuple[str, ...]
    types: tuple[int, ...]
    merges: tuple[str, ...]
    scores: tuple[float, ...]
    adds_space: bool
    special: Mapping[str, int]
    adds_bos: bool
    adds_eos: bool
    chat_template: str | None

    def add_to(self, writer: "gguf.GGUFWriter") -> None:
        """Add the fields to a file.

        Args:
            writer: Of the file.
        """
        writer.add_tokenizer_model(self.model)
        writer.add_tokenizer_pre(self.pre)
        writer.add_token_list(self.tokens)
        writer.add_token_types(self.types)
        if self.model == "gpt2":
            # llama.cpp refuses an empty list. Without other merges "<unk>" never is one symbol, so this one does nothing.
            writer.add_token_merges(self.merges or ("<unk> <unk>",))
        else:
            writer.add_token_scores(self.scores)
        writer.add_add_space_prefix(self.adds_space)
        for role, token in self.special.items():
            getattr(writer, f"add_{role}_token_id")(token)
        writer.add_add_bos_token(self.adds_bos)
        writer.add_add_eos_token(self.adds_eos)
        if self.chat_template:
            writer.add_chat_template(self.chat_template)


def vocabulary_of(tokenizer: Any, size: int, where: str) -> Vocabulary:
    """Describe a tokenizer as llama.cpp knows it.

    Args:
        tokenizer: A transformers tokenizer, or None.
        size: Entries of the model's embedding; ids without a token get a name, because llama.cpp wants one for each.
        where: What to call the model in an error.

    Returns:
        The description.

    Raises:
        LonasEdgeError: If there is none, or none that llama.cpp is known to have; every reason is listed.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        fault = "there is none" if tokenizer is None else "not a fast one"
        _refuse(where, [fault], "A GGUF file holds its own: save the tokenizer.json there.")
    content = json.loads(backend.to_str())  # type: ignore[union-attr]
    stages = _stages(content["pre_tokenizer"])
    byte_level = any(stage["type"] == "ByteLevel" for stage in stages)
    faults = [] if content["model"]["type"] == "BPE" else [f"its model is {content['model']['type']}: expected BPE"]
    _refuse(where, faults or (_byte_level_faults(content, stages) if byte_level else _pieces_faults(content)))
    added = {token["id"]: token for token in content["added_tokens"]}
    tokens = {i: token for token, i in content["model"]["vocab"].items()} | {i: t["content"] for i, t in added.items()}
    unknown = content["model"].get("unk_token")
    types = {i: _type(token, token == unknown, not byte_level) for i, token in tokens.items()}
    types |= {
        i: TokenType.CONTROL if t["special"] else TokenType.USER_DEFINED for i, t in added.items() if tokens[i] != unknown
    }
    adds_bos, adds_eos, more = _added_around(tokenizer)
    _refuse(where, more)
    roles = {role: getattr(tokenizer, f"{role}_token_id", None) for role in ("bos", "eos", "unk", "pad")}
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in content["model"]["merges"]]
    template = getattr(tokenizer, "chat_template", None)
    template = template.get("default") if isinstance(template, dict) else template  # of several by name
    return Vocabulary(
        model="gpt2" if byte_level else "llama",
        pre=_PRE[_told(stages)] if byte_level else "default",
        tokens=tuple(tokens.get(i, f"[PAD{i}]") for i in range(size)),
        types=tuple(types.get(i, TokenType.UNUSED) for i in range(size)),
        merges=tuple(merges) if byte_level else (),
        scores=() if byte_level else _scores(content["model"], tokens, size),
        adds_space=not byte_level and _puts_space_before(content),
        special={role: int(i) for role, i in roles.items() if i is not None and i < size},
        adds_bos=adds_bos,
        adds_eos=adds_eos,
        chat_template=template if isinstance(template, str) else None,
    )


def tried_texts() -> tuple[str, ...]:
    """Texts on which two tokenizers that are not the same hardly agree."""
    return _TRIED


def _refuse(where: str, faults: Sequence[str], way_out: str = "--stage ir and --stage checkpoint take it.") -> None:
    raise_all(f"{where}: the tokenizer cannot be written as GGUF:", list(faults), way_out)


def _stages(part: dict[str, Any] | None) -> list[dict[str, Any]]:
    """The stages of a normalizer or a pre_tokenizer, in order."""
    if part is None:
        return []
    return list(part.get("pretokenizers") or part.get("normalizers") or [part])


def _told(stages: Sequence[Mapping[str, Any]]) -> tuple[tuple[str, Any], ...]:
    """What decides, of each stage."""
    told = {
        "ByteLevel": lambda stage: stage.get("use_regex", True),
        "Digits": lambda stage: stage["individual_digits"],
        "Split": lambda stage: stage["pattern"].get("Regex"),
    }
    return tuple((stage["type"], told[stage["type"]](stage) if stage["type"] in told else stage) for stage in stages)


def _byte_level_faults(content: dict[str, Any], stages: Sequence[Mapping[str, Any]]) -> list[str]:
    faults = []
    known = ", ".join(_PRE.values())
    names = " and ".join(str(stage["type"]) for stage in stages)
    plain = all(stage["type"] in ("ByteLevel", "Digits", "Split") for stage in stages)
    if not plain or _told(stages) not in _PRE:
        faults.append(f"texts are cut ({names}) in none of the ways known by name to llama.cpp and here: {known}")
    split = [stage for stage in stages if stage["type"] == "Split"]
    if any(stage.get("behavior") != "Isolated" or stage.get("invert") for stage in split):
        faults.append("a Split is inverted, or does not isolate what it finds")
    if any(stage.get("add_prefix_space") for stage in stages):
        faults.append("a space is put before a text (add_prefix_space)")
    if [stage for stage in _stages(content["normalizer"]) if stage["type"] != "NFC"]:  # that llama.cpp leaves to its caller
        faults.append("texts are normalized")
    if not faults and bool(content["model"].get("ignore_merges")) != (_PRE[_told(stages)] == _WHOLE_FIRST):
        faults.append(f"ignore_merges: llama.cpp does that with {_WHOLE_FIRST}, and with no other")
    return faults


def _pieces_faults(content: dict[str, Any]) -> list[str]:
    """Of SentencePiece's BPE, which llama.cpp joins by the score of what is made, not by a list of merges."""
    model, faults = content["model"], []
    if not model.get("byte_fallback") or any(f"<0x{byte:02X}>" not in model["vocab"] for byte in range(256)):
        faults.append("neither byte-level BPE, nor SentencePiece's with a token for each byte (byte_fallback)")
        return faults
    made = ["".join(merge.split(" ") if isinstance(merge, str) else merge) for merge in model["merges"]]
    if len(list(groupby(made))) != len(set(made)):
        faults.append("its merges are not in the order of what they make, as SentencePiece's are")
    pairs = {tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge) for merge in model["merges"]}
    vocabulary, others = model["vocab"], {token["content"] for token in content["added_tokens"]}
    pieces = {piece for piece in vocabulary if piece not in others and not _is_byte(piece)}
    possible = {
        (piece[:cut], piece[cut:])
        for piece in pieces | set(made)
        for cut in range(1, len(piece))
        if piece[:cut] in vocabulary and piece[cut:] in vocabulary
    }
    if possible != pairs:
        faults.append("its merges are not all ways in which two tokens make a third, as SentencePiece's are")
    kinds = {stage["type"] for part in ("normalizer", "pre_tokenizer") for stage in _stages(content[part])}
    if kinds - {"Prepend", "Replace", "Metaspace"}:
        faults.append(f"texts are changed before by {', '.join(sorted(kinds - {'Prepend', 'Replace', 'Metaspace'}))}")
    return faults


def _puts_space_before(content: dict[str, Any]) -> bool:
    stages = _stages(content["normalizer"]) + _stages(content["pre_tokenizer"])
    prepends = any(stage["type"] == "Prepend" for stage in stages)
    return prepends or any(stage.get("prepend_scheme", "never") != "never" for stage in stages if stage["type"] == "Metaspace")


def _type(token: str, unknown: bool, pieces: bool) -> TokenType:
    if unknown:
        return TokenType.UNKNOWN
    return TokenType.BYTE if pieces and _is_byte(token) else TokenType.NORMAL


def _is_byte(token: str) -> bool:
    return len(token) == 6 and token.startswith("<0x") and token.endswith(">")


def _scores(model: dict[str, Any], tokens: Mapping[int, str], size: int) -> tuple[float, ...]:
    """What merges make first has the highest score; what none makes, the lowest, and is never asked for one."""
    made = ("".join(merge.split(" ") if isinstance(merge, str) else merge) for merge in model["merges"])
    rank = {piece: index for index, (piece, _) in enumerate(groupby(made))}
    return tuple(-float(rank.get(tokens.get(i, ""), len(rank))) for i in range(size))


def _added_around(tokenizer: Any) -> tuple[bool, bool, list[str]]:
    """Whether a text begins with bos and ends with eos, and what else is put around it."""
    inside = tokenizer("the", add_special_tokens=False)["input_ids"]
    whole = list(tokenizer("the")["input_ids"])
    bos = whole[:1] == [tokenizer.bos_token_id] and whole[:1] != inside[:1]
    eos = whole[-1:] == [tokenizer.eos_token_id] and whole[-1:] != inside[-1:]
    same = whole[bos : len(whole) - eos] == list(inside)
    return bos, eos, [] if same else ["other special tokens than bos and eos are put around a text"]
