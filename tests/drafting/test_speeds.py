"""Speeds of a draft from timed answers."""

import pytest

from lonas_edge.bench.answers import Answer, time_answers
from lonas_edge.drafting.measure import fastest, speed_of
from lonas_edge.exporting.drafts import DraftRecord, DraftSpeed
from lonas_edge.progress import silent


def test_ratios_are_paired_by_prompt() -> None:
    """TPOT is over the tokens after the first; of a single token it is the time in all."""
    alone = [Answer((1, 2, 3), 10.0, 30.0, 3), Answer((1, 2, 3, 4, 5), 10.0, 50.0, 5), Answer((7,), 10.0, 10.0, 1)]
    ours = [Answer((1, 2, 3), 12.0, 22.0, 2), Answer((1, 2, 3, 4, 6), 12.0, 32.0, 2), Answer((7,), 5.0, 5.0, 1)]
    speed = speed_of(3, "f32", ours, alone)
    assert (speed.num_assistant_tokens, speed.precision) == (3, "f32")
    assert (3, speed.tpot_ms, speed.answer_ms) == (3, 5.0, 22.0)
    assert speed.tpot_ratio == pytest.approx((0.5, 0.5, 0.5))
    assert speed.tokens_per_pass == pytest.approx(9 / 5)
    assert speed.identical == pytest.approx(2 / 3)


def test_all_answer_each_prompt_in_turn() -> None:
    asked: list[tuple[str, int]] = []

    def answerer(name: str):
        def answer(prompt: int) -> Answer:
            asked.append((name, prompt))
            return Answer((prompt,), 1.0, float(len(asked)), 1)

        return answer

    timed = time_answers({name: answerer(name) for name in "abc"}, [10, 20, 30, 40], silent)
    assert [prompt for _, prompt in asked] == [10] * 6 + [20] * 3 + [30] * 3 + [40] * 3  # the first one warms up
    rounds = ["".join(name for name, _ in asked[start : start + 3]) for start in range(0, 15, 3)]
    assert {"".join(sorted(order)) for order in rounds} == {"abc"} and len(set(rounds)) > 1
    assert {name: [answer.tokens[0] for answer in answers] for name, answers in timed.items()} == {
        name: [10, 20, 30, 40] for name in "abc"
    }


@pytest.mark.parametrize(("ratio", "pays"), [(0.5, True), (0.9, True), (0.91, False), (1.3, False)])
def test_a_draft_pays_from_a_tenth_on(ratio: float, pays: bool) -> None:
    speeds = tuple(DraftSpeed(n, 5.0, 50.0, (r, r, r), (r, r, r), 1.5, 1.0) for n, r in ((0, 1.0), (3, ratio), (5, 2.0)))
    record = DraftRecord({}, 3, speeds, {}, 0.4, 100, {})
    assert record.pays is pays
    assert f"{ratio:.2f}x TPOT" in record.verdict
    assert ("does not save 10% of TPOT" in record.verdict) is not pays


@pytest.mark.parametrize(
    ("alone", "ratio", "pays"), [(0.8, 0.72, True), (0.8, 0.73, False), (1.2, 0.9, True), (1.2, 0.91, False)]
)
def test_a_draft_saves_a_tenth_of_the_faster_precision(alone: float, ratio: float, pays: bool) -> None:
    rows = ((0, None, 1.0), (3, None, 1.3), (0, "f32", alone), (3, "f32", ratio))
    speeds = tuple(DraftSpeed(n, 5.0, 50.0, (r, r, r), (r, r, r), 1.5, 1.0, precision) for n, precision, r in rows)
    record = DraftRecord({}, 3, speeds, {}, 0.4, 100, {}, "f32")
    assert record.pays is pays
    assert f"{ratio:.2f}x TPOT in f32 (without the draft {alone:.2f}x)" in record.verdict
    assert record.properties == {"INFERENCE_PRECISION_HINT": "f32"}


def test_long_prompts_decide_the_precision() -> None:
    """With 3,651 prompt tokens, f32 had the lower TPOT and longer answers: docs/benchmarks/draft.md."""
    rows = ((0, None, 1.0, 1.0), (7, None, 0.7, 0.8), (10, None, 0.6, 0.85), (0, "f32", 0.8, 1.27), (10, "f32", 0.5, 1.22))
    speeds = tuple(DraftSpeed(n, 5.0, 50.0, (t, t, t), (a, a, a), 1.5, 1.0, how) for n, how, t, a in rows)
    assert (fastest(speeds).num_assistant_tokens, fastest(speeds).precision) == (7, None)
    assert DraftRecord({}, 7, speeds, {}, 0.4, 100, {}).pays  # compared with bf16 alone
    longer = DraftRecord({}, 10, (speeds[0], *speeds[3:]), {}, 0.4, 100, {}, "f32")
    assert not longer.pays and "or makes answers longer" in longer.verdict and "1.22x the time of an answer" in longer.verdict
