"""The schedule of a training: steps, learning rate and drawn sub-networks; `test_steps.py` has the cosine and the warm-up."""

import random

import pytest

import lonas_edge.training.schedule
from lonas_edge.errors import LonasEdgeError, UsageError
from lonas_edge.space.search_space import BLOCK_WIDTHS, Group, Member, SearchSpace, TrainingStage
from lonas_edge.training.options import DEPTH_RATE, TrainOptions
from lonas_edge.training.schedule import Schedule, make_schedule

DEEP = TrainingStage(train_dims=("width", "depth"))
BLOCKS = tuple(Group((Member(f"block{index}", "block", ""),), BLOCK_WIDTHS) for index in range(50))
WIDTH = Group((Member("layer", "lora_A", ""),), (8, 6))


def space_of(*stages: TrainingStage, widths: tuple[tuple[int, ...], ...] = ((8, 6), (128, 96, 64), (4,))) -> SearchSpace:
    groups = tuple(Group((Member(f"layer{index}", "lora_A", ""),), values) for index, values in enumerate(widths))
    return SearchSpace(groups, stages)


def schedule_of(*stages: TrainingStage, examples: int = 160, **options) -> Schedule:
    """160 examples in batches of 16 are 10 steps an epoch. No warm-up by default."""
    return make_schedule(space_of(*stages), TrainOptions(**{"warmup_steps": 0} | options), examples)


def many(*stages: TrainingStage, steps: int = 60, **options) -> list[tuple[int, ...]]:
    """Draws from 3 ** 40 sub-networks: two draws never agree by chance."""
    schedule = make_schedule(space_of(*stages, widths=((3, 2, 1),) * 40), TrainOptions(steps=steps, **options), 160)
    return [schedule.subnetwork(step) for step in range(steps)]


# learning rate


def test_learning_rate_without_stages_and_options_before_the_file() -> None:
    for steps, warmup in ((10, 0), (20, 1), (1999, 99), (5000, 100)):
        assert schedule_of(TrainingStage(), steps=steps, warmup_steps=None).warmup_steps == warmup
    default = schedule_of(warmup_steps=None)
    assert (default.steps, default.learning_rate(15)) == (30, pytest.approx(5e-4))  # half of 1e-3
    stages = TrainingStage(epochs=1, init_lr=1.0, width_indicator=3, sample_rate=2), TrainingStage(epochs=1, width_indicator=1)
    schedule = schedule_of(*stages)
    assert [(s.lr, s.width_indicator, s.sample_rate) for s in schedule.stages] == [(1.0, 3, 2), (1e-3, 1, 1)]
    assert [s.lr for s in schedule_of(*stages, lr=0.1).stages] == [0.1] * 2
    assert schedule_of(*stages, lr=0.0).learning_rate(0) == 0


# steps


@pytest.mark.parametrize(
    ("options", "examples", "expected"),
    [
        ({}, 160, [(0, 10), (10, 30)]),
        ({}, 161, [(0, 11), (11, 33)]),  # the last batch of an epoch need not be full
        ({"steps": 8}, 160, [(0, 2), (2, 6)]),
        ({"epochs": 2}, 160, [(0, 5), (5, 15)]),
        ({"steps": 1}, 160, [(0, 1)]),
        ({"epochs": 0.001}, 160, [(0, 1)]),
    ],
)
def test_steps_of_the_stages(options: dict, examples: int, expected: list[tuple[int, int]]) -> None:
    schedule = schedule_of(TrainingStage(epochs=1), TrainingStage(epochs=3), examples=examples, **options)
    assert [(stage.first, stage.steps) for stage in schedule.stages] == expected
    assert schedule.steps == sum(steps for _, steps in expected)
    for first, steps in expected:
        assert schedule.stage(first).first == schedule.stage(first + steps - 1).first == first


# sub-networks


def test_draws_depend_on_seed_and_step_only() -> None:
    """The values are fixed: processes and resumed trainings draw the same."""
    expected = many(TrainingStage(epochs=1), TrainingStage(epochs=2), seed=3)
    state = random.getstate()
    space = space_of(TrainingStage(epochs=1), TrainingStage(epochs=2), widths=((3, 2, 1),) * 40)
    again = make_schedule(space, TrainOptions(steps=60, seed=3), 160)
    assert {step: again.subnetwork(step) for step in (50, 7, 59)} == {step: expected[step] for step in (50, 7, 59)}
    assert random.getstate() == state
    assert not set(many(TrainingStage(epochs=1), TrainingStage(epochs=2), seed=4)) & set(expected)
    draw = random.Random("3/0/0")
    assert expected[0] == tuple(draw.choice((3, 2, 1)) for _ in range(40))


def deep_draws(*stages: TrainingStage) -> list[tuple[int, ...]]:
    schedule = make_schedule(SearchSpace((WIDTH, *BLOCKS), stages), TrainOptions(steps=100), 160)
    return [schedule.subnetwork(step) for step in range(100)]


@pytest.mark.parametrize("rate", [0.0, DEPTH_RATE, 1.0])
def test_blocks_are_removed_at_the_rate(rate: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lonas_edge.training.schedule, "DEPTH_RATE", rate)
    for draws in (deep_draws(DEEP), deep_draws()):  # without stages depth is trained, too
        removed = sum(width == 0 for widths in draws for width in widths[1:]) / (100 * 50)
        assert removed == pytest.approx(rate, abs=0.02)
        assert {widths[0] for widths in draws} == {8, 6}


def test_batch_division() -> None:
    assert TrainOptions(batch_size=16).accumulation(1) == 1
    assert TrainOptions(batch_size=16, micro_batch_size=2).accumulation(4) == 2
    for batch, micro, devices in ((16, 5, 1), (2, None, 4)):
        with pytest.raises(LonasEdgeError, match=rf"--batch-size {batch} cannot be divided over {devices} device"):
            TrainOptions(batch_size=batch, micro_batch_size=micro).accumulation(devices)


def test_epochs_auto_with_steps_takes_no_more_than_these() -> None:
    assert schedule_of(steps=9, epochs="auto").steps == 9
    with pytest.raises(UsageError, match="--steps cannot be combined with a number of --epochs"):
        TrainOptions(steps=9, epochs=2)
