"""What a training does at which step."""

import math
import os
import random
import subprocess
import sys
from collections import Counter

import pytest
from published_spaces import bert_base_rte, bloomz_7b, llama_7b

from lonas_edge.errors import LonasEdgeError
from lonas_edge.space.search_space import Group, Member, SearchSpace, Stage, parse_search_space
from lonas_edge.training.plan import Plan, TrainOptions, make_plan

HALF_SQRT = math.sqrt(2) / 2


def space_of(*stages: Stage, widths: tuple[tuple[int, ...], ...] = ((8, 6), (128, 96, 64), (4,))) -> SearchSpace:
    """A search space with groups of these widths."""
    groups = tuple(Group((Member(f"layer{index}", "lora_A", ""),), values) for index, values in enumerate(widths))
    return SearchSpace(groups, stages)


def plan_of(*stages: Stage, examples: int = 160, **options) -> Plan:
    """A plan; 160 examples in batches of 16 are 10 steps an epoch. No warm-up, unless asked for."""
    return make_plan(space_of(*stages), TrainOptions(**{"warmup_steps": 0} | options), examples)


def many(*stages: Stage, steps: int = 60, **options) -> list[tuple[int, ...]]:
    """The draws of a space so large (3 ** 40) that two draws never agree by chance."""
    plan = make_plan(space_of(*stages, widths=((3, 2, 1),) * 40), TrainOptions(steps=steps, **options), 160)
    return [plan.drawn(step) for step in range(steps)]


# --- learning rate


def test_cosine_restarts_at_each_stage() -> None:
    plan = plan_of(Stage(epochs=2, init_lr=1.0), Stage(epochs=4, init_lr=0.5))
    expected = {0: 1, 5: 0.5 + HALF_SQRT / 2, 10: 0.5, 15: 0.5 - HALF_SQRT / 2, 20: 0.5, 30: 0.25 + HALF_SQRT / 4, 40: 0.25}
    assert {step: plan.learning_rate(step) for step in expected} == pytest.approx(expected)
    assert plan.learning_rate(19) == pytest.approx(0.5 * (1 + math.cos(0.95 * math.pi)))
    assert plan.learning_rate(59) == pytest.approx(0.25 * (1 + math.cos(39 / 40 * math.pi)))
    assert plan.learning_rate(60) == pytest.approx(0)


def test_cosine_of_its_own_length() -> None:
    """`epochs_lr` stretches the cosine over more than the stage, or ends it within."""
    plan = plan_of(Stage(epochs=2, epochs_lr=4, init_lr=1.0), Stage(epochs=3, epochs_lr=1, init_lr=2.0))
    expected = {0: 1, 10: 0.5 + HALF_SQRT / 2, 19: 0.5 + 0.5 * math.cos(19 / 40 * math.pi)}
    expected |= {20: 2, 25: 1, 29: 1 + math.cos(0.9 * math.pi), 30: 0, 35: 0, 49: 0}
    assert {step: plan.learning_rate(step) for step in expected} == pytest.approx(expected)


def test_cosine_of_its_own_length_is_scaled_with_the_steps() -> None:
    plan = plan_of(Stage(epochs=2, epochs_lr=4, init_lr=1.0), steps=8)  # 4 steps an epoch
    assert plan.learning_rate(4) == pytest.approx(0.5 + HALF_SQRT / 2)


def test_warm_up_is_at_the_start_of_the_training_only() -> None:
    plan = plan_of(Stage(epochs=1, init_lr=1.0), Stage(epochs=1, init_lr=1.0), warmup_steps=4)
    cosine = [0.5 * (1 + math.cos(math.pi * t / 10)) for t in range(10)]
    expected = [0.25 * cosine[0], 0.5 * cosine[1], 0.75 * cosine[2], *cosine[3:], *cosine]
    assert [plan.learning_rate(step) for step in range(20)] == pytest.approx(expected)


