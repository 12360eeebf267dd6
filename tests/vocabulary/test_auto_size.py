"""The size that `--vocabulary auto` chooses."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from lonas_edge.vocabulary import model_vocabulary
from lonas_edge.vocabulary.model_vocabulary import VocabularySize, choose_size

WHOLE = 50_000


@pytest.mark.parametrize(
    ("ratios", "expected"),
    [
        ({900: 1.0, 8_192: 1.0, 16_384: 1.0}, 8_192),  # words that the data lack stay common tokens
        ({9_000: 1.1, 16_384: 1.04, 24_576: 1.02, 32_768: 1.01}, 24_576),
        ({9_000: 1.1, 16_384: 1.04}, 16_384),
        ({300: 1.0}, 300),  # of a tiny vocabulary
    ],
)
def test_auto(ratios: dict[int, float], expected: int, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = [VocabularySize(tokens, 0, 0.0, ratio, 1.0) for tokens, ratio in {**ratios, WHOLE: 1.0}.items()]
    chosen: list[int | None] = []
    opened = SimpleNamespace(
        sizes=lambda: sizes,
        rows=WHOLE,
        file=SimpleNamespace(tokens=range(WHOLE)),
        choose=lambda size, _option: chosen.append(size),
    )
    monkeypatch.setattr(model_vocabulary, "open_source", lambda base: base)
    monkeypatch.setattr(model_vocabulary, "ModelVocabulary", lambda *_given: opened)
    assert choose_size("base", Path("data.jsonl"), "auto", None) == expected
    assert chosen == [expected]
