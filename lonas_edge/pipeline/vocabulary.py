"""Trim the vocabulary of a model to data: of `lonas-edge trim`, and as a step of `compress`."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from lonas_edge.data.pooling import Pooling
from lonas_edge.data.registry import open_data
from lonas_edge.errors import LonasEdgeError
from lonas_edge.network.source import Source, open_source
from lonas_edge.network.tokenizer import require_tokenizer
from lonas_edge.output import OutputDirectory
from lonas_edge.pipeline.options import AUTO
from lonas_edge.progress import Progress
from lonas_edge.vocabulary.choice import Choice, choose
from lonas_edge.vocabulary.proposals import Fertility, Proposal, proposals
from lonas_edge.vocabulary.tokenizer_file import TokenizerFile
from lonas_edge.vocabulary.trim import special_ids, trim_model, trimmed_bytes

MOST_TOKENS = 1.03  # tokens per text of `auto`, relative to the whole vocabulary
_LONGEST = 2**20  # tokens of an example


@dataclass(frozen=True)
class Vocabulary:
    """The vocabulary of a model, and the tokens that data use."""

    source: Source
    data: Path
    prompt: str | None = None

    def __post_init__(self) -> None:
        """Refuse a model whose vocabulary cannot be trimmed."""
        architecture = self.source.architecture
        if reason := architecture.family.refused_trim:
            folder = self.source.base.folder
            raise LonasEdgeError(f"{folder}: the vocabulary of {architecture.model_type} cannot be trimmed: {reason}")

    @cached_property
    def tokenizer(self) -> TokenizerFile:
        """The model's tokenizer; one that cannot be trimmed is refused."""
        return TokenizerFile.read(self.source.base.folder)

    @cached_property
    def fertility(self) -> Fertility:
        """The tokens of the data, as a training on them gives them, uncut."""
        folder, trimmable = self.source.base.folder, self.tokenizer
        pooling, tokenizer = self.source.pooling, require_tokenizer(folder, "trimming")
        data = open_data(self.data, self.source.architecture, pooling, prompt=self.prompt)
        [examples] = data.encode(tokenizer, _LONGEST)
        ids = [example["input_ids"] for example in examples]
        if unknown := sorted(set().union(*ids) - trimmable.tokens.keys()):
            names = ", ".join(map(repr, tokenizer.convert_ids_to_tokens(unknown)))
            raise LonasEdgeError(
                f"{trimmable.path}: lacks the tokens {names}, which tokenizer_config.json adds; load and save the tokenizer "
                "with transformers"
            )
        always = special_ids(folder) | _used_without_data(tokenizer, pooling)
        return Fertility(trimmable, ids, always, self.source.architecture.config.vocab_size)

    def proposals(self, size: int | None = None) -> list[Proposal]:
        """Compare sizes, see `vocabulary.proposals`."""
        return proposals(self.source.architecture, self.fertility, size)

    def choose(self, size: int | None, option: str = "--size") -> Choice:
        """Choose the tokens to keep, see `vocabulary.choice`."""
        tokens = self.fertility
        counts = Counter(token for example in tokens.examples for token in example)
        return choose(self.tokenizer, counts, tokens.always, size, tokens.rows, option)

    def write(self, choice: Choice, size: int | None, output: OutputDirectory, progress: Progress) -> float:
        """Write the model with these tokens; return tokens per text, relative to the whole vocabulary."""
        base, architecture = self.source.base, self.source.architecture
        output.check(trimmed_bytes(architecture, len(choice.kept)))
        _, ratio, _ = self.fertility.of(size)
        with output.open() as folder:
            made = (base, architecture, self.tokenizer, choice.kept, [self.data], ratio, folder)
            trim_model(*made, lambda done: progress("Writing", done))
        return ratio


def _used_without_data(tokenizer: Any, pooling: Pooling | None) -> set[int]:
    """Ids of the tokenizer's special tokens, of added tokens in a chat template, and of an embedding model's prompts."""
    template = tokenizer.chat_template or ""
    template = "".join(template.values()) if isinstance(template, dict) else template
    used = {number for token, number in tokenizer.get_added_vocab().items() if token in template}
    for prompt in pooling.prompts.values() if pooling else ():
        used |= set(tokenizer(prompt, add_special_tokens=False)["input_ids"])
    return used | set(tokenizer.all_special_ids)


def choose_size(base: str, data: Path, vocabulary: str, prompt: str | None) -> int | None:
    """Return the number of tokens to keep, for `--vocabulary`; None keeps those of the data alone.

    Raises:
        LonasEdgeError: If `trim` would refuse the tokenizer or the size.
    """
    opened = Vocabulary(open_source(base), data, prompt)
    if vocabulary == AUTO:
        size, tokens = _automatic(opened.proposals()[:-1]), opened.tokenizer.tokens
        everything = sum(number < opened.fertility.rows for number in tokens)
        if size is not None and size >= everything:
            raise LonasEdgeError(f"--vocabulary auto: the data use all {everything} tokens. Use --vocabulary keep.")
    else:
        size = int(vocabulary)
    opened.choose(size, "--vocabulary")
    return size


def trim(base: str, data: Path, size: int | None, prompt: str | None, folder: Path, progress: Progress) -> None:
    """Write the base model with a smaller vocabulary into the directory `folder`."""
    progress("Tokenizing the data", None)
    opened = Vocabulary(open_source(base), data, prompt)
    choice = opened.choose(size, "--vocabulary")
    kept, rows = len(choice.kept), opened.fertility.rows
    ratio = opened.write(choice, kept, OutputDirectory(folder), progress)
    progress(f"{kept:,} of {rows:,} tokens kept; held-out text takes {ratio:.3f}x the tokens\nTrimming", None)


def _automatic(smaller: Sequence[Proposal]) -> int | None:
    """The smallest size that adds few tokens to a text, else the largest; None, the data's own tokens, without a proposal."""
    fitting = [each.tokens for each in smaller if each.tokens_per_text <= MOST_TOKENS]
    return min(fitting) if fitting else max((each.tokens for each in smaller), default=None)
