"""Write the tensors of a Hugging Face checkpoint, with one shard in memory at a time."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors.torch import save_file

from lonas_edge.files import replace_text

MAX_SHARD_BYTES = 10**9


def write_shards(
    folder: Path,
    shapes: Mapping[str, tuple[int, ...]],
    dtypes: Mapping[str, torch.dtype],
    read: Callable[[str], torch.Tensor],
    done: Callable[[float], None] = lambda _: None,
) -> None:
    """Write `model.safetensors`, or shards of 1 GB with their index.

    Args:
        folder: The directory, which exists.
        shapes: Shapes of the tensors, by name.
        dtypes: Their dtypes, by name.
        read: Returns a tensor of this shape and dtype.
        done: Called with the share that is written.
    """
    plan = split_torch_state_dict_into_shards(
        {name: torch.empty(shape, dtype=dtypes[name], device="meta") for name, shape in shapes.items()},
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=MAX_SHARD_BYTES,
    )
    written = 0
    for file, names in plan.filename_to_tensors.items():
        save_file({name: read(name).contiguous() for name in names}, folder / file, metadata={"format": "pt"})
        written += len(names)
        done(written / len(shapes))
    if plan.is_sharded:
        index = {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename}
        replace_text(folder / "model.safetensors.index.json", json.dumps(index, indent=2) + "\n")
