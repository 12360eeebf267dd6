"""Options of how models are run in an evaluation, and settings of what they are run on."""

import random
from dataclasses import dataclass as plain_dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic.dataclasses import dataclass

from lonas_edge.evaluate.answer_metrics import identity
from lonas_edge.evaluate.protocols import CLASSIFY, Protocol
from lonas_edge.files import sha256
from lonas_edge.options import Options, UserPath, from_text, option


def _parse_property(text: str) -> tuple[str, str]:
    name, equals, value = (part.strip() for part in text.partition("="))
    if not (equals and name.isidentifier() and value):
        raise ValueError("expected NAME=VALUE")
    return name, value


METRIC_UNSET = "json if references are JSON objects, exact-match if short, chrf if no spaces separate words, else rouge-l"
METRIC_HELP = "Metric of generated answers: exact-match, json, token-f1, rouge-l, chrf, or a function in a Python file."
Properties = tuple[Annotated[tuple[str, str], from_text(_parse_property)], ...]  # of the OpenVINO runtime


@dataclass(frozen=True, kw_only=True)
class RunOptions(Options):
    """Devices and draft model."""

    device: str = option(
        "CPU",
        panel="Device",
        help="OpenVINO device of exported directories; cuda runs models in PyTorch there and exports on the CPU.",
    )
    properties: Properties = option(
        (), hidden=True, flag="property", metavar="NAME=VALUE", repeat=True, help="OpenVINO runtime property."
    )
    draft: UserPath | None = option(
        None, panel="Device", metavar="DIR", help="Draft model: exported directories also answer with it, as further targets."
    )

    @property
    def torch_device(self) -> str:
        """The device of models in PyTorch: cpu or cuda."""
        return "cuda" if self.device.lower() == "cuda" else "cpu"

    @property
    def openvino_device(self) -> str:
        """The device of exported directories."""
        return self.device if self.torch_device == "cpu" else "CPU"


@plain_dataclass(frozen=True)
class EvalSettings:
    """Tasks, protocol and choice of samples."""

    tasks: tuple[str, ...]  # tasks of the protocol, or of lm-evaluation-harness
    datasets: Path | None  # directory of the test sets; only the harness's own tasks need none
    protocol: Protocol = CLASSIFY
    prompt: str | None = None  # name of the prompt; each target's own when None
    limit: int | None = None  # samples of each task, a seeded choice; all when None
    seed: int = 0  # seed of that choice
    data: Path | None = None  # a data file, whose prompts are answered instead of tasks
    metrics: tuple[str, ...] = ()  # of these answers
    skips_empty: bool = False  # whether examples without a reference are skipped; otherwise they are an error

    @property
    def identity(self) -> dict[str, Any]:
        """Everything except the targets that answers depend on."""
        names = {"tasks": list(self.tasks), "protocol": self.protocol.name, "prompt": self.prompt}
        data = {"data": sha256(self.data), "metrics": [identity(name) for name in self.metrics]} if self.data else {}
        return {**names, **data, "limit": self.limit, "seed": self.seed}

    def choose(self, task: str, count: int) -> list[int]:
        """Choose indices of a task's samples, by the seed and the task's name alone."""
        if self.limit is None or self.limit >= count:
            return list(range(count))
        return sorted(random.Random(f"{self.seed}/{task}").sample(range(count), self.limit))
