"""Prompts of a data file as an exported language model takes them, and how it answers greedily."""

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lonas_edge.data.conversations import Conversation
from lonas_edge.data.encoding import encode_prompt
from lonas_edge.data.language import prompting_of, question_and_reference, read_examples
from lonas_edge.data.templates import CHAT, PromptRecord, choose_prompt, recorded_prompt
from lonas_edge.data.texts import Texts
from lonas_edge.errors import LonasEdgeError
from lonas_edge.exporting.exported import Exported
from lonas_edge.network.configuration import read_generation_config
from lonas_edge.network.tokenizer import require_tokenizer

_LONGEST_PROMPT, _LONGEST_ANSWER, _SHORTEST_LIMIT = 4096, 256, 32  # tokens
_ROOM = 2  # an answer may have twice the tokens of the longest reference

Tokens = tuple[int, ...]


@dataclass(frozen=True)
class Prompts:
    """Distinct prompts in a seeded order, and the most tokens of an answer."""

    tokens: list[Tokens]
    limit: int


def read_prompts(exported: Exported, data: Path, seed: int, least: int, most: int | None = None) -> Prompts:
    """Read the prompts of a data file, `most` at most, in the template of the model's training, or its chat template.

    Raises:
        LonasEdgeError: If fewer than `least` distinct prompts leave room for an answer.
    """
    tokenizer, manifest = require_tokenizer(exported.folder, "reading prompts"), exported.manifest
    examples = [example for example in read_examples(data)[1] if not isinstance(example, Texts)]
    conversations = data if any(isinstance(example, Conversation) for example in examples) else None
    recorded = recorded_prompt(manifest.prompt, manifest.subnetwork.search_space) if manifest else None
    chat = CHAT if tokenizer.chat_template and not recorded else None  # as `chat` and other clients
    prompting = prompting_of(choose_prompt(chat, recorded, conversations=conversations), PromptRecord(), tokenizer)
    references = [question_and_reference(example)[1] for example in examples]
    lengths = [len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in references]
    limit = min(_LONGEST_ANSWER, max(_SHORTEST_LIMIT, _ROOM * max(lengths, default=0)))
    longest = min(_LONGEST_PROMPT, (exported.context or _LONGEST_PROMPT + limit) - limit)
    encoded = [tuple(encode_prompt(example, prompting, tokenizer, longest + 1)) for example in examples]
    distinct = [tokens for tokens in dict.fromkeys(encoded) if len(tokens) <= longest]
    if len(distinct) < least:
        raise LonasEdgeError(
            f"{data}: {len(distinct)} distinct prompts of at most {longest:,} tokens; expected {least} or more. Add "
            "conversations or instructions; plain texts have no prompts."
        )
    random.Random(seed).shuffle(distinct)
    return Prompts(distinct[:most], limit)


def greedy(folder: Path, limit: int) -> Any:
    """Return openvino_genai's configuration of a greedy answer of at most `limit` tokens, which the model's own tokens end."""
    import openvino_genai

    stops = (read_generation_config(folder) or {}).get("eos_token_id")
    stops = require_tokenizer(folder, "generating answers").eos_token_id if stops is None else stops
    config = openvino_genai.GenerationConfig()
    config.max_new_tokens, config.do_sample, config.apply_chat_template = limit, False, False
    config.stop_token_ids = set(stops if isinstance(stops, list) else [stops])
    return config
