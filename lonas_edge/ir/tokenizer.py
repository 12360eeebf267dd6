"""Write a model's tokenizer as OpenVINO models."""

from pathlib import Path
from typing import Any

from optimum.exporters.openvino.convert import export_tokenizer

from lonas_edge.errors import LonasEdgeError
from lonas_edge.families import ModelKind

TOKENIZER = "openvino_tokenizer.xml"


def save_tokenizer(tokenizer: Any, folder: Path, kind: ModelKind) -> None:
    """Write a transformers tokenizer's files, and OpenVINO models of it for clients without transformers."""
    tokenizer.save_pretrained(folder)
    export_tokenizer(tokenizer, folder, task=kind.conversion)
    if not (folder / TOKENIZER).exists():
        raise LonasEdgeError(
            f"{type(tokenizer).__name__}: openvino_tokenizers cannot express this tokenizer. Save it as a fast tokenizer "
            "(tokenizer.json) in the base model's directory."
        )
