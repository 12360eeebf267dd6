"""Run encoders (classifiers, rerankers, embedding models) on encoded texts: IRs and models in PyTorch alike."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from lonas_edge.data.pooling import Pooling
from lonas_edge.data.task import MAX_LENGTH, Encoded, Task
from lonas_edge.exporting.exported import open_exported
from lonas_edge.ir import MODEL
from lonas_edge.ir.core import open_model
from lonas_edge.network.tokenizer import require_tokenizer
from lonas_edge.progress import Progress

Arrays = Mapping[str, np.ndarray]
Encoder = Callable[[Arrays], np.ndarray]  # inputs by name -> logits or embeddings [texts, outputs]
Collator = Callable[[Sequence[Encoded]], dict[str, torch.Tensor]]
_BATCH = 16  # examples


def ir_encoder(folder: Path, device: str, properties: Mapping[str, str], pooling: Pooling | None) -> Encoder:
    """Compile the IR of an encoder; with a pooling its outputs are embeddings."""
    return _pooled(open_model(folder / MODEL, device, properties), pooling)


def torch_encoder(model: Any, pooling: Pooling | None) -> Encoder:
    """Make a function of a Hugging Face encoder; with a pooling its outputs are embeddings."""
    output = "last_hidden_state" if pooling else "logits"

    def encode(arrays: Arrays) -> np.ndarray:
        with torch.inference_mode():
            inputs = {name: torch.from_numpy(values).to(model.device) for name, values in arrays.items()}
            values: np.ndarray = getattr(model(**inputs), output).float().cpu().numpy()
            return values

    return _pooled(encode, pooling)


def _pooled(encode: Encoder, pooling: Pooling | None) -> Encoder:
    if pooling is None:
        return encode

    def embed(arrays: Arrays) -> np.ndarray:
        hidden, mask = torch.from_numpy(encode(arrays)), torch.from_numpy(arrays["attention_mask"])
        embeddings: np.ndarray = pooling.pool(hidden, mask).numpy()
        return embeddings

    return embed


def batches(rows: Sequence[Encoded], collate: Collator, size: int) -> Iterator[tuple[list[int], Arrays]]:
    """Yield batches of encoded texts, the longest first: their indices, and the inputs of an encoder."""
    order = sorted(range(len(rows)), key=lambda index: (-len(rows[index]["input_ids"]), index))
    for start in range(0, len(order), size):
        indices = order[start : start + size]
        tensors = collate([rows[index] for index in indices])
        yield indices, {name: tensor.numpy() for name, tensor in tensors.items() if name != "labels"}


def ir_outputs(folder: Path, data: Task, properties: Mapping[str, str], progress: Progress) -> np.ndarray:
    """Compute an encoder's IR on the examples of its task; long texts are cut, as in the trainings.

    Returns:
        Logits, or embeddings of length 1: [examples, texts or pairs of an example, outputs], float64.
    """
    exported, tokenizer = open_exported(folder, ours=False, kind=data.kind), require_tokenizer(folder, "measuring its outputs")
    longest = exported.context or MAX_LENGTH
    if data.pooling:
        context = exported.context or tokenizer.model_max_length
        longest = int(data.pooling.limit(tokenizer.model_max_length, context).max_length or context)
    [rows] = data.encode(tokenizer, longest)
    encoder, order, parts = ir_encoder(folder, "CPU", properties, data.pooling), list[int](), list[np.ndarray]()
    for indices, arrays in batches(rows, data.collator(tokenizer), _BATCH):
        progress(f"outputs of {folder.name}", len(order) / len(rows))
        order += indices
        parts.append(encoder(arrays))
    outputs = np.concatenate(parts).astype(np.float64)
    outputs = outputs.reshape(len(rows), -1, outputs.shape[-1])[np.argsort(order)]
    shaped: np.ndarray = outputs.reshape(len(data.examples), -1, outputs.shape[-1])
    return F.normalize(torch.from_numpy(shaped), dim=-1).numpy() if data.pooling else shaped
