"""A `tokenizer.json` (the format of Hugging Face's tokenizers), reduced to some of its tokens.

BPE builds a token from single characters or bytes by merges. It can be kept if the tokens on its way are kept, too. The merges
of other tokens are dropped. A text whose tokens are all kept is tokenized as before: the merges that were applied to it remain,
in their order, and none is new. WordPiece takes the longest token that fits, which is still there if it was kept.
"""

import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from lonas_edge.errors import LonasEdgeError
from lonas_edge.files import read_by, read_json

FILE = "tokenizer.json"
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")  # of byte fallback
_UNUSED = re.compile(r"[\[<>].*(unused|reserved)", re.IGNORECASE)  # not the words
_SPACE = "▁"  # SentencePiece's
_PREFIX = "##"  # WordPiece's default: a token inside a word


@dataclass(frozen=True)
class TokenizerFile:
    """A BPE or WordPiece tokenizer; `content` is that of its file."""

    path: Path
    content: Mapping[str, Any]

    @classmethod
    def read(cls, folder: Path) -> "TokenizerFile":
        """Read the tokenizer of a model directory.

        Raises:
            LonasEdgeError: If there is none, or one whose tokens cannot be chosen.
        """
        path = folder / FILE
        if not path.is_file():
            raise LonasEdgeError(f"{folder}: no {FILE}; load and save the tokenizer with transformers to create it")
        content = read_json(path)
        if "type" not in (content.get("model") or {}):  # older files, such as bert-base-uncased's
            with read_by("tokenizers", path):
                content = json.loads(Tokenizer.from_str(json.dumps(content)).to_str())
        kind = content["model"]["type"]
        if kind not in ("BPE", "WordPiece"):
            raise LonasEdgeError(f"{path}: a {kind} tokenizer; expected BPE or WordPiece, whose vocabulary can be trimmed")
        return cls(path, content)

    @property
    def model(self) -> Mapping[str, Any]:
        """The tokens and merges."""
        model: Mapping[str, Any] = self.content["model"]
        return model

    @property
    def vocabulary(self) -> Mapping[str, int]:
        """Ids by token, without added tokens that are not among them."""
        vocabulary: Mapping[str, int] = self.model["vocab"]
        return vocabulary

    @cached_property
    def added(self) -> dict[int, str]:
        """Added tokens by id, such as special tokens."""
        return {entry["id"]: entry["content"] for entry in self.content.get("added_tokens") or ()}

    @cached_property
    def tokens(self) -> dict[int, str]:
        """All tokens by id."""
        return {**{number: token for token, number in self.vocabulary.items()}, **self.added}

    @cached_property
    def merges(self) -> list[tuple[str, str]]:
        """BPE's merges, the first ones first."""
        merges = self.model.get("merges") or ()
        return [tuple(merge.split(" ", 1)) if isinstance(merge, str) else tuple(merge) for merge in merges]  # type: ignore[misc]

    @cached_property
    def _rank(self) -> dict[tuple[str, str], int]:
        return {merge: rank for rank, merge in enumerate(self.merges)}

    def required(self, used: Collection[int] = ()) -> set[int]:
        """Ids that every trimmed vocabulary has: added tokens, the unknown token, and what any text is made of.

        Added tokens that are named unused or reserved stay only if they are `used`.
        """
        kept = {number for number, token in self.added.items() if number in used or not _UNUSED.match(token)}
        kept |= {self.vocabulary[token] for token in self._pieces() if token in self.vocabulary}
        return kept

    def _pieces(self) -> Iterator[str]:
        unknown = self.model.get("unk_token")
        yield from [unknown] if unknown else []
        if self.model["type"] == "WordPiece":
            prefix = self.model.get("continuing_subword_prefix", _PREFIX)
            yield from (token for token in self.vocabulary if len(token.removeprefix(prefix)) == 1)
        elif self.model.get("byte_fallback"):
            yield _SPACE  # its bytes would decode to this character
            yield from filter(_BYTE.fullmatch, self.vocabulary)
        else:
            yield from (token for token in self.vocabulary if len(token) == 1)  # the 256 bytes, each written as a character

    def parts(self, number: int) -> frozenset[int]:
        """Ids of the tokens on the way to a token, with its own."""
        if number not in self._parts:
            self._parts[number] = frozenset(self._built_from(number))
        return self._parts[number]

    @cached_property
    def _parts(self) -> dict[int, frozenset[int]]:
        return {}

    def _built_from(self, number: int) -> set[int]:
        token = self.tokens[number]
        if number in self.added or self.model["type"] != "BPE":
            return {number}
        symbols, seen = list(token), {number}
        seen |= {self.vocabulary[symbol] for symbol in symbols if symbol in self.vocabulary}
        while len(symbols) > 1:
            ranks = [self._rank.get(pair, len(self._rank)) for pair in pairwise(symbols)]
            best = min(range(len(ranks)), key=ranks.__getitem__)
            if ranks[best] == len(self._rank):  # no merge leads to it: a whole word (`ignore_merges`), or never produced
                break
            symbols[best : best + 2] = ["".join(symbols[best : best + 2])]
            seen.add(self.vocabulary[symbols[best]])
        return seen

    def earliest(self) -> Iterator[int]:
        """All ids, those of merges first, in the order in which the tokenizer's training found them; unused ones are last.

        Single characters follow the merges: with byte fallback there are thousands, and one language uses few of them.
        """
        yield from (self.vocabulary[first + second] for first, second in self.merges)
        yield from sorted(self.tokens, key=lambda number: (bool(_UNUSED.match(self.tokens[number])), number))

    def trim(self, kept: Sequence[int]) -> dict[str, Any]:
        """Content of the file with some tokens alone; the new id of a token is its index in `kept`."""
        new = {old: index for index, old in enumerate(kept)}
        vocabulary = {token: new[old] for token, old in self.vocabulary.items() if old in new}
        model = {**self.model, "vocab": dict(sorted(vocabulary.items(), key=lambda item: item[1]))}
        if self.model["type"] == "BPE":
            model["merges"] = [list(merge) for merge in self.merges if {*merge, "".join(merge)} <= vocabulary.keys()]
        added = [{**entry, "id": new[entry["id"]]} for entry in self.content.get("added_tokens") or () if entry["id"] in new]
        content = {**self.content, "model": model, "added_tokens": added}
        ids = {**vocabulary, **{entry["content"]: entry["id"] for entry in added}}
        content["post_processor"] = _renumber(self.content.get("post_processor"), ids)
        if padding := self.content.get("padding"):
            content["padding"] = {**padding, "pad_id": new.get(padding["pad_id"], 0)}
        return content

    def write(self, folder: Path, kept: Sequence[int]) -> None:
        """Write the trimmed file into a directory."""
        text = json.dumps(self.trim(kept), ensure_ascii=False, indent=2)
        (folder / FILE).write_text(text, encoding="utf-8")


def _renumber(processor: Any, ids: Mapping[str, int]) -> Any:
    """A post-processor with the new ids of the special tokens that it adds."""
    if not processor:
        return processor
    content = dict(processor)
    if content["type"] == "Sequence":
        content["processors"] = [_renumber(each, ids) for each in content["processors"]]
    for name in ("sep", "cls"):
        if isinstance(content.get(name), list):
            token, _ = content[name]
            content[name] = [token, ids[token]]
    special = content.get("special_tokens")
    if isinstance(special, dict):
        content["special_tokens"] = {
            name: {**entry, "ids": [ids[token] for token in entry["tokens"]]} for name, entry in special.items()
        }
    return content
