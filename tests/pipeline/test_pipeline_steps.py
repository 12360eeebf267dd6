"""Commands and steps as data: command lines, keys, and what runs again; with a clock of our own."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lonas_edge.commands import Command, to_argv
from lonas_edge.errors import LonasEdgeError
from lonas_edge.families import CAUSAL_LM, CLASSIFICATION, EMBEDDING
from lonas_edge.pipeline.plan import Plan
from lonas_edge.pipeline.steps import Step, Steps
from lonas_edge.pipeline.tasks import EMBEDDING_MODEL, LANGUAGE_MODEL, Profile, removed_kinds
from lonas_edge.progress import silent
from lonas_edge.search.options import SearchOptions
from lonas_edge.training.options import TrainOptions


def test_a_command_line_comes_from_the_options() -> None:
    """Options that are given, by their names; nothing for a default, and nothing for None."""
    options = TrainOptions(steps=5, max_length=9, gradient_checkpointing=True, seed=42)
    files = {"model": Path("base"), "eval-data": None, "": "start", "pick": ["kl<=1", "macs<=2"]}
    argv = to_argv(Command("lonas-edge train", options, files, {"size": 7, "prompt": None}))
    assert argv[:10] == [
        "lonas-edge", "train", "--model", "base", "start", "--pick", "kl<=1", "--pick", "macs<=2", "--size",
    ]  # fmt: skip
    rest = " ".join(argv[10:])
    assert rest.startswith("7 ") and "--max-length 9" in rest and "--steps 5" in rest
    assert "--gradient-checkpointing" in rest and "--seed" not in rest


def test_a_model_loses_blocks_of_the_kinds_that_it_has() -> None:
    """One without MLPs, or with other parts, is not refused for them. A classifier that is a decoder loses whole layers."""
    for kinds, expected in (
        (("attention", "mlp", "attention", "mlp"), ("attention", "mlp")),
        (("mamba", "attention", "mamba"), ("attention",)),
        (("layer", "layer"), ("layer",)),
        ((), ("attention", "mlp")),
    ):
        blocks = {str(number): SimpleNamespace(kind=kind) for number, kind in enumerate(kinds)}
        for task in (CAUSAL_LM, EMBEDDING, CLASSIFICATION):
            source: Any = SimpleNamespace(architecture=SimpleNamespace(blocks=blocks, family=SimpleNamespace(kind=task)))
            assert removed_kinds(source) == (("layer",) if kinds and task is CLASSIFICATION else expected)


@pytest.mark.parametrize(
    ("profile", "batch", "tokens", "learned", "steps"),
    [
        (LANGUAGE_MODEL, 16, 87.0, 35.0, 87),  # 120,000 tokens
        (LANGUAGE_MODEL, 16, 437.0, 48.0, 53),  # a long prompt: 40,000 tokens of answers
        (LANGUAGE_MODEL, 16, 437.0, 5.0, 57),  # and short answers: 900 examples
        (LANGUAGE_MODEL, 32, 23.0, 5.0, 164),  # more examples than that
        (EMBEDDING_MODEL, 32, 25.0, 0.0, 1250),  # a million tokens
    ],
)
def test_steps_of_a_recovery(profile: Profile, batch: int, tokens: float, learned: float, steps: int) -> None:
    plan: Any = SimpleNamespace(profile=profile, probe=SimpleNamespace(batch=batch, tokens=tokens, learned=learned))
    assert vars(Plan)["default_recovery_steps"].fget(plan) == steps


def test_settings_are_all_options_but_paths() -> None:
    """What only Python can set, such as intervals of checkpoints, decides nothing."""
    options = SearchOptions(data=Path(__file__), output=Path("b"), evals=7)
    settings = Command("lonas-edge search", options, {"model": "x"}, {"weight-format": "int8"}).settings
    assert (settings["--evals"], settings["--seed"], settings["--weight-format"]) == (7, 0, "int8")
    assert not {"--data", "--output", "--model"} & settings.keys()
    commands = [Command("train", TrainOptions(steps=5, save_steps=number, eval_steps=number)) for number in (3, 4)]
    assert commands[0].settings == commands[1].settings


class Work:
    """Three steps, of which the second needs the first and the third the second; each appends its name to `ran`."""

    def __init__(self, folder: Path):
        self.folder, self.ran = folder, list[str]()
        self.planned = [self.step("a"), self.step("b", "a"), self.step("c", "b")]
        self.fails: type[BaseException] | None = None

    def step(self, name: str, *needs: str, size: int = 1) -> Step:
        def run(_progress: Any) -> None:
            self.ran.append(name)
            if self.fails and name == "b":
                raise self.fails
            (self.folder / name).mkdir(exist_ok=True)

        return Step(name, [Command(f"make {name}", values={"size": size})], run, (name,), needs)

    def steps(self, overwrite: bool = False, planned: Sequence[Step] = (), ticks: Iterator[float] | None = None) -> Steps:
        clock = ticks or iter(float(second) for second in range(0, 1000, 10))
        steps = Steps(self.folder, planned or self.planned, lambda: next(clock))
        steps.prepare(overwrite)
        return steps


@pytest.fixture
def work(tmp_path: Path) -> Work:
    return Work(tmp_path)


def test_runs_in_order_and_not_again(work: Work) -> None:
    steps = work.steps()
    assert steps.pending() == ["a", "b", "c"]
    steps.run(silent)
    assert work.ran == ["a", "b", "c"]
    assert {name: state.seconds for name, state in steps.states.items()} == {"a": 10.0, "b": 10.0, "c": 10.0}
    again = work.steps()
    assert again.pending() == []
    again.run(silent)
    assert work.ran == ["a", "b", "c"]


def test_continues_with_the_step_that_failed_and_adds_its_seconds(work: Work) -> None:
    """Its first estimate stays."""
    work.fails, work.planned[1] = ValueError, replace(work.planned[1], estimate=15.0)
    with pytest.raises(ValueError):
        work.steps().run(silent)
    work.fails, work.planned[1] = None, replace(work.planned[1], estimate=5.0)
    steps = work.steps()
    assert steps.pending() == ["b", "c"]
    steps.run(silent)
    assert work.ran == ["a", "b", "b", "c"]
    assert (steps.states["b"].seconds, steps.states["b"].estimate) == (20.0, 15.0)


def test_interrupted_inside_a_step_that_reports_an_error_of_its_own(work: Work) -> None:
    def run(_progress: Any) -> None:
        raise LonasEdgeError("interrupted. Run it with --resume") from KeyboardInterrupt()

    with pytest.raises(KeyboardInterrupt):
        work.steps(planned=[replace(work.step("a"), function=run)]).run(silent)


def test_changed_options_are_named_and_repeated_with_their_successors(work: Work) -> None:
    work.steps().run(silent)
    (work.folder / "b.partial").mkdir()
    changed = [work.step("a"), work.step("b", "a", size=2), work.step("c", "b")]
    with pytest.raises(LonasEdgeError) as caught:
        work.steps(planned=changed)
    assert "--size: was 1, is 2 (b)" in str(caught.value)
    assert "--overwrite" in str(caught.value)
    assert (work.folder / "b").exists()
    steps = work.steps(overwrite=True, planned=changed)
    assert steps.pending() == ["b", "c"]
    assert not any((work.folder / name).exists() for name in ("b", "b.partial", "c"))
    assert (work.folder / "a").exists()


def test_other_needs_are_named_and_repeated(work: Work) -> None:
    """A step that now uses another one; a quick one is repeated without asking."""
    work.steps().run(silent)
    changed = [*work.planned[:2], work.step("d"), work.step("c", "b", "d")]
    with pytest.raises(LonasEdgeError, match=r"steps before: was .*b.*, is .*b.*d.* \(c\)"):
        work.steps(planned=changed)
    assert (work.folder / "c").exists()
    assert work.steps(overwrite=True, planned=changed).pending() == ["d", "c"]


def test_a_quick_step_is_repeated_without_asking(work: Work) -> None:
    work.steps().run(silent)
    changed = [*work.planned[:2], replace(work.planned[2], inputs={"processor": "Another"}, quick=True)]
    assert work.steps(planned=changed).pending() == ["c"]


def test_the_folder_of_a_step_is_deleted_with_its_outputs(work: Work) -> None:
    """Also the working directory beside it."""
    work.steps().run(silent)
    for name in ("kept", "kept.partial", "other"):
        (work.folder / name / "log").mkdir(parents=True)
    changed = [*work.planned[:2], replace(work.step("c", "b", size=2), folder="kept")]
    work.steps(overwrite=True, planned=changed)
    assert sorted(path.name for path in work.folder.iterdir() if path.is_dir()) == ["a", "b", "other"]


def test_killed_after_the_output_appeared(work: Work) -> None:
    """The output is whole, so the step is done: running it again would find its output in the way."""

    def killed(_progress: Any) -> None:
        (work.folder / "b").mkdir()
        raise KeyboardInterrupt

    planned = [work.planned[0], replace(work.planned[1], function=killed), work.planned[2]]
    with pytest.raises(KeyboardInterrupt):
        work.steps(planned=planned).run(silent)
    assert work.steps().pending() == ["c"]


def test_an_error_names_the_step_and_its_command(work: Work) -> None:
    """The command only where the message has an option, which `compress` may lack."""

    def failed(message: str) -> str:
        def run(_progress: Any) -> None:
            raise LonasEdgeError(message)

        with pytest.raises(LonasEdgeError) as caught:
            work.steps(planned=[replace(work.step("a"), function=run)]).run(silent)
        return str(caught.value)

    named = failed("out of memory; lower --micro-batch-size")
    assert named.startswith("a: out of memory; lower --micro-batch-size")
    assert named.endswith("make a --size 1")
    assert failed("no network meets the bound") == "a: no network meets the bound"


def test_a_missing_output_is_made_again_only_if_something_needs_it(work: Work) -> None:
    work.steps().run(silent)
    (work.folder / "a").rmdir()
    assert work.steps().pending() == []
    (work.folder / "c").rmdir()
    assert work.steps().pending() == ["c"]
    (work.folder / "b").rmdir()
    assert work.steps().pending() == ["a", "b", "c"]
