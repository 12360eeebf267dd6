"""Options of how models are run in an evaluation."""

from pydantic.dataclasses import dataclass

from lonas_edge.bench.options import Properties
from lonas_edge.formats import DTYPES
from lonas_edge.options import Options, option


@dataclass(frozen=True, kw_only=True)
class RunOptions(Options):
    """Devices, precision and batch size."""

    device: str = option(
        "CPU",
        panel="Device",
        help="OpenVINO device of exported directories; cuda runs models in PyTorch there and exports on the CPU.",
    )
    properties: Properties = option(
        (),
        panel="Device",
        flag="property",
        metavar="NAME=VALUE",
        repeat=True,
        help="OpenVINO runtime property; it wins over tuned ones.",
    )
    torch_dtype: str = option("fp32", panel="Device", choices=tuple(DTYPES), help="Dtype of models in PyTorch.")
    batch_size: int | None = option(
        None,
        panel="Device",
        minimum=1,
        help="Prompts per batch; answers are saved after each batch.",
        unset="64; 16 above 1 GB of weights",
    )

    @property
    def torch_device(self) -> str:
        """The device of models in PyTorch: cpu or cuda."""
        return "cuda" if self.device.lower() == "cuda" else "cpu"

    @property
    def openvino_device(self) -> str:
        """The device of exported directories."""
        return self.device if self.torch_device == "cpu" else "CPU"
