"""Options of `compress`. No torch: the command line imports this module."""

from dataclasses import dataclass
from pathlib import Path

from lonas_edge.data.templates import CHAT, TEMPLATES
from lonas_edge.errors import LonasEdgeError
from lonas_edge.formats import INTEGER_FORMATS
from lonas_edge.options import LARGEST_SEED, Checked, option
from lonas_edge.training.options import PRECISIONS

AUTO, KEEP = "auto", "keep"
FORMAT = "int4_sym"  # trained for, at equal accuracy faster than INT8: docs/benchmarks/recovery.md
AUTO_TARGET = "kl<=0.15"  # before recovery, nats per answer token: docs/benchmarks/recovery.md has the loss after it


def _vocabulary(text: str) -> str:
    if text not in (AUTO, KEEP) and not (text.isascii() and text.isdecimal() and int(text) > 0):
        raise ValueError(f"{text}: expected {KEEP}, {AUTO} or a number of tokens")
    return text


@dataclass(frozen=True, kw_only=True)
class CompressOptions(Checked):
    """What `compress` makes of a model."""

    data: Path = option(
        metavar="DATA", help="Training data: conversations, instructions or texts; JSON Lines, JSON or Parquet."
    )
    output: Path = option(metavar="DIR", help="Directory to write. The same command continues an interrupted run.")
    target: tuple[str, ...] = option(
        (AUTO,),
        metavar="EXPRESSION",
        repeat=True,
        help=f"Bound: 'tpot<=0.7x' (of the unpruned model) or 'tpot<=20' (ms); one network each. auto: {AUTO_TARGET}.",
    )
    weight_format: str = option(
        FORMAT,
        choices=INTEGER_FORMATS,
        help="Weight format of the result. INT4 formats use quantization-aware training.",
    )
    vocabulary: str = option(
        KEEP,
        metavar="keep|auto|N",
        parse=_vocabulary,
        help="Tokens to keep: keep all, N, or auto: the fewest that add at most 3 % tokens to a text.",
    )
    eval_data: Path | None = option(
        None, panel="Data", metavar="FILE", help="Held-out data; at most 400 examples are used.", unset="a tenth of --data"
    )
    prompt: str | None = option(
        None,
        panel="Data",
        choices=(*TEMPLATES, CHAT),
        help="Prompt template.",
        unset="chat for conversations, else the adapter's, else alpaca",
    )
    epochs: float = option(1.0, panel="Training", above=0, help="Passes over the data of the LoRA fine-tuning.")
    recovery_steps: int | None = option(
        None, panel="Training", minimum=1, help="Steps of the recovery.", unset="those of 100,000 tokens"
    )
    precision: str = option(
        "auto",
        panel="Training",
        choices=PRECISIONS,
        help="Compute precision of the trainings; auto takes the faster one.",
    )
    seed: int = option(42, panel="Training", minimum=0, maximum=LARGEST_SEED, help="Random seed.")
    prompt_len: int = option(256, panel="Device", minimum=1, help="Prompt tokens of the latencies.")
    new_tokens: int = option(64, panel="Device", minimum=2, help="Generated tokens of the latencies.")
    dry_run: bool = option(False, panel="Output", help="Print the steps with estimated time, memory and disk, then stop.")
    overwrite: bool = option(
        False, panel="Output", help="Repeat finished steps whose options have changed, and the steps that depend on them."
    )

    def __post_init__(self) -> None:
        """Check all options."""
        super().__post_init__()
        try:
            _vocabulary(self.vocabulary)
        except ValueError as error:
            raise LonasEdgeError(f"--vocabulary {error}") from None
