"""lonas-edge: LoNAS super-adapters, sliced, merged, compressed and run with OpenVINO."""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["__version__", "load_checkpoint"]

if TYPE_CHECKING:
    from lonas_edge.network.modeling import load_checkpoint


def __getattr__(name: str) -> Any:
    if name == "load_checkpoint":  # torch is imported when it is needed, not by `import lonas_edge`
        from lonas_edge.network.modeling import load_checkpoint

        return load_checkpoint
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
