"""Export with optimum-intel, which `compress` compares with."""

import os
import subprocess
import sys
from dataclasses import replace
from typing import Any

from lonas_edge.commands import Command, to_argv
from lonas_edge.errors import LonasEdgeError
from lonas_edge.output import OutputDirectory
from lonas_edge.space.architecture import Architecture

_GROUP_SIZES = (128, 64, 32)  # of INT4: the first that divides all widths
_UNGUARDED = """
import sys
from lonas_edge.processes import end_with_parent
parent = int(sys.argv.pop(1))
if sys.platform == "linux":
    end_with_parent(parent)
from optimum.exporters.openvino import model_configs
for guarded in sys.argv.pop(1).split():
    getattr(model_configs, guarded).MAX_TRANSFORMERS_VERSION = "5.99"
if sys.argv[1] == "-m":
    del sys.argv[1:3]
    from lonas_edge.exporting.gptq import main
else:
    from optimum.commands.optimum_cli import main
main()
"""  # one of both, ending with this process, without its checks of transformers' version for models that it converts right


def optimum_options(architecture: Architecture, weight_format: str) -> dict[str, Any]:
    """Options of `optimum-cli` that store a model."""
    kind = architecture.family.kind
    library = None if kind.generates else "transformers"  # sentence-transformers otherwise
    return {"task": kind.conversion, "library": library, "weight-format": weight_format}


def gptq_options(architecture: Architecture) -> dict[str, Any]:
    """Options of `exporting.gptq`: the largest groups that divide all widths of INT4 layers."""
    linears = architecture.linears.values()
    widths = {linear.in_features for linear in linears if linear.four_bits}
    group = next((size for size in _GROUP_SIZES if not any(width % size for width in widths)), None)
    others = any(linear.in_features % group for linear in linears if not linear.four_bits) if group else False
    return {"group-size": group, "group-size-fallback": "ignore" if others else None}


def run_optimum(command: Command, guards: tuple[str, ...]) -> None:
    """Run `optimum-cli` or `exporting.gptq` in a process that ends with this one, without the checks of `guards`."""
    with OutputDirectory(command.paths[""]).open() as folder:
        _, *argv = to_argv(replace(command, paths={**command.paths, "": folder}))
        done = subprocess.run(
            [sys.executable, "-c", _UNGUARDED, str(os.getpid()), " ".join(guards), *argv],
            check=False,
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
            capture_output=True,
            text=True,
        )
        if done.returncode:
            last = (done.stderr.strip() or done.stdout.strip() or "no output").splitlines()[-1]
            raise LonasEdgeError(f"export of the unpruned model with optimum-intel failed: {last}")
