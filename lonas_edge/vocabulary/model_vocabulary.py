"""The vocabulary of a model and the tokens that data use: sizes to choose from, what each costs, and the trimmed model."""

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from lonas_edge.data.logit_score import read_logit_score
from lonas_edge.data.registry import open_data
from lonas_edge.errors import LonasEdgeError
from lonas_edge.network.source import Source, open_source
from lonas_edge.network.tokenizer import require_tokenizer
from lonas_edge.output import OutputDirectory
from lonas_edge.progress import Progress
from lonas_edge.vocabulary.choice import Choice, choose
from lonas_edge.vocabulary.tokenizer_file import TokenizerFile
from lonas_edge.vocabulary.trim import estimate_bytes, special_ids, trim_model

SIZES = (8_192, 16_384, 24_576, 32_768, 49_152, 65_536, 98_304, 131_072)
MOST_TOKENS = 1.03  # tokens per text of `compress --vocabulary auto`, relative to the whole vocabulary
_LONGEST = 2**20  # tokens of an example
_TENTH = 10
OTHER_TEXTS = (  # of other kinds than most data: plain English, other languages, code, emoji
    "The museum opens at nine and closes at five. Visitors may leave coats and bags at the entrance; photography is allowed in "
    "every room except the library.",
    "Der Zug nach München fährt heute von Gleis sieben ab und hat wegen einer Baustelle etwa zwanzig Minuten Verspätung.",
    "Le marché ouvre tous les samedis sur la place de l'église; on y trouve des légumes, du fromage et des fleurs.",
    "图书馆每天早上九点开门,周末下午五点关门。",
    "Библиотека открывается в девять часов утра и закрывается в пять вечера.",
    "def mean(values: list[float]) -> float:\n    if not values:\n        raise ValueError('no values')\n"
    "    return sum(values) / len(values)\n",
    "SELECT name, COUNT(*) FROM visits WHERE day >= '2024-01-01' GROUP BY name ORDER BY 2 DESC;",
    "See you on Friday 🎉🙂 bring snacks 🍕, please! 👍",
)


@dataclass(frozen=True)
class VocabularySize:
    """A size to choose, and what it costs.

    Attributes:
        tokens: Number of its tokens.
        table_bytes: Bytes of embedding and head in INT8; once where they are tied.
        share: Their share of all weights.
        tokens_per_text: Tokens per text, relative to the whole vocabulary, on data that it was not chosen on.
        tokens_per_other_text: The same on `OTHER_TEXTS`.
    """

    tokens: int
    table_bytes: int
    share: float
    tokens_per_text: float
    tokens_per_other_text: float


