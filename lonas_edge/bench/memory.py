"""Memory of variants: which can be loaded together, and which cases do not fit."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from lonas_edge.bench.variants import Case, Variant
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
    return _architecture(config).kv_elements() * tokens * KV_BYTES.get(precision, 2)


def run_bytes(config: Mapping[str, Any], case: Case) -> float:
    """Return the minimum memory of a generation besides the weights: a 16-bit KV cache, and fp32 activations of one layer."""
    cache = kv_bytes(config, case.prompt_len + case.new_tokens, "f16")
    architecture = _architecture(config)
    width = int(architecture.config.hidden_size) + architecture.inner_width()
    return case.batch_size * (cache + 4.0 * case.prompt_len * width + 4.0 * int(architecture.config.vocab_size))


def _architecture(config: Mapping[str, Any]) -> Architecture:
    return Architecture.from_config(parse_config(config, "config.json"), "config.json")


def group_by_memory(variants: Sequence[Variant]) -> list[list[Variant]]:
    """Group variants: all together if they fit in the free memory, otherwise the first with each of the others."""
    needed = sum(variant.bytes_estimate + _PROCESS_BYTES for variant in variants)
    if needed <= _SHARE_OF_MEMORY * psutil.virtual_memory().available or len(variants) < 3:
        return [list(variants)]
    return [[variants[0], variant] for variant in variants[1:]]


def too_large(variants: Sequence[Variant], cases: Sequence[Case]) -> dict[tuple[str, Case], str]:
    """Return messages for cases whose KV cache and activations exceed the free memory, by variant and case."""
    available = psutil.virtual_memory().available
    messages = {}
    for variant in variants:
        if variant.device.lower() != "cpu":
            continue
        for case in cases:
            needed = run_bytes(variant.config, case)
            if needed > available:
                messages[variant.name, case] = (
                    f"{variant.name}: {case}: not enough memory: needs about {needed / 1e9:.1f} GB, "
                    f"{available / 1e9:.1f} GB are free. Choose a smaller --batch-size."
                )
    return messages
