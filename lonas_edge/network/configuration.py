"""Read configurations of models: transformers checks their fields, and here is what it leaves to others."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lonas_edge.data.logit_score import read_logit_score
from lonas_edge.errors import LonasEdgeError, raise_all
from lonas_edge.families import Family, family_of
from lonas_edge.files import read_by, read_json

GENERATION = "generation_config.json"

_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")
_MAX_LAYERS, _MAX_SIZE = 1000, 2**24  # the deepest models have 126 layers, the largest vocabularies 2^18 entries


def read_config(folder: Path) -> dict[str, Any]:
    """Read a model's config.json; of a reranker that compares tokens as that of a classifier."""
    path = folder / "config.json"
    if not path.exists():
        raise LonasEdgeError(f"{folder}: no config.json; expected a Hugging Face model directory")
    content, score = read_json(path), read_logit_score(folder)
    return score.as_classifier(content, path) if score else content


def parse_config(content: Mapping[str, Any], where: str) -> Any:
    """Make the `PretrainedConfig` of a config.json, whose fields transformers checks; `where` is its name in errors."""
    from transformers import AutoConfig  # takes a while

    if content.get("quantization_config"):
        raise LonasEdgeError(f"{where}: not a usable model: quantized bases are not supported (quantization_config)")
    if not content.get("model_type"):
        raise LonasEdgeError(f"{where}: no model_type; expected the configuration of a Hugging Face model")
    family = family_of(content["model_type"])
    raise_all(f"{where}: not a usable model configuration:", _size_errors(content, family) if family else [])
    with read_by("transformers", Path(where)):
        config = AutoConfig.for_model(**_with_infinity(content))
    vocabulary = getattr(config, "vocab_size", None)
    raise_all(f"{where}: not a usable model configuration:", _token_errors(content, vocabulary) if vocabulary else [])
    return config


def _size_errors(content: Mapping[str, Any], family: Family) -> list[str]:
    """Sizes that are missing, where transformers has defaults, or far too large."""
    errors = []
    for spellings in family.sizes:
        name = next((each for each in spellings if each in content), None)
        largest = _MAX_LAYERS if "num_hidden_layers" in spellings else _MAX_SIZE
        if name is None:
            errors.append(f"{' or '.join(spellings)}: missing")
        elif isinstance(content[name], int) and not 0 <= content[name] <= largest:
            errors.append(f"{name}: expected {largest} at most, found {content[name]}")
    return errors


def _with_infinity(value: Any) -> Any:
    """Decode floats that JSON lacks: transformers writes `{"__float__": "Infinity"}`."""
    if isinstance(value, list):
        return [_with_infinity(item) for item in value]
    if not isinstance(value, dict):
        return value
    if value.keys() == {"__float__"}:
        return float(value["__float__"])
    return {name: _with_infinity(item) for name, item in value.items()}


def read_generation_config(folder: Path, vocabulary: int | None = None) -> dict[str, Any] | None:
    """Read `generation_config.json`, None where there is none; token ids are checked if `vocabulary` is given."""
    path = folder / GENERATION
    if not path.exists():
        return None
    from transformers import GenerationConfig

    content = read_json(path)
    with read_by("transformers", path):
        GenerationConfig.from_dict(content)
    errors = _token_errors(content, vocabulary) if vocabulary else []
    raise_all(f"{path}: not usable:", errors, "Correct or delete it; it is optional.")
    return content


def _token_errors(content: Mapping[str, Any], vocabulary: int) -> list[str]:
    """Special tokens that the vocabulary does not have."""
    errors = []
    for name in _TOKENS:
        tokens = content.get(name)
        for token in tokens if isinstance(tokens, list) else [tokens]:
            if token is not None and token >= vocabulary:
                errors.append(f"{name}: expected a token of the vocabulary, 0 to {vocabulary - 1}, found {token}")
    return errors
