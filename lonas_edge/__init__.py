"""lonas-edge: LoNAS super-adapters, sliced, merged, compressed and run with OpenVINO."""

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["__version__", "compress", "evaluate", "load_checkpoint"]

# No telemetry from an offline tool: openvino and nncf use stubs if this package is missing. Set before either is imported.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]

if TYPE_CHECKING:
    from lonas_edge.cli.compress import compress
    from lonas_edge.evaluate.api import evaluate
    from lonas_edge.network.modeling import load_checkpoint


def __getattr__(name: str) -> Any:
    if name == "load_checkpoint":  # torch is imported when it is needed, not by `import lonas_edge`
        from lonas_edge.network.modeling import load_checkpoint

        return load_checkpoint
    if name == "compress":
        from lonas_edge.cli.compress import compress

        return compress
    if name == "evaluate":
        return import_module("lonas_edge.evaluate")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
