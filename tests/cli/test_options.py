"""Options that are declared once: their checks, the commands made of them, and `--config`."""

import importlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated

import click
import pytest
from pydantic import PositiveInt
from pydantic.dataclasses import dataclass

from lonas_edge.cli.command import command
from lonas_edge.cli.commands import COMMANDS
from lonas_edge.errors import UsageError
from lonas_edge.options import COMMAS, COMMON, Options, UserPath, from_text, option


@dataclass(frozen=True, kw_only=True)
class Sample(Options):
    """One option of each kind."""

    source: str = option(argument=True, help="Source.")
    rank: int = option(32, help="Rank.", minimum=1, maximum=64)
    lr: float | None = option(None, help="Rate.", above=0, maximum=1, panel="Training", unset="3e-4")
    stage: str = option("ir", help="Stage.", choices=("ir", "checkpoint"))
    dtype: str | None = option(None, help="Dtype.")
    elastic: bool = option(True, help="Elastic.")
    draws: int | None = option(None, help="Draws.")
    tune: bool = option(False, help="Tune.")
    widths: Annotated[tuple[PositiveInt, ...], COMMAS] = option((8, 4), help="Widths.")
    picks: tuple[str, ...] = option((), help="Bounds.", flag="pick", repeat=True)
    output: UserPath | None = option(None, help="Output.")
    portion: Annotated[float, from_text(lambda text: float(text.removesuffix("%")) / 100)] | None = option(None, help="Share.")

    def conflicts(self) -> Iterator[str]:
        yield from super().conflicts()
        if self.dtype and self.stage != "checkpoint":
            yield "--dtype needs --stage checkpoint"
        if self.draws and not self.elastic:
            yield "--draws needs --elastic"


@pytest.fixture
def run() -> Callable[..., tuple[Sample | None, str]]:
    """Run a command with these options; return the options that it got, and the message of a usage error."""

    def invoke(*arguments: object) -> tuple[Sample | None, str]:
        made: list[Sample] = []

        def keep(options: Sample) -> None:
            made.append(options)

        try:
            command(keep).main(["source", *map(str, arguments)], standalone_mode=False)
        except click.UsageError as error:
            assert error.exit_code == 2
            return None, error.format_message()
        return (made[0] if made else None), ""

    return invoke


def test_values_and_defaults(run: Callable) -> None:
    made, _ = run()
    assert made == Sample(source="source")
    made, _ = run("--rank", 8, "--no-elastic", "--widths", "4, 2,4", "--pick", "a", "--pick", "b", "--portion", "50%")
    assert made == Sample(source="source", rank=8, elastic=False, widths=(4, 2), picks=("a", "b"), portion=0.5)
    assert run("--output", "~/x")[0].output == Path.home() / "x"


@pytest.mark.parametrize(
    ("arguments", "values", "error"),
    [
        (["--rank", "0"], {"rank": 0}, "--rank 0: input should be greater than or equal to 1"),
        (["--rank", "65"], {"rank": 65}, "--rank 65: input should be less than or equal to 64"),
        (["--lr", "0"], {"lr": "0"}, "--lr 0: input should be greater than 0"),
        (["--lr", "nan"], {"lr": "nan"}, "--lr nan: input should be less than or equal to 1"),
        (["--output", " "], {"output": " "}, "--output '': is empty"),
        (["--widths", "8,0"], {"widths": "8,0"}, "--widths 0: input should be greater than 0"),
        (["--dtype", "fp16"], {"dtype": "fp16"}, "--dtype needs --stage checkpoint"),
        (["--draws", "2", "--no-elastic"], {"draws": 2, "elastic": False}, "--draws needs --elastic"),
    ],
)
def test_a_command_and_python_give_the_same_error(run: Callable, arguments: list[str], values: dict, error: str) -> None:
    assert run(*arguments) == (None, error)
    with pytest.raises(UsageError) as raised:
        Sample(source="source", **values)
    assert str(raised.value) == error


def test_all_errors_at_once(run: Callable) -> None:
    _, message = run("--rank", 0, "--lr", 2)
    assert message.splitlines() == [
        "wrong options:",
        "  - --rank 0: input should be greater than or equal to 1",
        "  - --lr 2: input should be less than or equal to 1",
    ]
    _, message = run("--dtype", "fp16", "--draws", 2, "--no-elastic")
    assert message.splitlines() == ["wrong options:", "  - --dtype needs --stage checkpoint", "  - --draws needs --elastic"]


# --config


def test_a_flag_wins_over_the_file(run: Callable, tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(
        "rank: 16\n--lr: 1e-3\nelastic: false\npick: [a, b]\nwidths: [4, 2]\nstage: checkpoint\noutput: o\ndraws:\n"
    )
    made, message = run("--config", file, "--rank", 8)
    assert made == Sample(
        source="source", rank=8, lr=1e-3, elastic=False, picks=("a", "b"), widths=(4, 2), stage="checkpoint", output=Path("o")
    ), message


@pytest.mark.parametrize(
    ("content", "error"),
    [
        ("rnak: 8\n", "FILE: unknown option 'rnak'; did you mean 'rank'?"),
        ("rank: many\n", "--rank many: input should be a valid integer, unable to parse string as an integer"),
        ("stage: gguf\n", "Invalid value for '--stage': 'gguf' is not one of 'ir', 'checkpoint'"),
        ("tune: maybe\n", "Invalid value for '--tune': 'maybe' is not a valid boolean"),
        ("- rank\n", "FILE: expected options as `name: value` lines, found list"),
    ],
)
def test_wrong_files(run: Callable, tmp_path: Path, content: str, error: str) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(content)
    made, message = run("--config", file)
    assert made is None and message.startswith(error.replace("FILE", str(file))), message


@pytest.mark.parametrize("content", ["rank: [", "rank: !!python/object/apply:os.system ['true']"])
def test_no_yaml(run_cli: Callable, tmp_path: Path, content: str) -> None:
    (tmp_path / "run.yaml").write_text(content)
    ran = run_cli("inspect", "source", "--config", tmp_path / "run.yaml")
    assert ran.code == 2 and f"{tmp_path / 'run.yaml'}: not readable as YAML: " in ran.err
    assert run_cli("inspect", "source", "--config", tmp_path / "none.yaml").code == 1


# all commands


def params_of(name: str) -> list[click.Parameter]:
    """The parameters of a command."""
    return importlib.import_module(f"lonas_edge.cli.{name}").run.params


def test_common_options_first_and_few_in_all() -> None:
    options = {
        name: [param for param in params_of(name) if hasattr(param, "option") and not param.option.hidden] for name in COMMANDS
    }
    for name, params in options.items():
        common = [param for param in params if param.option.panel == COMMON and isinstance(param, click.Option)]
        assert 1 <= len(common) <= 6, name
    assert sum(isinstance(param, click.Option) for params in options.values() for param in params) <= 120


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_has_one_line_of_help(name: str) -> None:
    for param in params_of(name):
        if hasattr(param, "option"):
            text = param.option.help
            assert len(text.split()) > 1 and len(text) <= 120 and text.endswith(".") and "\n" not in text, param.name
