"""A model's tokenizer, as it is and as OpenVINO models."""

from pathlib import Path
from typing import Any

from optimum.exporters.openvino.convert import export_tokenizer
from transformers import AutoTokenizer

from lonas_edge.errors import LonasEdgeError

TOKENIZER = "openvino_tokenizer.xml"


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
    except (ValueError, OSError, ImportError) as error:
        raise LonasEdgeError(f"{folder}: the tokenizer cannot be read: {error}") from error


def save_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Write a tokenizer's files, and the same as OpenVINO models for clients without transformers.

    Args:
        tokenizer: A transformers tokenizer.
        folder: An existing directory.

    Raises:
        LonasEdgeError: If OpenVINO cannot express it.
    """
    tokenizer.save_pretrained(folder)
    export_tokenizer(tokenizer, folder, task="text-generation-with-past")
    if not (folder / TOKENIZER).exists():
        raise LonasEdgeError(
            f"{type(tokenizer).__name__}: openvino_tokenizers cannot express this tokenizer. Save it as a fast tokenizer "
            "(tokenizer.json) in the base model's directory."
        )
