"""Model families as behaviour, one file a family. A new family is a new file and a line in `FAMILIES`."""

from collections.abc import Mapping, Sequence
from typing import Any

from lonas_edge.families.base import Family
from lonas_edge.families.bert import Bert, BertEmbedder
from lonas_edge.families.bloom import Bloom
from lonas_edge.families.decoders import LlamaClassifier, LlamaEmbedder, SmolLM3Classifier, SmolLM3Embedder
from lonas_edge.families.distilbert import DistilBert, DistilBertEmbedder
from lonas_edge.families.gemma3n import Gemma3n
from lonas_edge.families.gpt_neox import GPTNeoX
from lonas_edge.families.granite import Granite, Granite4
from lonas_edge.families.kinds import CAUSAL_LM, CLASSIFICATION, EMBEDDING, MODEL_KINDS, ModelKind, casefold, output_names
from lonas_edge.families.layers import (
    BLOCK_KINDS,
    NOTHING,
    Block,
    GroupKind,
    HeadRule,
    Linear,
    LinearPart,
    Ranges,
    WidthRule,
    head_dim,
    key_value_heads,
)
from lonas_edge.families.llama import Llama
from lonas_edge.families.mpnet import MPNetEmbedder
from lonas_edge.families.olmo2 import Olmo2
from lonas_edge.families.phi3 import Phi3
from lonas_edge.families.roberta import Roberta, RobertaEmbedder
from lonas_edge.families.smollm3 import SmolLM3

FAMILIES: tuple[Family, ...] = (
    Llama(),
    SmolLM3(),
    Granite(),
    Granite4(),
    Gemma3n(),
    Olmo2(),
    Phi3(),
    GPTNeoX(),
    Bloom(),
    Bert(),
    BertEmbedder(),
    Roberta(),
    RobertaEmbedder(),
    MPNetEmbedder(),
    DistilBert(),
    DistilBertEmbedder(),
    LlamaClassifier(),
    LlamaEmbedder(),
    SmolLM3Classifier(),
    SmolLM3Embedder(),
)

SUPPORTED_MODEL_TYPES: tuple[str, ...] = tuple(dict.fromkeys(kind for family in FAMILIES for kind in family.model_types))

__all__ = [
    "BLOCK_KINDS",
    "CAUSAL_LM",
    "CLASSIFICATION",
    "EMBEDDING",
    "FAMILIES",
    "MODEL_KINDS",
    "NOTHING",
    "SUPPORTED_MODEL_TYPES",
    "Block",
    "Family",
    "GroupKind",
    "HeadRule",
    "Linear",
    "LinearPart",
    "ModelKind",
    "Ranges",
    "WidthRule",
    "casefold",
    "context_of",
    "family_of",
    "family_of_config",
    "head_dim",
    "key_value_heads",
    "output_names",
    "tokens_of",
]


def family_of(model_type: str | None, kind: ModelKind | None = None, classes: Sequence[str] = ()) -> Family | None:
    """Choose the family of a `model_type`, or None.

    Args:
        model_type: The field of `config.json`.
        kind: The wanted kind, if known; ignored where no family of the model type has it.
        classes: Names of model classes, as in `architectures` of `config.json`. They choose among several families; the first
            family is the default.
    """
    known = [family for family in FAMILIES if model_type in family.model_types]
    known = [family for family in known if family.kind is kind] or known
    named = [family for family in known if model_type and family.class_names[model_type]["model"] in classes]
    return next(iter(named or known), None)


def context_of(content: Mapping[str, Any]) -> int | None:
    """Longest sequence in tokens of a model with this `config.json`; None if it is not limited."""
    family, positions = family_of_config(content), content.get("max_position_embeddings")
    return family.context(positions, content.get("pad_token_id")) if family else positions


def tokens_of(content: Mapping[str, Any]) -> int:
    """Number of token ids that a model with this `config.json` takes."""
    family = family_of_config(content)
    others = [name for name in (family.vocabularies if family else ()) if name in content]
    return min(int(content[name]) for name in ("vocab_size", *others))


def family_of_config(content: Mapping[str, Any], kind: ModelKind | None = None) -> Family | None:
    """The family of an unchecked `config.json`, as `family_of`."""
    classes = content.get("architectures")
    return family_of(content.get("model_type"), kind, classes if isinstance(classes, list) else ())
