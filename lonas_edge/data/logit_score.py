"""Rerankers that compare the logits of two tokens, such as "yes" and "no"; by sentence-transformers' files.

`modules.json` lists `LogitScore` after the Transformer, and its config.json has the tokens (sentence-transformers 6). The score
is logit[true] - logit[false] of the last token, or logit[true] alone. Such a language model is opened as a classifier with one
output, which all clients open: its head is the difference of the two rows of the language model's head. What other files say
about the rendering of pairs becomes part of its chat template, since exports lack these files.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lonas_edge.data.pooling import LENGTHS, MODULES, SETTINGS
from lonas_edge.errors import LonasEdgeError, raise_all
from lonas_edge.families import CLASSIFICATION, family_of
from lonas_edge.files import read_json, read_text

HEADS = ("lm_head.weight", "model.embed_tokens.weight")  # the language model's head; the second one where they are tied
SCORE = "score.weight"  # the classifier's
_MODULE = "LogitScore"


@dataclass(frozen=True)
class LogitScore:
    """The tokens that a reranker compares, and how pairs are rendered."""

    true: int
    false: int | None  # None where the logit of the first one is the score
    variables: Mapping[str, Any] = field(default_factory=dict)  # of the chat template
    structured: bool = False  # whether contents are lists of parts
    prompt: str = ""  # a message of the system before the pair

    def as_classifier(self, content: Mapping[str, Any], where: Path) -> dict[str, Any]:
        """The config.json `content` of the language model as that of a classifier with one output.

        Raises:
            LonasEdgeError: The tokens are not in the vocabulary, or the architecture has no such classifier.
        """
        name, vocabulary = next(iter(content.get("architectures") or [""])), content.get("vocab_size", 0)
        model_type = content.get("model_type", "")
        family = family_of(model_type, CLASSIFICATION)
        tokens = {"true_token_id": self.true} | ({} if self.false is None else {"false_token_id": self.false})
        errors = [
            f"{role}: expected a token of the vocabulary, 0 to {vocabulary - 1}, found {token!r}"
            for role, token in tokens.items()
            if not (isinstance(token, int) and 0 <= token < vocabulary)
        ]
        if family is None or family.kind is not CLASSIFICATION or not name.endswith("ForCausalLM"):
            errors.append(f"architectures {name!r}: expected a language model such as Qwen3ForCausalLM")
        if model_type == "gemma2" or content.get("final_logit_softcapping"):
            errors.append("final_logit_softcapping: differences of capped logits are no linear head")
        if self.structured:
            errors.append(f"{LENGTHS[0]}: messages in the structured format; expected flat ones")
        raise_all(
            f"{where}: this reranker ({_MODULE} in {MODULES}) is not supported:", errors, "Use the files that came with it."
        )
        assert family
        output = {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}, "problem_type": "regression"}
        return {**content, "architectures": [family.class_names[model_type]["model"]], **output}

    def render_by(self, template: str) -> str:
        """A chat template with the variables and the prompt of these files."""
        lines = [f"{{% set {name} = {_literal(value)} %}}" for name, value in self.variables.items()]
        if self.prompt:
            system = f'[{{"role": "system", "content": {_literal(self.prompt)}}}]'
            lines.append(f"{{% set messages = {system} + messages %}}")
        return "".join([*lines, template])


def _literal(value: Any) -> str:
    """A value in Jinja."""
    return "none" if value is None else json.dumps(value, ensure_ascii=False)


def read_logit_score(folder: Path) -> LogitScore | None:
    """Read what a reranker compares, and how pairs are rendered; None of another model."""
    file = folder / MODULES
    if not file.is_file() or _MODULE not in (text := read_text(file, "the list of modules")):
        return None
    try:
        path = next(str(module["path"]) for module in json.loads(text) if str(module["type"]).endswith(f".{_MODULE}"))
        tokens = read_json(folder / Path(path).name / "config.json")
        form, settings = (read_json(folder / name) if (folder / name).exists() else {} for name in (LENGTHS[0], SETTINGS))
        variables = dict(form.get("processing_kwargs", {}).get("chat_template", {}))
        variables.pop("restore_suffix", None)  # pairs that are cut always keep their ending
        structured = form.get("modality_config", {}).get("message", {}).get("format") == "structured"
        prompt = (settings.get("prompts") or {}).get(settings.get("default_prompt_name") or "", "")
        return LogitScore(tokens["true_token_id"], tokens.get("false_token_id"), variables, structured, prompt)
    except (StopIteration, AttributeError, TypeError, KeyError, ValueError) as error:
        raise LonasEdgeError(f"{file}: cannot read the files of {_MODULE} ({error!r}). Download the model again.") from error
