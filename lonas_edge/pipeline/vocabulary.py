"""Trim the vocabulary of the base model to the training data."""

from collections import Counter
from pathlib import Path

from lonas_edge.network.source import open_source
from lonas_edge.network.tokenizer import require_tokenizer
from lonas_edge.output import OutputDirectory
from lonas_edge.pipeline.options import AUTO
from lonas_edge.progress import Progress
from lonas_edge.training.options import TrainOptions
from lonas_edge.training.training_data import read_training_data
from lonas_edge.vocabulary.choice import choose
from lonas_edge.vocabulary.proposals import Fertility, proposals
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


def trim(base: str, data: Path, vocabulary: str, prompt: str | None, folder: Path, progress: Progress) -> None:
    """Write the base model with a smaller vocabulary into the directory `folder`."""
    source = open_source(base)
    located, architecture = source.base, source.architecture
    tokenizer, always = TokenizerFile.read(located.folder), special_ids(located.folder)
    progress("Tokenizing the data", None)
    examples, rows = encoded(located.folder, data, prompt), source.architecture.config.vocab_size
    fertility = Fertility(tokenizer, examples, always, rows)
    if vocabulary == AUTO:
        fitting = [each for each in proposals(architecture, fertility, None) if each.tokens_per_text <= MOST_TOKENS]
        size = min(each.tokens for each in fitting)
    else:
        size = int(vocabulary)
    counts = Counter(token for example in examples for token in example)
    kept = choose(tokenizer, counts, always, size, rows).kept
    output = OutputDirectory(folder)
    output.check(trimmed_bytes(architecture, len(kept)))
    with output.open() as new:
        ratio = fertility.of(size)[1]
        trim_model(located, architecture, tokenizer, kept, [data], ratio, new, lambda done: progress("Writing", done))
    progress(f"{len(kept):,} of {rows:,} tokens kept; held-out text takes {ratio:.3f}x the tokens\nTrimming", None)
