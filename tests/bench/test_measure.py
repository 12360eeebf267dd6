"""Interleaving, warm-ups, distinct prompts, failures and Ctrl-C, with fake variants."""

from collections import Counter
from collections.abc import Sequence

import pytest

from lonas_edge.bench.measure import Measurement, PromptSource, Sample, Schedule, measure
from lonas_edge.bench.variants import Case, Timing
from lonas_edge.bench.worker import VariantFailedError

CASES = [Case(4, 3), Case(8, 3)]


class FakeVariant:
    """Takes `ttft`, then `tpot` per token; records its prompts; raises the error of a run in `fails`."""

    def __init__(self, name: str, log: list[str], ttft: float = 1.0, tpot: float = 0.5):
        self.name, self.log, self.ttft, self.tpot = name, log, ttft, tpot
        self.prompts: list[list[list[int]]] = []
        self.fails: dict[int, BaseException] = {}
        self.alive = True

    def run(self, prompts: Sequence[Sequence[int]], new_tokens: int) -> Timing:
        self.log.append(self.name)
        self.prompts.append([list(prompt) for prompt in prompts])
        error = self.fails.get(len(self.prompts))
        if error:
            raise error
        times = tuple(self.ttft + self.tpot * index for index in range(new_tokens))
        return Timing(times, times[-1])


@pytest.fixture
def log() -> list[str]:
    return []


@pytest.fixture
def variants(log: list[str]) -> dict[str, FakeVariant]:
    lora = FakeVariant("lora", log, 4.0, 3.0)
    return {"subnet": FakeVariant("subnet", log), "lora": lora, "third": FakeVariant("third", log)}


def test_each_round_runs_every_variant_once_and_warm_ups_do_not_count(variants: dict[str, FakeVariant], log: list[str]) -> None:
    result = measure(variants, CASES, Schedule(rounds=5, warmup=2), PromptSource(100, 0))
    assert len(log) == 3 * 2 * (5 + 2)
    rounds = [log[start : start + 3] for start in range(0, len(log), 3)]
    assert all(set(order) == set(variants) for order in rounds)  # interleaved
    assert len({tuple(order) for order in rounds}) > 2  # in changing orders
    assert Counter((s.variant, s.case) for s in result.samples) == {(name, case): 5 for name in variants for case in CASES}
    assert {s.round for s in result.samples} == set(range(5))
    lora, subnet, _ = result.paired("lora", "subnet", CASES[0], lambda timing: timing.ttft)
    assert (lora, subnet) == ([4.0] * 5, [1.0] * 5)
    assert [timing.tpot for timing in result.timings("lora", CASES[1])] == [3.0] * 5


def test_variants_share_prompts_and_no_prompt_repeats(variants: dict[str, FakeVariant]) -> None:
    measure(variants, CASES, Schedule(rounds=5, warmup=2), PromptSource(50, 0))
    assert variants["subnet"].prompts == variants["lora"].prompts == variants["third"].prompts
    starts = [tuple(prompt[:2]) for batch in variants["subnet"].prompts for prompt in batch]
    assert len(starts) == 7 + 7
    assert len(set(starts)) == len(starts)
    shapes = {(len(batch), len(batch[0])) for batch in variants["subnet"].prompts}
    assert shapes == {(1, 4), (1, 8)}
    assert all(0 <= token < 50 for batch in variants["subnet"].prompts for prompt in batch for token in prompt)


def test_a_failure_skips_the_rest_of_its_case_only(variants: dict[str, FakeVariant]) -> None:
    variants["lora"].fails[2] = VariantFailedError("lora: not enough memory")
    result = measure(variants, CASES, Schedule(rounds=3, warmup=0), PromptSource(100, 0))
    assert result.failures == {("lora", CASES[0]): "lora: not enough memory"}
    counts = Counter((s.variant, s.case) for s in result.samples)
    assert counts["lora", CASES[0]] == 1 and counts["lora", CASES[1]] == 3
    assert counts["subnet", CASES[0]] == counts["third", CASES[0]] == 3
    assert len(result.paired("lora", "subnet", CASES[0], lambda timing: timing.ttft)[0]) == 1


def test_a_dead_variant_is_skipped_in_all_cases(variants: dict[str, FakeVariant]) -> None:
    variants["lora"].fails[1] = VariantFailedError("lora: its process was killed; most likely memory ran out")
    variants["lora"].alive = False
    result = measure(variants, CASES, Schedule(rounds=3, warmup=0), PromptSource(100, 0))
    assert set(result.failures) == {("lora", CASES[0]), ("lora", CASES[1])}
    assert len(variants["lora"].prompts) == 1
    assert Counter(s.variant for s in result.samples) == {"subnet": 6, "third": 6}


def test_rounds_are_divided_among_starts() -> None:
    parts = Schedule(rounds=7, starts=3, warmup=2, seed=5).split()
    assert [(part.rounds, part.warmup) for part in parts] == [(3, 2), (2, 2), (2, 2)]
    assert len({part.seed for part in parts}) == 3
    assert len(Schedule(rounds=2, starts=4).split()) == 2


def test_pairs_come_from_the_same_round() -> None:
    case = CASES[0]
    result = Measurement([Sample("a", case, n, Timing((float(n + 1), 9.0), 9.0)) for n in (0, 1, 2)])
    result.samples += [Sample("b", case, n, Timing((10.0 * n, 9.0), 9.0)) for n in (2, 1)]
    assert result.paired("a", "b", case, lambda timing: timing.ttft) == ([2.0, 3.0], [10.0, 20.0], [0, 0])
