"""Options of a training. No torch: the command line imports this module."""

from collections.abc import Iterator
from typing import Annotated, Any, Final, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from lonas_edge.data.templates import CHAT, TEMPLATES
from lonas_edge.errors import LonasEdgeError
from lonas_edge.formats import INTEGER_FORMATS
from lonas_edge.options import LARGEST_SEED, Options, from_text, option

PRECISIONS = ("auto", "fp32", "bf16", "fp16")
DEVICES = ("auto", "cpu", "cuda")

DEPTH_RATE = 0.1  # chance that a drawn sub-network lacks a block; at 0.2 the maximal network lost 1.4 points more
EVAL_LOSS = "eval_loss"  # of held-out data, in the Trainer's log
MOST_EPOCHS = 1e6  # also passes over one of several files
_LARGEST = 1e6  # far beyond values that learn anything, and a float32
AUTO: Final = "auto"


def _epochs(text: str) -> Any:
    try:
        return text if text == AUTO else float(text)
    except ValueError:
        raise ValueError(f"expected {AUTO} or a number") from None


Epochs = Annotated[Literal["auto"] | Annotated[float, Field(gt=0, le=MOST_EPOCHS)], from_text(_epochs)]
EpochsOrNone = Annotated[Literal["auto"] | Annotated[float, Field(ge=0, le=MOST_EPOCHS)], from_text(_epochs)]  # 0: no training


@dataclass(frozen=True, kw_only=True)
class TrainOptions(Options):
    """How to train."""

    steps: int | None = option(
        None, panel="Training", minimum=1, help="Optimizer steps; stages are scaled.", unset="from --epochs"
    )
    epochs: Epochs | None = option(
        None,
        panel="Training",
        metavar="N|auto",
        help="Passes over the data; auto: until the loss on --eval-data no longer falls, at most 5.",
        unset="the stages of --nncf-config; 3 without it or with --from",
    )
    lr: float | None = option(
        None,
        panel="Training",
        minimum=0,
        maximum=_LARGEST,
        help="Initial learning rate of each stage.",
        unset="the stage's init_lr, else 1e-3; 3e-4 above 1e9 weights, for classifiers, with --teacher (1e-4 above 3e8)",
    )
    batch_size: int = option(16, panel="Training", minimum=1, help="Examples per optimizer step, over all devices.")
    max_length: int | None = option(
        None,
        panel="Data",
        minimum=2,
        help="Tokens of the longest example; longer ones are dropped. Encoders cut them.",
        unset="4096; of encoders the model's limit, or 128 for GLUE",
    )
    template: str | None = option(
        None,
        panel="Data",
        choices=(*TEMPLATES, CHAT),
        help="Prompt template.",
        unset="chat for conversations, else that of --from, else alpaca",
    )
    rank: int = option(32, panel="Model", minimum=1, help="Rank of the LoRA adapters.")
    alpha: float = option(64, panel="Model", above=0, maximum=_LARGEST, help="LoRA alpha; the scale is alpha / rank.")
    weight_format: str | None = option(
        None, panel="Model", choices=INTEGER_FORMATS, help="Train the weights as this export format stores them (QAT)."
    )
    seed: int = option(
        42, panel="Training", minimum=0, maximum=LARGEST_SEED, help="Random seed; equal seeds give equal adapters."
    )
    device: str = option("auto", panel="Training", choices=DEVICES, help="Device; auto prefers CUDA.")
    dtype: str = option(
        "auto",
        panel="Training",
        choices=PRECISIONS,
        help="Compute precision; auto: bf16 where matrix products are 1.5 times as fast, on CUDA bf16 or else fp16.",
    )
    micro_batch_size: int | None = option(
        None, panel="Advanced", minimum=1, help="Examples per device and pass; gradients accumulate.", unset="all"
    )
    gradient_checkpointing: bool = option(False, panel="Advanced", help="Recompute activations: less memory, 1/3 more time.")
    target_modules: tuple[str, ...] | None = None  # names of the linear layers with an adapter; the family's if None
    ratio: float = 0.8  # maximum share of layer weights in `weight_format`; those that lose most by rounding stay INT8
    reorder: bool = True  # sort channels by importance before the training
    warmup_steps: int | None = None
    weight_decay: float = 0.0
    save_steps: int | None = None
    log_steps: int | None = None
    eval_steps: int | None = None  # between evaluations of the held-out data; a tenth of the steps if None

    def conflicts(self) -> Iterator[str]:
        yield from super().conflicts()
        if self.steps and self.epochs not in (None, AUTO):
            yield "--steps cannot be combined with a number of --epochs"

    def accumulation(self, devices: int) -> int:
        """Count the micro-batches of one device in an optimizer step."""
        share = self.micro_batch_size or self.batch_size // devices
        if share < 1 or self.batch_size % (share * devices):
            raise LonasEdgeError(
                f"--batch-size {self.batch_size} cannot be divided over {devices} device(s) in micro-batches of {share}. "
                "Choose a multiple."
            )
        return self.batch_size // (share * devices)
