"""Pooling of an embedding model, which makes one vector of a text's hidden states; in sentence-transformers' files.

`modules.json` lists the modules in order, `1_Pooling/config.json` has the pooling, `sentence_bert_config.json` (or an older
name, as `sentence_roberta_config.json`) the largest number of tokens, `config_sentence_transformers.json` the prompts. Only
poolings that openvino_genai's `TextEmbeddingPipeline` also has are read; others are refused by name. No torch.
"""

import json
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from lonas_edge.errors import LonasEdgeError, LonasEdgeWarning, raise_all
from lonas_edge.files import decode_json, read_by, read_json, read_text, replace_text

if TYPE_CHECKING:
    import torch

MODULES, SETTINGS = "modules.json", "config_sentence_transformers.json"
LENGTHS = tuple(  # the first one that exists counts; the others are of older versions
    f"sentence_{kind}_config.json" for kind in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
EMBEDS = (  # what to do where a model is taken for a classifier
    "A sentence embedding model has sentence-transformers' modules.json in its directory; "
    "`SentenceTransformer(MODEL).save_pretrained(DIR)` writes it."
)
Mode = Literal["mean", "cls", "lasttoken"]
MODES: tuple[Mode, ...] = get_args(Mode)
QUERY, PASSAGE = ("query",), ("document", "passage", "corpus")  # prompts that sentence-transformers gives to either
_POOLING, _NORMALIZE = "1_Pooling", "2_Normalize"
_FLAGS = {  # fields before sentence-transformers 6; several modes are concatenated
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
_PREFIX = "sentence_transformers.models."  # which versions 2 to 6 read
_SUBDIRECTORY = re.compile(r"[0-9]+_[A-Za-z]+")


@dataclass(frozen=True)
class Pooling:
    """How an embedding model makes one vector of a text."""

    mode: Mode = "mean"  # the mean of all tokens, the first token, or the last one
    normalize: bool = False  # whether embeddings have length 1
    max_length: int | None = None  # longest text in tokens; longer ones are cut. None for the tokenizer's own limit
    prompts: dict[str, str] = field(default_factory=dict)  # texts that precede an input, by name
    default_prompt: str | None = None  # name of the prompt of inputs for which none is named
    similarity: str | None = None  # sentence-transformers' name of the function that compares embeddings; None for the cosine
    stated: bool = False  # whether a file states it; otherwise it is what sentence-transformers assumes

    @property
    def description(self) -> str:
        """Mode and normalization, for people."""
        return f"{self.mode}, {'normalized' if self.normalize else 'not normalized'}"

    def limit(self, tokenizer_limit: float, context: int) -> "Pooling":
        """With the longest text that clients use, given the tokenizer's own limit and the model's context."""
        own = self.max_length or (tokenizer_limit if tokenizer_limit >= 1 else context)
        return replace(self, max_length=int(min(own, context)))

    def pool(self, hidden: "torch.Tensor", mask: "torch.Tensor") -> "torch.Tensor":
        """Compute embeddings [texts, hidden], in fp32 or float64.

        Args:
            hidden: Hidden states [texts, tokens, hidden].
            mask: 1 for tokens and 0 for padding [texts, tokens], which follows the tokens.
        """
        hidden = hidden if hidden.dtype.itemsize > 4 else hidden.float()
        if self.mode == "mean":
            pooled = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        elif self.mode == "cls":
            pooled = hidden[:, 0]
        else:
            last = (mask.sum(1) - 1)[:, None, None].expand(-1, 1, hidden.shape[-1])
            pooled = hidden.gather(1, last)[:, 0]
        return pooled / pooled.norm(dim=-1, keepdim=True).clamp(min=1e-12) if self.normalize else pooled

    def prompt(self, *names: str) -> str:
        """The prompt of the first of these names that the model has, else the default one; empty without either."""
        return next(
            (self.prompts[name] for name in names if name in self.prompts), self.prompts.get(self.default_prompt or "", "")
        )

    def write(self, folder: Path, hidden_size: int) -> None:
        """Write sentence-transformers' files into a model's directory."""
        kinds = [("Transformer", ""), ("Pooling", _POOLING)] + [("Normalize", _NORMALIZE)] * self.normalize
        modules = [
            {"idx": index, "name": str(index), "path": path, "type": _PREFIX + kind} for index, (kind, path) in enumerate(kinds)
        ]
        known = ("cls", "mean", "max", self.mode)  # the oldest versions know the first three
        flags = {name: mode == self.mode for name, mode in _FLAGS.items() if mode in known}
        settings = {"prompts": self.prompts, "default_prompt_name": self.default_prompt, "similarity_fn_name": self.similarity}
        (folder / _POOLING).mkdir(exist_ok=True)
        _write(folder / MODULES, modules)
        _write(folder / _POOLING / "config.json", {"word_embedding_dimension": hidden_size, **flags})
        _write(folder / LENGTHS[0], {"max_seq_length": self.max_length, "do_lower_case": False})
        _write(folder / SETTINGS, settings)


def _write(path: Path, content: Any) -> None:
    replace_text(path, json.dumps(content, indent=2) + "\n")


def embeds(folder: Path) -> bool:
    """Whether sentence-transformers' files in a model's directory say that it is an embedding model, not a cross-encoder."""
    settings = read_json(folder / SETTINGS) if (folder / SETTINGS).exists() else {}
    file, known = folder / MODULES, settings.get("model_type") in (None, "SentenceTransformer")
    return known and file.exists() and "LogitScore" not in read_text(file, "the list of modules")


def pooling_of(*folders: Path, warn: bool = True) -> Pooling:
    """The pooling of the first directory that states one; else the mean of all tokens, with a warning unless `warn` is off.

    The last directory is the base's, which has the tokenizer.
    """
    pooling = next((read for folder in folders if (read := read_pooling(folder, folders[-1]))), Pooling())
    message = ""
    if not pooling.stated:
        message = (
            "no modules.json, so its pooling is unknown; assuming the mean of all tokens, not normalized. Add the files of "
            "sentence-transformers if it differs."
        )
    elif pooling.similarity in ("dot", "dot_product") and not pooling.normalize:
        message = (
            f"compares embeddings by the dot product ({SETTINGS}), but pruning and training preserve directions, not lengths. "
            "Compare the results by the cosine."
        )
    if message and warn:
        warnings.warn(f"{folders[-1]}: {message}", LonasEdgeWarning, stacklevel=2)
    return pooling


def read_pooling(folder: Path, base: Path | None = None) -> Pooling | None:
    """Read sentence-transformers' files in the directory of a model or an adapter; None without `modules.json`.

    `base` is the directory with the tokenizer's files, if it is another one.
    """
    if not (folder / MODULES).exists():
        return None
    kinds, path = _read_modules(folder / MODULES)
    length_file = next((name for name in LENGTHS if (folder / name).exists()), LENGTHS[0])
    pooling, length, settings = (
        read_json(folder / name) if (folder / name).exists() else {} for name in (path, length_file, SETTINGS)
    )
    errors = [] if (folder / path).exists() else [f"{path}: missing"]
    modes, most = _modes(pooling), length.get("max_seq_length")
    if len(modes) != 1 or modes[0] not in MODES:
        found = " + ".join(map(str, modes)) or "without a mode"
        errors.append(f"{path}: pooling {found} is not supported; expected one of {', '.join(MODES)}")
    if not pooling.get("include_prompt", True):
        errors.append(f"{path}: include_prompt false is not supported; openvino_genai pools all tokens")
    if most is not None and not (isinstance(most, int) and most > 0):
        errors.append(f"{length_file}: max_seq_length {most!r}: expected a positive number")
    if length.get("do_lower_case") and _keeps_case(base or folder):
        errors.append(f"{length_file}: do_lower_case true is not supported; expected a tokenizer that does it")
    prompts = {name: text or "" for name, text in (settings.get("prompts") or {}).items()}
    raise_all(
        f"{folder}: this embedding model is not supported:",
        errors,
        "Use the files that came with the model, or a model with mean, cls or lasttoken pooling.",
    )
    mode = next(mode for mode in MODES if mode == modes[0])
    default, similarity = settings.get("default_prompt_name"), settings.get("similarity_fn_name")
    return Pooling(mode, "Normalize" in kinds, most, prompts, default, similarity, stated=True)


def _read_modules(file: Path) -> tuple[list[str], str]:
    """Read the kinds of the modules, and the path of the pooling's file, which does not lead out of the directory."""
    modules = decode_json(read_text(file, "the list of modules"), str(file))
    try:
        paths = {str(module["type"]).rpartition(".")[2]: str(module["path"]) for module in modules}
    except (TypeError, KeyError) as error:
        raise LonasEdgeError(f"{file}: not a list of modules: each needs a path and a type ({error!r})") from error
    kinds = list(paths)
    if kinds not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
        raise LonasEdgeError(
            f"{file}: expected the modules Transformer, Pooling and optionally Normalize, found {', '.join(kinds)}"
        )
    if paths["Transformer"]:
        raise LonasEdgeError(f"{file}: expected the Transformer in the model's directory, found path {paths['Transformer']!r}")
    if not _SUBDIRECTORY.fullmatch(paths["Pooling"]):
        raise LonasEdgeError(f"{file}: expected a path like {_POOLING!r} for Pooling, found {paths['Pooling']!r}")
    return kinds, f"{paths['Pooling']}/config.json"


def _modes(content: Mapping[str, Any]) -> list[str]:
    """The modes that a pooling concatenates."""
    stated = content.get("pooling_mode")
    if stated is None:
        return [mode for name, mode in _FLAGS.items() if content.get(name)] or ["mean"]
    return list(stated) if isinstance(stated, list) else [stated]


def _keeps_case(folder: Path) -> bool:
    """Whether a directory has a tokenizer that does not lower-case: several of its files say something about it."""
    if not (folder / "tokenizer_config.json").exists() and not (folder / "tokenizer.json").exists():
        return False
    from transformers import AutoTokenizer

    with read_by("transformers", folder / "tokenizer.json"):
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    return bool(tokenizer.tokenize("The GOOD Film") != tokenizer.tokenize("the good film"))
