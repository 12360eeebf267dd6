"""Examples with other values."""

import random
import re

from tiny_models import tokenizer

from lonas_edge.drafting.answers import Answered
from lonas_edge.drafting.copying import Copies, Encoded

NAMES = [f"{first}{second}" for first in ("zo", "qu", "vy") for second in ("ak", "el", "ip", "on")]


def answered(prompt: str, answer: str) -> Answered:
    tokenize = tokenizer()
    return Answered(tuple(tokenize(prompt)["input_ids"]), (*tokenize(answer)["input_ids"], 1), False)


def examples() -> list[Answered]:
    return [answered(f"play the song {name} again", f'{{"play": "{name}"}}') for name in NAMES]


def test_a_value_is_replaced_in_prompt_and_answer() -> None:
    tokenize, copies = tokenizer(), Copies(examples(), tokenizer())
    words = set()
    for each in examples():
        encoded = copies.replace(each, random.Random(5 + len(words)))
        prompt, answer = (
            tokenize.decode(list(part)) for part in (encoded.tokens[: encoded.start], encoded.tokens[encoded.start :])
        )
        [word] = re.fullmatch(r"play the song (\w+) again", prompt).groups()  # type: ignore[union-attr]
        assert answer == f'{{"play": "{word}"}}</s>'  # and its end token
        assert word not in NAMES
        words.add(word)
    assert len(words) > 2


def test_words_of_the_instruction_stay() -> None:
    """`play` is in each prompt and answer, and no value."""
    copies = Copies(examples(), tokenizer())
    each = answered("play the song again", '{"play": null}')
    assert copies.replace(each, random.Random(0)) == Encoded.of(each) == Encoded(each.prompt + each.answer, len(each.prompt))
