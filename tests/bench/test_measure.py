"""Interleaving, warm-ups, distinct prompts, failures and Ctrl-C, with arms that take as long as they are told."""

from collections import Counter
from collections.abc import Sequence

import pytest

from lonas_edge.bench.arms import Case
from lonas_edge.bench.measure import Measured, PromptSource, Sample, Schedule, measure
from lonas_edge.bench.timing import Timing
from lonas_edge.bench.worker import ArmFailedError

CASES = [Case(4, 3), Case(8, 3, 2)]


class FakeArm:
    """Takes `ttft` and then `tpot` a token; remembers its prompts; fails or interrupts when told to."""

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
def arms(log: list[str]) -> dict[str, FakeArm]:
    return {"subnet": FakeArm("subnet", log), "lora": FakeArm("lora", log, 4.0, 3.0), "third": FakeArm("third", log)}


def test_every_arm_once_a_round_warm_ups_left_out(arms: dict[str, FakeArm], log: list[str]) -> None:
    found = measure(arms, CASES, Schedule(rounds=5, warmup=2), PromptSource(100, 0))
    assert len(log) == 3 * 2 * (5 + 2)
    rounds = [log[start : start + 3] for start in range(0, len(log), 3)]
    assert all(set(order) == set(arms) for order in rounds)  # interleaved: each round has each arm once
    assert len({tuple(order) for order in rounds}) > 2  # in changing orders
    assert Counter((s.arm, s.case) for s in found.samples) == {(arm, case): 5 for arm in arms for case in CASES}
    assert {s.round for s in found.samples} == set(range(5))
    lora, subnet, _ = found.paired("lora", "subnet", CASES[0], lambda timing: timing.ttft)
    assert (lora, subnet) == ([4.0] * 5, [1.0] * 5)
    assert [timing.tpot for timing in found.timings("lora", CASES[1])] == [3.0] * 5


def test_the_order_does_not_depend_on_how_arms_are_named(log: list[str]) -> None:
    schedule = Schedule(rounds=4, seed=3)
    orders = [[schedule.order(names, CASES[0], n) for n in range(4)] for names in (["a", "b", "c"], ["c", "a", "b"])]
    assert orders[0] == orders[1]
    assert orders[0] != [Schedule(rounds=4, seed=4).order(["a", "b", "c"], CASES[0], n) for n in range(4)]


def test_all_arms_have_the_same_prompts_and_none_twice(arms: dict[str, FakeArm]) -> None:
    measure(arms, CASES, Schedule(rounds=5, warmup=2), PromptSource(50, 0))
    assert arms["subnet"].prompts == arms["lora"].prompts == arms["third"].prompts
    starts = [tuple(prompt[:2]) for batch in arms["subnet"].prompts for prompt in batch]
    assert len(starts) == 7 + 7 * 2
    assert len(set(starts)) == len(starts)
    shapes = {(len(batch), len(batch[0])) for batch in arms["subnet"].prompts}
    assert shapes == {(1, 4), (2, 8)}
    assert all(0 <= token < 50 for batch in arms["subnet"].prompts for prompt in batch for token in prompt)


def test_starts_stay_distinct_beyond_the_vocabulary() -> None:
    source = PromptSource(7, 0)
    starts = [tuple(source.next(Case(2, 2))[0]) for _ in range(49)]
    assert len(set(starts)) == 49
    assert len(PromptSource(7, 0).next(Case(1, 2))[0]) == 1


def test_a_failure_costs_its_case_only(arms: dict[str, FakeArm]) -> None:
    arms["lora"].fails[2] = ArmFailedError("lora: not enough memory")
    found = measure(arms, CASES, Schedule(rounds=3, warmup=0), PromptSource(100, 0))
    assert found.failures == {("lora", CASES[0]): "lora: not enough memory"}
    counts = Counter((s.arm, s.case) for s in found.samples)
    assert counts["lora", CASES[0]] == 1 and counts["lora", CASES[1]] == 3
    assert counts["subnet", CASES[0]] == counts["third", CASES[0]] == 3
    assert len(found.paired("lora", "subnet", CASES[0], lambda timing: timing.ttft)[0]) == 1


def test_a_dead_arm_is_not_asked_again(arms: dict[str, FakeArm]) -> None:
    arms["lora"].fails[1] = ArmFailedError("lora: its process was killed; most likely memory ran out")
    arms["lora"].alive = False
    found = measure(arms, CASES, Schedule(rounds=3, warmup=0), PromptSource(100, 0))
    assert set(found.failures) == {("lora", CASES[0]), ("lora", CASES[1])}
    assert len(arms["lora"].prompts) == 1
    assert Counter(s.arm for s in found.samples) == {"subnet": 6, "third": 6}


def test_ctrl_c_keeps_what_was_done(arms: dict[str, FakeArm]) -> None:
    arms["third"].fails[4] = KeyboardInterrupt()
    found = measure(arms, CASES, Schedule(rounds=5, warmup=1), PromptSource(100, 0))
    assert found.interrupted
    assert Counter(s.arm for s in found.samples)["third"] == 2
    assert all(s.case == CASES[0] for s in found.samples)


def test_what_is_done_before_a_round_is_not_done_before_a_warm_up(arms: dict[str, FakeArm], log: list[str]) -> None:
    schedule = Schedule(rounds=2, warmup=1)
    measure(arms, CASES[:1], schedule, PromptSource(100, 0), before_round=lambda: log.append("before"))
    assert [name == "before" for name in log] == [False] * 3 + [True, False, False, False] * 2


def test_rounds_are_divided_among_starts() -> None:
    parts = Schedule(rounds=7, warmup=2, seed=5).split(3)
    assert [(part.rounds, part.warmup) for part in parts] == [(3, 2), (2, 2), (2, 2)]
    assert len({part.seed for part in parts}) == 3
    assert len(Schedule(rounds=2).split(4)) == 2


def test_rounds_of_a_later_start_are_numbered_on() -> None:
    case, whole = CASES[0], Measured()
    for ttft in (1.0, 2.0):
        part = Measured([Sample(arm, case, n, Timing((ttft, 9.0), 9.0)) for arm in ("a", "b") for n in (0, 1)])
        whole.add(part)
    assert whole.paired("a", "b", case, lambda timing: timing.ttft) == (
        [1.0, 1.0, 2.0, 2.0],
        [1.0, 1.0, 2.0, 2.0],
        [0, 0, 1, 1],
    )
    whole.add(Measured([], {("a", case): "why"}, True))
    assert whole.interrupted and whole.failures and len(whole.samples) == 8


def test_what_cannot_be_done_is_not_tried(arms: dict[str, FakeArm]) -> None:
    measure(arms, CASES, Schedule(rounds=2, warmup=0), PromptSource(100, 0), failures={("lora", CASES[1]): "too large"})
    assert len(arms["lora"].prompts) == 2


def test_pairs_are_of_one_round() -> None:
    case = CASES[0]
    found = Measured([Sample("a", case, n, Timing((float(n + 1), 9.0), 9.0)) for n in (0, 1, 2)])
    found.samples += [Sample("b", case, n, Timing((10.0 * n, 9.0), 9.0)) for n in (2, 1)]
    assert found.paired("a", "b", case, lambda timing: timing.ttft) == ([2.0, 3.0], [10.0, 20.0], [0, 0])
