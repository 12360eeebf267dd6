"""Model families: one table per family, one file per table. A new family is a new file and a line in `FAMILIES`."""

from lonas_edge.families import llama
from lonas_edge.families.base import Family, Linear, WidthRule

FAMILIES: tuple[Family, ...] = (llama.FAMILY,)

SUPPORTED_MODEL_TYPES: tuple[str, ...] = tuple(kind for family in FAMILIES for kind in family.model_types)

__all__ = ["FAMILIES", "SUPPORTED_MODEL_TYPES", "Family", "Linear", "WidthRule", "family_of"]


def family_of(model_type: str) -> Family | None:
    """The family table that serves a `model_type`, or None."""
    return next((family for family in FAMILIES if model_type in family.model_types), None)
