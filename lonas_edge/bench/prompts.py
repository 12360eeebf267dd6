"""Prompts as users have them: what an exported model is asked, from a file of data in the prompt that it was trained with."""

import random
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lonas_edge.bench.arms import Case
from lonas_edge.bench.measure import Prompter, Prompts
from lonas_edge.data.encoding import Prompting, asked
from lonas_edge.data.instructions import MESSAGES, read_data
from lonas_edge.data.templates import CHAT, PROMPTS, Text, choose_prompt
from lonas_edge.errors import LonasEdgeError
from lonas_edge.exporting.exported import Exported
from lonas_edge.files import sha256
from lonas_edge.network.tokenizer import load_tokenizer


@dataclass
class DataPrompts(Prompter):
    """Prompts of a file, in a drawn order; when all were given, from the first on again. Nothing caches them.

    Attributes:
        path: The file.
        sha256: Its hash.
        template: Name of what makes text of its examples.
        ids: Token ids of each prompt, [tokens], of unequal lengths.
        given: How many were given.
    """

    path: Path
    sha256: str
    template: str
    ids: list[list[int]]
    given: int = 0

    def next(self, case: Case) -> Prompts:
        """See `Prompter`; `case` says how many."""
        self.given += case.batch_size
        return [self.ids[number % len(self.ids)] for number in range(self.given - case.batch_size, self.given)]

    @property
    def longest(self) -> int:
        """Tokens of the longest."""
        return max(map(len, self.ids))

    def described(self) -> dict[str, Any]:
        """For the conditions of a report; nothing in it carries a path."""
        lengths = sorted(map(len, self.ids))
        tokens = {"min": lengths[0], "median": statistics.median(lengths), "max": lengths[-1]}
        return {
            "data": self.path.name,
            "sha256": self.sha256,
            "template": self.template,
            "distinct": len(lengths),
            "tokens": tokens,
        }


def read_prompts(exported: Exported, data: Path, most_tokens: int, count: int, seed: int) -> DataPrompts:
    """Read data and draw prompts.

    Args:
        exported: The model that is asked; its directory has tokenizer and chat template.
        data: Instruction data, conversations or texts, as of training.
        most_tokens: Longer prompts are left out; texts are cut.
        count: How many to draw, at most.
        seed: Of the draw.

    Returns:
        The prompts.

    Raises:
        LonasEdgeError: If the data cannot be read, or no prompt is short enough.
    """
    tokenizer = load_tokenizer(exported.folder)
    if tokenizer is None:
        raise LonasEdgeError(f"{exported.folder}: has no tokenizer, which --data needs")
    read = read_data(data)
    prompting = _prompting(exported, data, read.kind, tokenizer)
    order = list(read.examples)
    random.Random(seed).shuffle(order)
    found: list[list[int]] = []
    for example in order:
        ids = asked(example, prompting, tokenizer, most_tokens + (not isinstance(example, Text)))
        if 0 < len(ids) <= most_tokens:
            found.append(ids)
        if len(found) == count:
            break
    if not found:
        raise LonasEdgeError(
            f"{data}: none of its {len(order)} prompts has {most_tokens} tokens or fewer. Give a larger --prompt-len, or other "
            "data."
        )
    return DataPrompts(data, sha256(data), read.kind if read.kind == MESSAGES else prompting.template.name, found)


def _prompting(exported: Exported, data: Path, kind: str, tokenizer: Any) -> Prompting:
    """As `eval` prompts an exported model."""
    manifest = exported.own_manifest
    conversations = data if kind == MESSAGES else None
    name = choose_prompt(None, manifest.prompt, manifest.subnetwork.search_space, conversations)
    if name != CHAT:
        return Prompting(PROMPTS[name].evaluation)
    return Prompting.of(name, tokenizer, exported.folder)
