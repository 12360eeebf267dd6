"""The registry of families: what the documents say of it, and BERT's two families."""

from pathlib import Path
from types import SimpleNamespace

from tiny_bert import CONFIG

from lonas_edge.families import EMBEDDING, SUPPORTED_MODEL_TYPES, family_of
from lonas_edge.space.architecture import Architecture

ROOT = Path(__file__).parents[2]


def test_the_reference_page_lists_them() -> None:
    page = (ROOT / "docs/reference/families.md").read_text()
    assert all(f"| `{model_type}` |" in page for model_type in SUPPORTED_MODEL_TYPES)
    assert page.count("`bert`") == 1  # which has two tasks


def test_every_model_type_is_complete() -> None:
    assert len(set(SUPPORTED_MODEL_TYPES)) == len(SUPPORTED_MODEL_TYPES)
    for model_type in SUPPORTED_MODEL_TYPES:
        family = family_of(model_type)
        assert family and {"model", "body", "layer"} <= family.class_names[model_type].keys()
        assert bool(family.head_rule) != bool(family.refused_heads)


def test_a_configuration_names_its_class() -> None:
    named = SimpleNamespace(**CONFIG, architectures=["BertModel"])
    body = family_of("bert", EMBEDDING)
    assert Architecture.from_config(named, "bert").family is body
    assert body.class_fields("bert") == {"architectures": ["BertModel"]}
    assert family_of("llama").class_fields("llama") == {}