@pytest.mark.parametrize(("steps", "warmup"), [(10, 0), (20, 1), (160, 8), (1999, 99), (5000, 100)])
def test_default_warm_up(steps: int, warmup: int) -> None:
    assert plan_of(Stage(), steps=steps, warmup_steps=None).warmup_steps == warmup


# --- steps


@pytest.mark.parametrize(
    ("options", "examples", "expected"),
    [
        ({}, 160, [(0, 10), (10, 30)]),
        ({}, 161, [(0, 11), (11, 33)]),  # the last batch of an epoch need not be full
        ({"batch_size": 32}, 160, [(0, 5), (5, 15)]),
        ({"steps": 8}, 160, [(0, 2), (2, 6)]),
        ({"steps": 400}, 160, [(0, 100), (100, 300)]),
        ({"epochs": 2}, 160, [(0, 5), (5, 15)]),
        ({"epochs": 0.4}, 160, [(0, 1), (1, 3)]),
        ({"epochs": 2, "steps": 12}, 160, [(0, 3), (3, 9)]),
        ({"steps": 1}, 160, [(0, 1)]),
        ({"epochs": 0.001}, 160, [(0, 1)]),
    ],
)
def test_steps_of_the_stages(options: dict, examples: int, expected: list[tuple[int, int]]) -> None:
    plan = plan_of(Stage(epochs=1), Stage(epochs=3), examples=examples, **options)
    assert [(stage.first, stage.steps) for stage in plan.stages] == expected
    assert plan.steps == sum(steps for _, steps in expected)
    for first, steps in expected:
        assert plan.stage(first).first == plan.stage(first + steps - 1).first == first


def test_every_step_belongs_to_one_stage() -> None:
    for steps in range(1, 60):
        plan = plan_of(Stage(epochs=1), Stage(epochs=0.7), Stage(epochs=2.5), steps=steps)
        assert plan.steps == steps
        covered = [step for stage in plan.stages for step in range(stage.first, stage.first + stage.steps)]
        assert covered == list(range(steps))


def test_without_stages() -> None:
    plan = plan_of(warmup_steps=None)
    assert plan.steps == 30
    assert plan.learning_rate(15) == pytest.approx(1.5e-4)


def test_flags_win_over_the_file() -> None:
    stages = Stage(epochs=1, init_lr=1.0, width_indicator=3, sample_rate=2), Stage(epochs=1, width_indicator=1)
    plan = plan_of(*stages)
    assert [(s.lr, s.width_indicator, s.sample_rate) for s in plan.stages] == [(1.0, 3, 2), (3e-4, 1, 1)]
    plan = plan_of(*stages, lr=0.1, width_indicator=2, sample_rate=5, epochs=1)
    assert [(s.lr, s.width_indicator, s.sample_rate) for s in plan.stages] == [(0.1, 2, 5)] * 2
    assert plan.steps == 10
    assert plan_of(*stages, lr=0.0).learning_rate(0) == 0


# --- sub-networks


def test_width_indicator_limits_the_draw_to_the_widest() -> None:
    plan = plan_of(*(Stage(epochs=10, width_indicator=n) for n in (1, 2, 9)), Stage(epochs=10))
    drawn = [{plan.drawn(step) for step in range(first, first + 100)} for first in (0, 100, 200, 300)]
    full = {(rank, width, 4) for rank in (8, 6) for width in (128, 96, 64)}
    assert drawn[0] == {(8, 128, 4)}
    assert drawn[1] == {(rank, width, 4) for rank in (8, 6) for width in (128, 96)}
    assert drawn[2] == drawn[3] == full


def test_sample_rate_keeps_a_draw_and_restarts_at_each_stage() -> None:
    drawn = many(Stage(epochs=1, sample_rate=4), Stage(epochs=1, sample_rate=7), steps=20)
    blocks = [range(4), range(4, 8), range(8, 10), range(10, 17), range(17, 20)]
    assert all(len({drawn[step] for step in block}) == 1 for block in blocks)
    assert len(set(drawn)) == len(blocks)
    assert len(set(many(Stage(), steps=50))) == 50  # sample rate 1


