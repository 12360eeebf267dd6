"""Options of `compress`. No torch: the command line imports this module."""

import re
from collections.abc import Iterator
from typing import Annotated

from pydantic import AfterValidator
from pydantic.dataclasses import dataclass

from lonas_edge.data.templates import CHAT, TEMPLATES
from lonas_edge.errors import UsageError
from lonas_edge.evaluate.answer_metrics import METRICS, check_metric
from lonas_edge.evaluate.options import METRIC_HELP, METRIC_UNSET
from lonas_edge.formats import INTEGER_FORMATS
from lonas_edge.options import LARGEST_SEED, Options, PathOrName, UserPath, option
from lonas_edge.search.cost import COSTS
from lonas_edge.search.picks import parse_picks
from lonas_edge.training.options import AUTO, EpochsOrNone

KEEP, NONE = "keep", "none"
OWN = "metric"  # in a target, the metric of --metric
SPEARMAN = "spearman"
LABEL_METRICS = ("accuracy", SPEARMAN)  # of classifiers; of rerankers and embedding models
_NAME = re.compile(r"[\s<>=]")  # ends the name in a target


def named_measure(target: str) -> str:
    """The name before the bound of a target."""
    return _NAME.split(target.strip().lower())[0]


def _vocabulary(text: str) -> str:
    if text not in (AUTO, KEEP) and not (text.isascii() and text.isdecimal() and int(text) > 0):
        raise ValueError(f"expected {KEEP}, {AUTO} or a number of tokens")
    return text


@dataclass(frozen=True, kw_only=True)
class CompressOptions(Options):
    """What `compress` makes of a model."""

    source: PathOrName = option(argument=True, help="Base model or LoRA adapter: a directory or hub id (ID@REVISION).")
    model: PathOrName | None = option(
        None,
        panel="Model",
        metavar="MODEL",
        help="Base model of an adapter, a directory or hub id (ID or ID@REVISION).",
        unset="the one that the adapter's configuration names",
    )
    data: UserPath = option(
        exists=True,
        metavar="DATA",
        help="Conversations, instructions or texts; of encoders texts or pairs. JSON, Parquet or GLUE's TSV.",
    )
    output: UserPath = option(metavar="DIR", help="Directory to write. The same command continues an interrupted run.")
    target: tuple[str, ...] = option(
        (AUTO,),
        metavar="EXPRESSION",
        repeat=True,
        help="Bound: exact-match=-1 (points below unpruned INT8; of classifiers accuracy=-1), tpot=0.7x, kl=0.1.",
        unset="auto: one point where 50 answers are held out, else kl=0.005; of encoders kl=0.2, or a bound on MACs",
    )
    weight_format: str | None = option(
        None,
        choices=INTEGER_FORMATS,
        help="Weight format of the result. INT4 formats use quantization-aware training.",
        unset="int4_sym; of encoders int8_sym",
    )
    draft: str | None = option(
        None,
        choices=(AUTO, NONE),
        help="Draft model for faster answers; auto: train one, and keep it if it pays.",
        unset="auto; of encoders none",
    )
    vocabulary: Annotated[str, AfterValidator(_vocabulary)] = option(
        KEEP,
        metavar="keep|auto|N",
        help="Tokens to keep: keep all, N, or auto: 8192 or more, as few as add at most 3 % tokens to a text.",
    )
    metric: str | None = option(None, panel="Data", metavar="NAME|FILE.py:FUNCTION", help=METRIC_HELP, unset=METRIC_UNSET)
    eval_data: UserPath | None = option(
        None,
        exists=True,
        panel="Data",
        metavar="FILE",
        help="Held-out data, of which at most 400 examples are used, of encoders 1,500.",
        unset="a tenth of --data",
    )
    max_length: int | None = option(
        None,
        panel="Data",
        minimum=2,
        help="Tokens of the longest example; longer ones are dropped.",
        unset="4096; of encoders the model's limit",
    )
    template: str | None = option(
        None,
        panel="Data",
        choices=(*TEMPLATES, CHAT),
        help="Prompt template.",
        unset="chat for conversations, else the adapter's, else alpaca",
    )
    epochs: EpochsOrNone | None = option(
        None,
        panel="Training",
        metavar="N|auto",
        help="Passes over the data of the LoRA fine-tuning; auto: until the held-out loss no longer falls, at most 5; 0: none.",
        unset=AUTO,
    )
    recovery_steps: int | None = option(
        None,
        panel="Training",
        minimum=1,
        help="Steps of the recovery.",
        unset="those of 120,000 tokens, or 40,000 of answers; of encoders 1,000,000",
    )
    seed: int = option(42, panel="Training", minimum=0, maximum=LARGEST_SEED, help="Random seed.")
    prompt_len: int | None = option(
        None, panel="Device", minimum=1, help="Prompt or text tokens of the latencies.", unset="256; of encoders 128"
    )
    dry_run: bool = option(False, panel="Output", help="Print the steps with estimated time, memory and disk, then stop.")
    overwrite: bool = option(
        False, panel="Output", help="Repeat finished steps whose options have changed, and the steps that depend on them."
    )

    new_tokens: int | None = None  # of the latencies; the task's own if None

    def conflicts(self) -> Iterator[str]:
        """Refuse what is no bound or no metric of any model, before models and data are read."""
        yield from super().conflicts()
        costs, metrics = ["kl", *COSTS], [*METRICS, *LABEL_METRICS]
        others = [text for text in self.target if named_measure(text) not in (AUTO, OWN, *metrics)]
        try:
            parse_picks(others, [*costs, *metrics], "--target")
            if self.metric:
                check_metric(self.metric)
        except UsageError as error:
            yield str(error)
