"""Rerankers that compare the logits of two tokens, such as "yes" and "no"; by sentence-transformers' files.

`modules.json` lists `LogitScore` after the Transformer, and its config.json has the tokens (sentence-transformers 6). The score
is logit[true] - logit[false] of the last token, or logit[true] alone. Such a language model is opened as a classifier with one
output, which all clients open: its head is the difference of the two rows of the language model's head.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lonas_edge.data.pooling import MODULES
from lonas_edge.errors import LonasEdgeError, raise_all
from lonas_edge.families import CLASSIFICATION, family_of
from lonas_edge.files import read_json, read_text

HEADS = ("lm_head.weight", "model.embed_tokens.weight")  # the language model's head; the second one where they are tied
SCORE = "score.weight"  # the classifier's
_MODULE = "LogitScore"


@dataclass(frozen=True)
class LogitScore:
    """The tokens that a reranker compares; `false` is None where the first one's logit is the score."""

    true: int
    false: int | None

    def as_classifier(self, content: Mapping[str, Any], where: Path) -> dict[str, Any]:
        """The config.json `content` of the language model as that of a classifier with one output.

        Raises:
            LonasEdgeError: The tokens are not in the vocabulary, or the architecture has no classifier.
        """
        name, vocabulary = next(iter(content.get("architectures") or [""])), content.get("vocab_size", 0)
        family = family_of(content.get("model_type"), CLASSIFICATION)
        tokens = {"true_token_id": self.true} | ({} if self.false is None else {"false_token_id": self.false})
        errors = [
            f"{role}: expected a token of the vocabulary, 0 to {vocabulary - 1}, found {token!r}"
            for role, token in tokens.items()
            if not (isinstance(token, int) and 0 <= token < vocabulary)
        ]
        if family is None or family.kind is not CLASSIFICATION or not name.endswith("ForCausalLM"):
            errors.append(f"architectures {name!r}: expected a language model such as Qwen3ForCausalLM")
        raise_all(
            f"{where}: this reranker ({_MODULE} in {MODULES}) is not supported:", errors, "Use the files that came with it."
        )
        assert family
        output = {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}, "problem_type": "regression"}
        return {**content, "architectures": [family.class_names[content["model_type"]]["model"]], **output}


def read_logit_score(folder: Path) -> LogitScore | None:
    """Read the tokens that a reranker compares; None of another model."""
    file = folder / MODULES
    if not file.is_file() or _MODULE not in (text := read_text(file, "the list of modules")):
        return None
    try:
        path = next(str(module["path"]) for module in json.loads(text) if str(module["type"]).endswith(f".{_MODULE}"))
        content = read_json(folder / Path(path).name / "config.json")
        return LogitScore(content["true_token_id"], content.get("false_token_id"))
    except (StopIteration, TypeError, KeyError, ValueError) as error:
        raise LonasEdgeError(f"{file}: cannot read the tokens of {_MODULE} ({error!r}). Download the model again.") from error
