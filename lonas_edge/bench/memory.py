"""Memory of variants: weights, KV cache, and which can be loaded together."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from lonas_edge.bench.variants import Variant
from lonas_edge.formats import DTYPES
from lonas_edge.ir import WEIGHTS
from lonas_edge.network.configuration import parse_config
from lonas_edge.space.architecture import Architecture

KV_BYTES = {dtype.kv_name: dtype.bytes for dtype in DTYPES.values()} | {"u8": 1}  # bytes per element, by precision
_PROCESS_BYTES = 700_000_000  # libraries and activations of a process
_SHARE_OF_MEMORY = 0.9  # of the free memory, for variants that are loaded together


def weight_bytes(folder: Path) -> int:
    """Return the bytes of an IR's weights."""
    return (folder / WEIGHTS).stat().st_size


def kv_bytes(config: Mapping[str, Any], tokens: float, precision: str) -> float:
    """Return the bytes of the KV cache of one sequence; a precision that is not in `KV_BYTES` counts as two bytes."""
    architecture = Architecture.from_config(parse_config(config, "config.json"), "config.json")
    return architecture.kv_elements() * tokens * KV_BYTES.get(precision, 2)


def group_by_memory(variants: Sequence[Variant]) -> list[list[Variant]]:
    """Group variants: all together if they fit in the free memory, otherwise the first with each of the others."""
    needed = sum(variant.bytes_estimate + _PROCESS_BYTES for variant in variants)
    if needed <= _SHARE_OF_MEMORY * psutil.virtual_memory().available or len(variants) < 3:
        return [list(variants)]
    return [[variants[0], variant] for variant in variants[1:]]
