"""A model's tokenizer, as it is."""

from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from lonas_edge.errors import LonasEdgeError


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of a model directory, or None where it has none.

    Args:
        folder: The directory.

    Returns:
        A transformers tokenizer.

    Raises:
        LonasEdgeError: If there is one and it cannot be read.
    """
    names = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json")
    if not any((folder / name).exists() for name in names):
        return None
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (ValueError, OSError, ImportError, TypeError, KeyError) as error:
        raise LonasEdgeError(f"{folder}: the tokenizer cannot be read: {error}") from error
