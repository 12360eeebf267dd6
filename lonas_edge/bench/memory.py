"""Memory that weights and a generation take."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lonas_edge.bench.arms import Arm, Case
from lonas_edge.files import read_json
from lonas_edge.formats import DTYPES
from lonas_edge.ir import WEIGHTS
from lonas_edge.space.architecture import Architecture

KV_BYTES = {dtype.kv_name: dtype.bytes for dtype in DTYPES.values()} | {"u8": 1}  # of an element, by precision


def weight_bytes(folder: Path) -> int:
    """Bytes of an IR's weights, in the directory given."""
    return (folder / WEIGHTS).stat().st_size


def config_of(arm: Arm, otherwise: Mapping[str, Any]) -> Mapping[str, Any]:
    """The configuration of an arm's model: layers without attention, or with fewer heads, have smaller caches.

    Args:
        arm: The arm.
        otherwise: What is taken where it has none, as a GGUF file.

    Returns:
        Content of its config.json.
    """
    path = arm.path / "config.json"
    return read_json(path) if path.is_file() else otherwise


def kv_bytes(config: Mapping[str, Any], tokens: float, precision: str) -> float:
    """Bytes of the KV cache of one sequence.

    Args:
        config: Content of the model's config.json.
        tokens: Tokens in it.
        precision: One of `KV_BYTES`; others count as two bytes.

    Returns:
        The bytes.
    """
    return _architecture(config).kv_elements() * tokens * KV_BYTES.get(precision, 2)


def run_bytes(config: Mapping[str, Any], case: Case) -> float:
    """Least memory of one generation beside the weights: KV cache in 16 bits, and the activations of one layer in fp32.

    Args:
        config: Content of the model's config.json.
        case: Says how long and how many.

    Returns:
        Bytes.
    """
    cache = kv_bytes(config, case.prompt_len + case.new_tokens, "f16")
    architecture = _architecture(config)
    width = int(architecture.config.hidden_size) + architecture.inner_width()
    return case.batch_size * (cache + 4.0 * case.prompt_len * width + 4.0 * int(architecture.config.vocab_size))


def _architecture(config: Mapping[str, Any]) -> Architecture:
    from transformers import AutoConfig

    return Architecture.from_config(AutoConfig.for_model(**config), "config.json")
