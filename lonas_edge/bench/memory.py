"""Estimate the memory of weights and of a generation."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lonas_edge.bench.variants import Case, Variant
from lonas_edge.formats import DTYPES
from lonas_edge.ir import WEIGHTS
from lonas_edge.network.configuration import parse_config, read_config
from lonas_edge.space.architecture import Architecture

KV_BYTES = {dtype.kv_name: dtype.bytes for dtype in DTYPES.values()} | {"u8": 1}  # bytes per element, by precision


def weight_bytes(folder: Path) -> int:
    """Return the bytes of an IR's weights."""
    return (folder / WEIGHTS).stat().st_size


def config_of(variant: Variant, default: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the config.json of a variant, whose KV cache may be smaller than others'; `default` if it has none."""
    return read_config(variant.path) if (variant.path / "config.json").is_file() else default


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
