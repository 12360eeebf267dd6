"""`lonas-edge draft`: a small draft model for speculative decoding."""

from pathlib import Path
from typing import TYPE_CHECKING

from lonas_edge.cli.command import command
from lonas_edge.cli.terminal import console, progress
from lonas_edge.drafting.options import DraftOptions

if TYPE_CHECKING:
    from lonas_edge.exporting.drafts import DraftRecord


@command
def run(options: DraftOptions) -> None:
    """Train a tiny draft model that lets an exported language model answer faster.

    The model answers the prompts of --data. A draft learns these answers, and is measured on held-out prompts with several
    numbers of proposed tokens. openvino_genai then checks the proposed tokens in one pass: answers stay the model's own.
    Ctrl-C is safe: the same command continues.
    """
    with progress() as report:
        from lonas_edge.drafting.run import make_draft

        record = make_draft(options, report)
    _print(record, options.exported, options.output)


def _print(record: "DraftRecord", model: Path, output: Path) -> None:
    from lonas_edge.drafting.card import speed_table

    terminal = console()
    speed_table(record).print(terminal)
    if cut := record.prompts["cut"]:
        terminal.print(f"{cut} answers did not end within {record.conditions['answer_limit']} tokens and were cut.")
    terminal.print(record.verdict, style=None if record.pays else "yellow")
    terminal.print(f"{output}: try it with `lonas-edge chat {model} --draft {output}`")
