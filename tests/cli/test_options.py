"""Options that are declared once: their checks, the commands made of them, and `--config`."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from lonas_edge.cli.command import command
from lonas_edge.cli.commands import COMMANDS
from lonas_edge.errors import LonasEdgeError
from lonas_edge.options import COMMON, Checked, option


@dataclass(frozen=True, kw_only=True)
class Options(Checked):
    """One option of each kind."""

    source: str = option(argument=True, help="Source.")
    rank: int = option(32, help="Rank.", minimum=1, maximum=64)
    lr: float | None = option(None, help="Rate.", above=0, panel="Training", unset="3e-4")
    stage: str = option("ir", help="Stage.", choices=("ir", "checkpoint"))
    dtype: str | None = option(None, help="Dtype.", needs="stage=checkpoint")
    steps: int | None = option(None, help="Steps.", excludes="epochs", why="each says how long to train")
    epochs: float | None = option(None, help="Epochs.")
    elastic: bool = option(True, help="Elastic.")
    draws: int | None = option(None, help="Draws.", needs="elastic")
    prompts: int | None = option(None, help="Prompts.", needs="steps|epochs")
    tune: bool = option(False, help="Tune.")
    widths: tuple[int, ...] = option((8, 4), help="Widths.", minimum=1)
    picks: tuple[str, ...] = option((), help="Bounds.", flag="pick", repeat=True)
    output: Path | None = option(None, help="Output.")
    revision: str | None = option(None, help="Revision.")
    sampler: str = option("one", help="Sampler.", choices=("one",), hidden=True)
    portion: float | None = option(None, help="Portion.", parse=lambda text: float(text.removesuffix("%")) / 100)


@pytest.fixture
def run() -> Callable[..., tuple[Options | None, str]]:
    """Run a command with these options; return the options that it got, and the message of a usage error."""

    def invoke(*arguments: object) -> tuple[Options | None, str]:
        made: list[Options] = []
        try:
            command(Options)(made.append).main(["source", *map(str, arguments)], standalone_mode=False)
        except click.UsageError as error:
            assert error.exit_code == 2
            return None, error.format_message()
        return (made[0] if made else None), ""

    return invoke


def test_values_and_defaults(run: Callable) -> None:
    made, _ = run()
    assert made == Options(source="source")
    made, _ = run("--rank", 8, "--no-elastic", "--widths", "4, 2,4", "--pick", "a", "--pick", "b", "--portion", "50%")
    assert run("--sampler", "one")[0] == Options(source="source")  # accepted, though hidden
    assert made == Options(source="source", rank=8, elastic=False, widths=(4, 2), picks=("a", "b"), portion=0.5)


@pytest.mark.parametrize(
    ("arguments", "values", "error"),
    [
        (["--rank", "0"], {"rank": 0}, "--rank 0: must be at least 1"),
        (["--rank", "65"], {"rank": 65}, "--rank 65: must be at most 64"),
        (["--lr", "0"], {"lr": 0.0}, "--lr 0: must be more than 0"),
        (["--lr", "nan"], {"lr": float("nan")}, "--lr nan: is not a finite number"),
        (["--steps", "9" * 17], {"steps": 10**17 - 1}, "--steps 99999999999999999: must be at most 9007199254740992"),
        (["--revision", " "], {"revision": " "}, "--revision '': is empty"),
        (["--widths", "8,0"], {"widths": (8, 0)}, "--widths 0: must be at least 1"),
        (["--dtype", "fp16"], {"dtype": "fp16"}, "--dtype needs --stage checkpoint"),
        (["--prompts", "2"], {"prompts": 2}, "--prompts needs --steps or --epochs"),
        (["--draws", "2", "--no-elastic"], {"draws": 2, "elastic": False}, "--draws needs --elastic"),
        (
            ["--steps", "1", "--epochs", "2"],
            {"steps": 1, "epochs": 2.0},
            "--steps cannot be combined with --epochs: each says how long to train",
        ),
    ],
)
def test_a_command_and_python_give_the_same_error(run: Callable, arguments: list[str], values: dict, error: str) -> None:
    assert run(*arguments) == (None, error)
    with pytest.raises(LonasEdgeError) as raised:
        Options(source="source", **values)
    assert str(raised.value) == error


def test_all_errors_at_once(run: Callable) -> None:
    _, message = run("--rank", 0, "--dtype", "fp16")
    lines = ["wrong options:", "  - --rank 0: must be at least 1", "  - --dtype needs --stage checkpoint"]
    assert message.splitlines() == lines
    with pytest.raises(LonasEdgeError) as raised:
        Options(source="source", rank=0, dtype="fp16")
    assert str(raised.value).splitlines() == lines


def test_help_shows_panels_defaults_and_ranges(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("typer.rich_utils.MAX_WIDTH", 140)
    output = CliRunner().invoke(command(Options)(lambda _: None), ["--help"]).output
    text = " ".join(output.replace("│", " ").split())
    assert "--rank INTEGER Rank. [default: 32; at least 1, at most 64]" in text
    assert "--lr FLOAT Rate. [default: 3e-4; more than 0]" in text.partition(" Training ")[2]
    assert "--widths INTEGER,… Widths. [default: 8,4; at least 1]" in text
    assert "--elastic --no-elastic Elastic. [default: elastic]" in text
    assert "ampler" not in text  # hidden


# --config


def test_a_flag_wins_over_the_file(run: Callable, tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(
        "rank: 16\n--lr: 1e-3\nelastic: false\npick: [a, b]\nwidths: [4, 2]\nstage: checkpoint\noutput: o\nsteps:\n"
    )
    made, message = run("--config", file, "--rank", 8)
    assert made == Options(
        source="source", rank=8, lr=1e-3, elastic=False, picks=("a", "b"), widths=(4, 2), stage="checkpoint", output=Path("o")
    ), message


def test_names_in_the_file(run: Callable, run_cli: Callable, tmp_path: Path) -> None:
    """With `_` or `-`; the negative form of a flag, too."""
    (tmp_path / "run.yaml").write_text("no_elastic: true\n")
    made, _ = run("--config", tmp_path / "run.yaml")
    assert made.elastic is False
    (tmp_path / "space.yaml").write_text("seq-len: 0\nmodel: m\noutput: o.json")
    ran = run_cli("space", "--config", tmp_path / "space.yaml")
    assert ran.code == 2 and ran.err.splitlines()[-1] == "Error: --seq-len 0: must be at least 1"


@pytest.mark.parametrize(
    ("content", "error"),
    [
        ("rnak: 8\n", "FILE: unknown option 'rnak'; did you mean 'rank'?"),
        ("config: other.yaml\n", "FILE: unknown option 'config'"),
        ("rank: many\n", "FILE: rank: 'many' is not a valid integer"),
        ("rank: true\n", "FILE: rank: expected one value, found True"),
        ("rank: [1, 2]\n", "FILE: rank: expected one value, found [1, 2]"),
        ("widths: {a: 1}\n", "FILE: widths: expected a list of values, found {'a': 1}"),
        ("stage: gguf\n", "FILE: stage: 'gguf' is not one of 'ir', 'checkpoint'"),
        ("tune: 1\n", "FILE: tune: expected true or false, found 1"),
        ("- rank\n", "FILE: expected options as `name: value` lines, found list"),
        ("rank: 0\n", "--rank 0: must be at least 1"),
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
    assert ran.code == 1 and ran.err.startswith(f"error: {tmp_path / 'run.yaml'}: not readable as YAML: ")
    assert run_cli("inspect", "source", "--config", tmp_path / "none.yaml").code == 1


# all commands


def params_of(name: str) -> list[click.Parameter]:
    """The parameters of a command."""
    return importlib.import_module(f"lonas_edge.cli.{name}").run.params


def test_common_options_first_and_few_in_all() -> None:
    options = {name: [param for param in params_of(name) if hasattr(param, "declared")] for name in COMMANDS}
    for name, params in options.items():
        common = [param for param in params if param.declared.option.panel == COMMON and isinstance(param, click.Option)]
        assert 1 <= len(common) <= 6, name
    assert sum(isinstance(param, click.Option) for params in options.values() for param in params) <= 155


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_has_one_line_of_help(name: str) -> None:
    for param in params_of(name):
        if hasattr(param, "declared"):
            text = param.declared.option.help
            assert len(text.split()) > 1 and len(text) <= 120 and text.endswith(".") and "\n" not in text, param.name


def test_descriptions_are_wrapped_once(run_cli: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    """Line ends of the source are no line ends of the help."""
    monkeypatch.setenv("COLUMNS", "80")
    shown = run_cli("search", "--help").out
    first = next(line for line in shown.splitlines() if "First measures" in line)
    assert first.strip() == "First measures the sensitivity to each elastic group. Then evaluates a warm"
    following = shown.splitlines()[shown.splitlines().index(first) + 1]
    assert following.strip() == "start, NSGA-II's networks and refinements of the best. Blocks alone are"
