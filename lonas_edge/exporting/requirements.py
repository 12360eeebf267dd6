"""Requirements of optional parts of an export: a tokenizer, memory."""

from typing import Any

import psutil

from lonas_edge.errors import LonasEdgeError
from lonas_edge.network.source import Source


def require_tokenizer(option: str, source: Source, tokenizer: Any) -> None:
    """Refuse an option that needs a tokenizer if the base has none."""
    if tokenizer is None:
        raise LonasEdgeError(
            f"{source.base.folder}: no tokenizer, which {option} needs. Save the model's tokenizer in this directory."
        )


def require_memory(option: str, needed: float) -> None:
    """Refuse an option that needs more bytes of memory than are available."""
    available = psutil.virtual_memory().available
    if needed > available:
        raise LonasEdgeError(
            f"{option} holds the uncompressed sub-network in memory: it needs about {needed / 1e9:.1f} GB, "
            f"{available / 1e9:.1f} GB are available. Without {option}, each weight is compressed on its own."
        )