@dataclass(frozen=True)
class ModelVocabulary:
    """The vocabulary of a model, and the tokens that data use."""

    source: Source
    data: Path
    prompt: str | None = None

    def __post_init__(self) -> None:
        """Refuse a model whose vocabulary cannot be trimmed."""
        architecture, folder = self.source.architecture, self.source.base.folder
        if reason := architecture.family.refused_trim:
            raise LonasEdgeError(f"{folder}: the vocabulary of {architecture.model_type} cannot be trimmed: {reason}")
        if read_logit_score(folder):
            raise LonasEdgeError(
                f"{folder}: a reranker that compares tokens. Write it as a classifier first, and trim the result: lonas-edge "
                f"export {folder} --stage checkpoint --output CLASSIFIER"
            )

    @cached_property
    def file(self) -> TokenizerFile:
        """The model's tokenizer.json; one that cannot be trimmed is refused."""
        return TokenizerFile.read(self.source.base.folder)

    @cached_property
    def tokenizer(self) -> Any:
        """The model's tokenizer in transformers."""
        return require_tokenizer(self.source.base.folder, "trimming")

    @property
    def rows(self) -> int:
        """Rows of the model's embedding."""
        return int(self.source.architecture.config.vocab_size)

    @cached_property
    def examples(self) -> list[Sequence[int]]:
        """The tokens of the data, as a training on them gives them, uncut."""
        known = self.file.tokens.keys()
        data = open_data(self.data, self.source.architecture, self.source.pooling, prompt=self.prompt)
        [encoded] = data.encode(self.tokenizer, _LONGEST)
        examples: list[Sequence[int]] = [example["input_ids"] for example in encoded]
        if unknown := sorted(set().union(*examples) - known):
            names = ", ".join(map(repr, self.tokenizer.convert_ids_to_tokens(unknown)))
            raise LonasEdgeError(
                f"{self.file.path}: lacks the tokens {names}, which tokenizer_config.json adds; load and save the tokenizer "
                "with transformers"
            )
        return examples

    @cached_property
    def always(self) -> set[int]:
        """Ids that stay whatever the data: special tokens, added tokens in a chat template, an embedding model's prompts."""
        tokenizer, pooling = self.tokenizer, self.source.pooling
        template = tokenizer.chat_template or ""
        template = "".join(template.values()) if isinstance(template, dict) else template
        ids = special_ids(self.source.base.folder) | set(tokenizer.all_special_ids)
        ids |= {number for token, number in tokenizer.get_added_vocab().items() if token in template}
        for prompt in pooling.prompts.values() if pooling else ():
            ids |= set(tokenizer(prompt, add_special_tokens=False)["input_ids"])
        return ids

    def choose(self, size: int | None, option: str = "--vocabulary") -> Choice:
        """Choose the tokens to keep, see `choice.choose`."""
        counts = Counter(token for example in self.examples for token in example)
        return choose(self.file, counts, self.always, size, self.rows, option)

    # What a size costs, measured on text that it was not chosen on: every tenth example, and other texts

    def tokens_per_text(self, size: int | None) -> tuple[int, float, float]:
        """Choose a vocabulary; return its tokens, and tokens per text and per other text relative to the whole vocabulary."""
        counts = Counter(token for index, example in enumerate(self.examples) if index % _TENTH for token in example)
        kept = choose(self.file, counts, self.always, size, self.rows).kept
        own, other = self._count_tokens(self.file.trim(kept))
        own_before, other_before = self._tokens_before
        return len(kept), own / own_before, other / other_before

    @cached_property
    def _tokens_before(self) -> tuple[int, int]:
        return self._count_tokens(self.file.content)

    @cached_property
    def _held_out(self) -> list[str]:
        whole = Tokenizer.from_str(json.dumps(self.file.content))
        return [whole.decode(list(example), skip_special_tokens=False) for example in self.examples[::_TENTH]]

    def _count_tokens(self, content: Mapping[str, Any]) -> tuple[int, int]:
        """Number of tokens of the held-out examples, and of the other texts, by the content of a tokenizer.json."""
        tokenizer = Tokenizer.from_str(json.dumps(content))
        tokenizer.no_padding()  # a file may prescribe both, as sentence-transformers' do
        tokenizer.no_truncation()
        own, other = (tokenizer.encode_batch(list(texts), add_special_tokens=False) for texts in (self._held_out, OTHER_TEXTS))
        return sum(len(each.ids) for each in own), sum(len(each.ids) for each in other)

    def sizes(self, size: int | None = None) -> list[VocabularySize]:
        """Compare the whole vocabulary with the data's tokens alone, with `SIZES`, and with a size; the smallest first."""
        architecture, shapes = self.source.architecture, self.source.architecture.shapes
        tables = sum(math.prod(shapes[name]) for name in architecture.token_tables & shapes.keys())
        others = sum(map(math.prod, shapes.values())) - tables
        smallest = self.tokens_per_text(None)
        least, whole = smallest[0], len(self.file.tokens)
        candidates = {*(each for each in SIZES if least < each < whole), *([size] if size else [])} - {least}
        sizes = []
        for tokens, ratio, other in [smallest, *map(self.tokens_per_text, candidates), (self.rows, 1.0, 1.0)]:
            table = tokens * tables // self.rows
            sizes.append(VocabularySize(tokens, table, table / (table + others), ratio, other))
        return sorted(sizes, key=lambda each: each.tokens)

    def write(self, choice: Choice, size: int | None, output: OutputDirectory, progress: Progress) -> float:
        """Write the model with these tokens; return tokens per text, relative to the whole vocabulary."""
        output.check(estimate_bytes(self.source.architecture, len(choice.kept)))
        _, ratio, _ = self.tokens_per_text(size)
        with output.open() as folder:
            trim_model(self.source, self.file, choice.kept, self.data, ratio, folder, lambda done: progress("Writing", done))
        return ratio


def choose_size(base: str, data: Path, vocabulary: str, prompt: str | None) -> int | None:
    """Return the number of tokens to keep, for `--vocabulary`: a number, or `auto`; None keeps those of the data alone.

    `auto` is the smallest of `SIZES` that adds few tokens to a text, else the largest: words that the data lack are common
    tokens rather than bytes. A vocabulary below all of them is cut to the tokens of the data.

    Raises:
        LonasEdgeError: If `trim` would refuse the tokenizer or the size.
    """
    opened = ModelVocabulary(open_source(base), data, prompt)
    if vocabulary.isdecimal():
        size: int | None = int(vocabulary)
    else:
        smaller = opened.sizes()[:-1]
        smaller = [each for each in smaller if each.tokens in SIZES] or smaller
        size = min((each.tokens for each in smaller if each.tokens_per_text <= MOST_TOKENS), default=None)
        size = size or max((each.tokens for each in smaller), default=None)
        everything = sum(number < opened.rows for number in opened.file.tokens)
        if size is not None and size >= everything:
            raise LonasEdgeError(f"--vocabulary auto: the data use all {everything} tokens. Use --vocabulary keep.")
    opened.choose(size, "--vocabulary")
    return size


def trim(base: str, data: Path, size: int | None, prompt: str | None, folder: Path, progress: Progress) -> None:
    """Write the base model with a smaller vocabulary into the directory `folder`."""
    progress("Tokenizing the data", None)
    opened = ModelVocabulary(open_source(base), data, prompt)
    choice = opened.choose(size, "--vocabulary")
    kept, rows = len(choice.kept), opened.rows
    ratio = opened.write(choice, kept, OutputDirectory(folder), progress)
    progress(f"{kept:,} of {rows:,} tokens kept; held-out text takes {ratio:.3f}x the tokens\nTrimming", None)
