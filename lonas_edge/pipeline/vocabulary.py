"""Trim the vocabulary of the base model to the training data."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from lonas_edge.network.source import Source, open_source
from lonas_edge.network.tokenizer import require_tokenizer
from lonas_edge.output import OutputDirectory
from lonas_edge.pipeline.options import AUTO
from lonas_edge.progress import Progress
from lonas_edge.training.options import TrainOptions
from lonas_edge.training.training_data import read_training_data
from lonas_edge.vocabulary.choice import Choice, choose
from lonas_edge.vocabulary.proposals import Fertility, Proposal, proposals
from lonas_edge.vocabulary.tokenizer_file import TokenizerFile
from lonas_edge.vocabulary.trim import special_ids, trim_model, trimmed_bytes

MOST_TOKENS = 1.03  # tokens per text of `auto`, relative to the whole vocabulary
_LONGEST = 2**20  # tokens of an example


def encoded(folder: Path, data: Path, prompt: str | None) -> list[list[int]]:
    """Tokenize the data as a training on them does, uncut; return ids by example."""
    read, tokenizer = read_training_data(data), require_tokenizer(folder, "trimming")
    chosen = read.with_prompt(TrainOptions(prompt=prompt, max_length=_LONGEST), None)
    [examples] = read.encode(tokenizer, chosen, read.prompting(chosen, tokenizer, folder, None))
    return [example["input_ids"] for example in examples]


def check_size(base: str, data: Path, vocabulary: str, prompt: str | None) -> None:
    """Refuse a tokenizer or a size that `trim` would refuse."""
    _chosen(base, data, vocabulary, prompt)


def _chosen(base: str, data: Path, vocabulary: str, prompt: str | None) -> tuple[Source, TokenizerFile, Fertility, Choice]:
    source = open_source(base)
    folder, architecture = source.base.folder, source.architecture
    tokenizer, always = TokenizerFile.read(folder), special_ids(folder)
    examples, rows = encoded(folder, data, prompt), architecture.config.vocab_size
    fertility = Fertility(tokenizer, examples, always, rows)
    size = _automatic(proposals(architecture, fertility, None)[:-1]) if vocabulary == AUTO else int(vocabulary)
    counts = Counter(token for example in examples for token in example)
    return source, tokenizer, fertility, choose(tokenizer, counts, always, size, rows, "--vocabulary")


def _automatic(smaller: Sequence[Proposal]) -> int | None:
    """The smallest size that adds few tokens to a text, else the largest; None, the data's own tokens, without a proposal."""
    fitting = [each.tokens for each in smaller if each.tokens_per_text <= MOST_TOKENS]
    return min(fitting) if fitting else max((each.tokens for each in smaller), default=None)


def trim(base: str, data: Path, vocabulary: str, prompt: str | None, folder: Path, progress: Progress) -> None:
    """Write the base model with a smaller vocabulary into the directory `folder`."""
    progress("Tokenizing the data", None)
    source, tokenizer, fertility, choice = _chosen(base, data, vocabulary, prompt)
    kept, rows = choice.kept, source.architecture.config.vocab_size
    output = OutputDirectory(folder)
    output.check(trimmed_bytes(source.architecture, len(kept)))
    with output.open() as new:
        ratio = fertility.of(len(kept))[1]
        made = (source.base, source.architecture, tokenizer, kept, [data], ratio, new)
        trim_model(*made, lambda done: progress("Writing", done))
    progress(f"{len(kept):,} of {rows:,} tokens kept; held-out text takes {ratio:.3f}x the tokens\nTrimming", None)