def test_draws_depend_on_seed_and_step_alone() -> None:
    expected = many(Stage(epochs=1), Stage(epochs=2), seed=3)
    random.seed(0)
    state = random.getstate()
    space = space_of(Stage(epochs=1), Stage(epochs=2), widths=((3, 2, 1),) * 40)
    again = make_plan(space, TrainOptions(steps=60, seed=3), 160)
    assert {step: again.drawn(step) for step in (50, 7, 59, 7)} == {step: expected[step] for step in (50, 7, 59)}
    assert random.getstate() == state
    other = many(Stage(epochs=1), Stage(epochs=2), seed=4)
    assert not set(other) & set(expected)
    assert len({drawn for seed in range(20) for drawn in many(Stage(), steps=30, seed=seed)}) == 600


def test_draws_are_the_same_in_another_process() -> None:
    """Data-parallel processes must train the same sub-network; the hash of a text differs between them."""
    code = "import test_plan as t; print(t.many(t.Stage(epochs=1), steps=20))"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    expected = f"{many(Stage(epochs=1), steps=20)}\n".encode()
    for seed in ("1", "2"):
        settings = environment | {"PYTHONHASHSEED": seed}
        assert subprocess.run([sys.executable, "-c", code], env=settings, capture_output=True, check=True).stdout == expected


def test_draws_are_uniform_and_independent() -> None:
    """Within five standard deviations of what 3600 fair draws give."""
    plan = make_plan(space_of(Stage(), widths=((3, 2, 1), (30, 20, 10))), TrainOptions(steps=3600), 160)
    counts = Counter(plan.drawn(step) for step in range(3600))
    assert len(counts) == 9
    assert all(abs(count - 400) < 5 * math.sqrt(3600 * 1 / 9 * 8 / 9) for count in counts.values())


def test_sandwich() -> None:
    stages = Stage(epochs=1, width_indicator=2), Stage(epochs=1)
    plan, plain = (plan_of(*stages, sampling=sampling) for sampling in ("sandwich", "random"))
    for step in range(20):
        narrowest = (6, 96, 4) if step < 10 else (6, 64, 4)
        assert plan.trained(step) == [(8, 128, 4), narrowest, plain.drawn(step)]
        assert plain.trained(step) == [plain.drawn(step)]


@pytest.mark.parametrize("sampling", ["random", "sandwich"])
def test_plain_lora(sampling: str) -> None:
    """A space without groups: one network, and one stage where the space has none."""
    plan = make_plan(SearchSpace(), TrainOptions(sampling=sampling, epochs=2, lr=1.0, warmup_steps=0), 160)
    assert [(stage.first, stage.steps) for stage in plan.stages] == [(0, 20)]
    assert [plan.learning_rate(step) for step in (0, 10, 20)] == pytest.approx([1, 0.5, 0])
    assert all(plan.trained(step) == [()] for step in range(20))


# --- refusals

SENSELESS = [
    {"epochs": 0},
    {"epochs": -1},
    {"epochs": math.nan},
    {"epochs": math.inf},
    {"epochs_lr": -1},
    {"init_lr": -0.1},
    {"sample_rate": 0},
    {"sample_rate": -2},
    {"sample_rate": 1.5},
    {"width_indicator": 0},
    {"width_indicator": -1},
    {"width_indicator": 2.5},
]


def test_senseless_stages_are_refused() -> None:
    """All are listed at once."""
    with pytest.raises(LonasEdgeError) as raised:
        plan_of(Stage(epochs=1), *(Stage(**wrong) for wrong in SENSELESS))
    listed = [line.strip(" -") for line in str(raised.value).splitlines() if line.startswith("  - ")]
    assert len(listed) == len(SENSELESS)
    for index, (line, wrong) in enumerate(zip(listed, SENSELESS, strict=True), 1):
        ((name, value),) = wrong.items()
        assert line.startswith(f"stage {index}: {name} = {value}; must be")


