"""`lonas-edge trim`: write a model with a smaller vocabulary."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pydantic.dataclasses import dataclass

from lonas_edge.cli.command import command
from lonas_edge.cli.terminal import console, progress
from lonas_edge.data.templates import CHAT, TEMPLATES
from lonas_edge.errors import LonasEdgeError
from lonas_edge.options import Options, PathOrName, UserPath, option
from lonas_edge.output import OutputDirectory
from lonas_edge.tables import Table

if TYPE_CHECKING:
    from lonas_edge.vocabulary.model_vocabulary import VocabularySize


@dataclass(frozen=True, kw_only=True)
class TrimOptions(Options):
    """Which tokens stay."""

    model: PathOrName = option(argument=True, help="Base model, a directory or hub id (ID or ID@REVISION).")
    data: UserPath = option(exists=True, metavar="DATA", help="Training data; the tokens that they use are kept first.")
    vocabulary: int | None = option(None, minimum=1, help="Number of tokens to keep.", unset="the tokens of --data alone")
    output: UserPath | None = option(None, panel="Output", metavar="DIR", help="Directory to write.", unset="only show sizes")
    template: str | None = option(None, choices=(*TEMPLATES, CHAT), hidden=True, help="Prompt template for --data.")
    overwrite: bool = option(False, panel="Output", help="Replace an existing output directory.")


@command
def run(options: TrimOptions) -> None:
    """Write a base model with a smaller vocabulary: the tokens of some data, of any text's bytes, and special tokens.

    Embedding and head are a large part of a small model. Any text can still be tokenized; texts unlike the data take more
    tokens. Without --output, show sizes and what they cost. The result is a base model for all other commands, also for
    adapters of the untrimmed model: pass it as --model.
    """
    with progress() as report:
        from lonas_edge.network.source import open_source
        from lonas_edge.vocabulary.model_vocabulary import ModelVocabulary

        if options.output:  # before a base is downloaded
            OutputDirectory(options.output, options.overwrite, (options.model, options.data)).check(0)
        report("Opening", None)
        source = open_source(options.model, weights=options.output is not None)
        if source.adapter:
            folder = source.adapter.folder
            raise LonasEdgeError(f"{folder}: is an adapter. Trim its base, then pass that as --model with the adapter.")
        vocabulary, base = ModelVocabulary(source, options.data, options.template), source.base
        report("Tokenizing the data, and counting tokens per text", None)
        if options.output is None:
            sizes = vocabulary.sizes(options.vocabulary)
        else:
            choice = vocabulary.choose(options.vocabulary)
            output = OutputDirectory(options.output, options.overwrite, [base.folder, options.data])
            ratio = vocabulary.write(choice, options.vocabulary, output, report)
    if options.output is None:
        _show(sizes, base.name)
        return
    dropped = f"; {choice.missing:,} rare ones were dropped" if choice.missing else ""
    console().print(
        f"{options.output}: {len(choice.kept):,} of {len(vocabulary.file.tokens):,} tokens. The data use {choice.used:,}"
        f"{dropped}. Held-out text takes {ratio:.3f}x the tokens."
    )


def _show(rows: "Sequence[VocabularySize]", name: str) -> None:
    headings = ("tokens", "embedding and head, MB in INT8", "share of all weights", "tokens per text", "tokens per other text")
    cells = [
        (
            f"{row.tokens:,}",
            f"{row.table_bytes / 1e6:.1f}",
            f"{row.share:.0%}",
            f"{row.tokens_per_text:.3f}x",
            f"{row.tokens_per_other_text:.2f}x",
        )
        for row in rows
    ]
    Table(headings, cells, f"{name}: vocabularies for this data").print(console())
    console().print(
        "Tokens per text: on a tenth of the data, with a vocabulary chosen on the rest. Other text: a few lines of English, "
        "other languages and code. Write a vocabulary with --vocabulary N --output DIR."
    )
