"""Draft models: a small model proposes tokens, and the model checks several of them in one pass (speculative decoding).

The answers stay the model's own; a draft only changes their speed. Any language model with the same tokenizer can be a draft.
`lonas-edge draft` trains one, with a record of what was measured.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from lonas_edge.errors import LonasEdgeError, raise_all
from lonas_edge.exporting.exported import Exported, open_exported
from lonas_edge.exporting.manifest import DRAFT
from lonas_edge.files import read_text, sha256
from lonas_edge.ir import MODEL
from lonas_edge.network.tokenizer import load_tokenizer, require_tokenizer, tokenizer_differences
from lonas_edge.schema import Record

PRECISION = "INFERENCE_PRECISION_HINT"
LEAST_GAIN = 0.1  # share of TPOT that a draft must save
_PROPOSED = 5  # tokens, of a draft without a record of ours
_VOCABULARY = "openvino_detokenizer.bin"  # the tokenizer's file also has the padding side, which exporters choose
_STATE = re.compile(r'variable_id="([^"]*)"')
_CACHE = re.compile(r"past_key_values|\.key\b|\.value\b")  # names of the states of keys and values


@dataclass(frozen=True)
class DraftSpeed:
    """Speed of greedy answers to held-out prompts with a number of proposed tokens; 0 is the model without the draft."""

    num_assistant_tokens: int
    tpot_ms: float  # medians over answers
    answer_ms: float
    tpot_ratio: tuple[float, float, float]  # to the model without the draft, paired by prompt, with its 95 % interval
    answer_ratio: tuple[float, float, float]
    tokens_per_pass: float  # of the model
    identical: float  # share of answers with the same tokens as the model alone at the default precision
    precision: str | None = None  # INFERENCE_PRECISION_HINT of both models; None for the processor's default


@dataclass(frozen=True)
class DraftRecord(Record):
    """Content of `draft.json`."""

    NAME: ClassVar = "draft"
    VERSION: ClassVar = 1
    AGAIN: ClassVar = "Run `lonas-edge draft` again."

    model: dict[str, str]  # SHA-256 of the files of the model whose answers it learned
    num_assistant_tokens: int  # with which answers take least time
    speeds: tuple[DraftSpeed, ...]
    prompts: dict[str, int]  # number of those to train on, held-out and timed ones, and of answers that were cut
    agreement: float  # share of the held-out tokens that it proposes rightly after the model's own tokens
    steps: int  # of the training until this agreement
    conditions: dict[str, Any]  # machine, versions, seed, tokens of prompts and answers
    precision: str | None = None  # INFERENCE_PRECISION_HINT, likewise; None for the processor's default

    def speed(self, num_assistant_tokens: int) -> DraftSpeed:
        """The speed with a number of proposed tokens, at `precision`."""
        found = (num_assistant_tokens, self.precision)
        return next(each for each in self.speeds if (each.num_assistant_tokens, each.precision) == found)

    @property
    def best(self) -> DraftSpeed:
        """The speed with `num_assistant_tokens`."""
        return self.speed(self.num_assistant_tokens)

    @property
    def pays(self) -> bool:
        """Whether TPOT falls enough and answers take no longer, compared with the model alone at its faster precision."""
        rows = [each for each in self.speeds if not each.num_assistant_tokens]
        alone, best = min(rows, key=lambda each: each.answer_ratio[0]), self.best
        saves = best.tpot_ratio[0] <= (1 - LEAST_GAIN) * alone.tpot_ratio[0]
        return saves and best.answer_ratio[0] <= alone.answer_ratio[0]

    @property
    def properties(self) -> dict[str, str]:
        """Properties of openvino_genai's pipelines."""
        return {PRECISION: self.precision} if self.precision else {}

    @property
    def verdict(self) -> str:
        """State the gain, or why there is none."""
        best, ratio = self.best, self.best.tpot_ratio[0]
        figures = f"{best.num_assistant_tokens} proposed tokens, {best.tokens_per_pass:.2f} tokens a pass, {ratio:.2f}x TPOT"
        if self.precision:
            figures += f" in {self.precision} (without the draft {self.speed(0).tpot_ratio[0]:.2f}x)"
        if self.pays:
            return f"{figures}; {best.identical:.0%} of the answers are identical."
        return (
            f"The draft does not save {LEAST_GAIN:.0%} of TPOT, or makes answers longer. At its best: {figures}, "
            f"{best.answer_ratio[0]:.2f}x the time of an answer. It predicts {self.agreement:.0%} of the tokens. More prompts "
            "may help, or the answers are hard to predict."
        )


@dataclass(frozen=True)
class Draft:
    """A draft model that fits a model."""

    folder: Path
    num_assistant_tokens: int
    precision: str | None = None  # INFERENCE_PRECISION_HINT of both models on a CPU; None for the processor's default

    def options(self, device: str) -> dict[str, Any]:
        """Arguments of openvino_genai's pipelines, which compile the draft with the properties of the model."""
        import openvino_genai

        return {"draft_model": openvino_genai.draft_model(self.folder, device), **self.properties(device)}

    def properties(self, device: str) -> dict[str, str]:
        """Properties of both models; the precision was measured on a CPU."""
        return {PRECISION: self.precision} if self.precision and device == "CPU" else {}


def open_draft(folder: Path, exported: Exported) -> Draft:
    """Open a draft of a model.

    Raises:
        LonasEdgeError: If the model takes none, or the draft has another tokenizer; the differences are listed.
    """
    check_takes_draft(exported)
    opened = open_exported(folder, ours=False, kind=exported.kind)
    differences = _tokenizer_differences(exported.folder, folder)
    if opened.vocabulary != exported.vocabulary:
        differences.insert(0, f"vocab_size: {exported.vocabulary} and {opened.vocabulary}")
    raise_all(
        f"{folder}: its tokenizer is not that of {exported.folder}:",
        differences,
        "Train a draft for it with `lonas-edge draft`.",
    )
    record = DraftRecord.read(folder / DRAFT) if (folder / DRAFT).exists() else None
    return Draft(folder, record.num_assistant_tokens, record.precision) if record else Draft(folder, _PROPOSED)


def _tokenizer_differences(model: Path, draft: Path) -> list[str]:
    """List differences of two tokenizers; a draft of ours only has the model's own files for openvino_genai."""
    vocabularies = [folder / _VOCABULARY for folder in (model, draft)]
    if all(path.exists() for path in vocabularies):
        if sha256(vocabularies[0]) == sha256(vocabularies[1]):
            return []
        if load_tokenizer(draft) is None:
            return [f"{_VOCABULARY}: not the same tokens"]
    return tokenizer_differences(*(require_tokenizer(folder, "a draft") for folder in (model, draft)))


def check_takes_draft(exported: Exported) -> None:
    """Refuse a model that openvino_genai cannot use with a draft: an encoder, or one whose states cannot be taken back."""
    folder, model_type = exported.folder, exported.config.get("model_type")
    if not exported.kind.generates:
        raise LonasEdgeError(f"{folder}: a {exported.kind.name} generates nothing; only language models take a draft")
    states = [name for name in _STATE.findall(read_text(folder / MODEL, "the IR")) if not _CACHE.search(name)]
    if states:
        raise LonasEdgeError(
            f"{folder}: {model_type} has states besides keys and values, such as {states[0]}. openvino_genai cannot take "
            "them back when a proposed token is wrong, so this model takes no draft."
        )