@pytest.mark.parametrize("wrong", SENSELESS)
def test_one_senseless_stage_is_enough(wrong: dict) -> None:
    with pytest.raises(LonasEdgeError, match=f"stage 0: {next(iter(wrong))}"):
        plan_of(Stage(**wrong))


NOT_DONE = [
    ({"train_dims": ("depth",)}, "train_dims = ('depth',)"),
    ({"train_dims": ("width", "depth")}, "train_dims = ('width', 'depth')"),
    ({"train_dims": ()}, "train_dims = ()"),
    ({"train_dims": "width"}, "train_dims = 'width'"),
    ({"reorg_weights": True}, "reorg_weights"),
]


def test_what_nncf_does_in_a_stage_and_this_training_does_not_is_refused() -> None:
    """All are listed at once, beside what is senseless."""
    stages = [Stage(**wrong) for wrong, _ in NOT_DONE]
    space = space_of(Stage(), *stages, Stage(epochs=0, reorg_weights=True))
    with pytest.raises(LonasEdgeError, match=r"space\.json: the training stages cannot be used") as raised:
        make_plan(space, TrainOptions(), 160, "space.json")
    listed = [line.strip(" -") for line in str(raised.value).splitlines() if line.startswith("  - ")]
    expected = [f"stage {index}: {text}" for index, (_, text) in enumerate(NOT_DONE, 1)]
    expected += ["stage 6: epochs = 0", "stage 6: reorg_weights"]
    assert len(listed) == len(expected)
    assert all(line.startswith(text) for line, text in zip(listed, expected, strict=True))


@pytest.mark.parametrize(("content", "epochs"), [(llama_7b(), 6), (bloomz_7b(), 8), (bert_base_rte(), 80)])
def test_published_stages_can_be_trained(content: dict, epochs: int) -> None:
    space, _ = parse_search_space(content)
    assert make_plan(space, TrainOptions(), 160).steps == 10 * epochs


@pytest.mark.parametrize("wrong", [wrong for wrong, _ in NOT_DONE])
def test_plain_lora_has_nothing_elastic_to_refuse(wrong: dict) -> None:
    """Its stages say how long and at which rate alone."""
    plan = make_plan(SearchSpace(stages=(Stage(epochs=2, init_lr=0.5, **wrong),)), TrainOptions(), 160)
    assert [(stage.steps, stage.lr) for stage in plan.stages] == [(20, 0.5)]


@pytest.mark.parametrize("epochs", [0, -1, math.nan, math.inf])
def test_senseless_epochs_on_the_command_line_are_refused(epochs: float) -> None:
    with pytest.raises(LonasEdgeError, match=f"--epochs {epochs}"):
        plan_of(Stage(), epochs=epochs)


@pytest.mark.parametrize(
    ("batch", "micro", "devices", "expected"),
    [(16, None, 1, 1), (16, 16, 1, 1), (16, 4, 1, 4), (16, None, 2, 1), (16, 2, 4, 2), (12, 1, 3, 4), (1, None, 1, 1)],
)
def test_batch_division(batch: int, micro: int | None, devices: int, expected: int) -> None:
    assert TrainOptions(batch_size=batch, micro_batch_size=micro).accumulation(devices) == expected


@pytest.mark.parametrize(("batch", "micro", "devices"), [(16, 5, 1), (16, None, 3), (2, None, 4), (16, 16, 2), (16, 8, 3)])
def test_a_batch_that_cannot_be_divided(batch: int, micro: int | None, devices: int) -> None:
    with pytest.raises(LonasEdgeError, match=rf"--batch-size {batch} cannot be divided over {devices} device"):
        TrainOptions(batch_size=batch, micro_batch_size=micro).accumulation(devices)
