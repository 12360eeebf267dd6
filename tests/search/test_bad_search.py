"""Bad input of `lonas-edge search`: told before the model is loaded, nothing written."""

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_models import TinyModels, TinySource

from lonas_edge.output import locked


def has(error: str, *texts: object) -> None:
    """Every text occurs in the error, whatever its lines."""
    for text in texts:
        assert str(text) in " ".join(error.split()), f"{text!r} is not in:\n{error}"


def edit(path: Path, **changes: object) -> None:
    """Change the search section of a search space."""
    content = json.loads(path.read_text())
    content["bootstrapNAS"]["search"] = changes
    path.write_text(json.dumps(content))


def test_no_elastic_groups(tiny_models: TinyModels, data: Path, refused: Callable, tmp_path: Path) -> None:
    source = tiny_models.source("llama")
    command = [
        "search",
        str(source.adapter),
        "--model",
        str(source.base),
        "--data",
        str(data),
        "--output",
        str(tmp_path / "out"),
    ]
    has(refused(command), source.adapter, "no search space", "nothing to search", "--nncf-config")


def test_nothing_but_ranks(llama_copy: TinySource, data: Path, refused: Callable, tmp_path: Path) -> None:
    content = json.loads(llama_copy.space.read_text())
    width = content["bootstrapNAS"]["training"]["elasticity"]["width"]
    for name in ("overwrite_groups", "overwrite_groups_widths"):
        width[name] = width[name][:3]
    llama_copy.space.write_text(json.dumps(content))
    command = ["search", *llama_copy.arguments(), "--data", str(data), "--output", str(tmp_path / "out")]
    has(refused(command), "no width that makes the deployed model smaller")


def test_data_without_an_answer(command: Callable, data: Path, refused: Callable) -> None:
    data.write_text(json.dumps([{"instruction": "a", "output": ""}, {"instruction": "b", "output": ""}]))
    has(refused(command()), data, "'output' is empty in each of its 2 examples")
    data.write_text(json.dumps([{"instruction": "a", "output": "b"}, {"instruction": "a"}]))
    has(refused(command()), data, "line 1", "no text in 'output'")


def test_no_data(command: Callable, refused: Callable, tmp_path: Path) -> None:
    has(refused(command("--data", tmp_path / "none.json")), "none.json", "cannot be read")


def test_fewer_prompts_than_asked(command: Callable, data: Path, refused: Callable) -> None:
    has(refused(command("--val-set-size", 41)), data, "40 prompts; expected at least 41", "--val-set-size")


def test_fewer_prompts_that_fit(command: Callable, data: Path, refused: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lonas_edge.network.heldout.MAX_LENGTH", 20)
    has(refused(command()), data, "0 of 40 prompts have an answer within 20 tokens")


def test_a_storage_that_cannot_be_reached(command: Callable, refused: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lonas_edge.search.storage._CONNECT_SECONDS", 0.2)
    has(refused(command("--storage", "sqlite:////nowhere/at/all.db")), "sqlite:////nowhere/at/all.db", "cannot be reached")
    told = "cannot be reached" if importlib.util.find_spec("grpc") else "pip install grpcio"
    has(refused(command("--storage", "grpc://localhost:1")), "grpc://localhost:1", told)
    has(refused(command("--storage", "nonsense")), "nonsense", "cannot be reached", "postgresql://")


def test_a_password_is_not_shown(command: Callable, refused: Callable) -> None:
    error = refused(command("--storage", "postgresql+nodriver://user:secret@localhost:1/db"))
    assert "secret" not in error
    has(error, "user:***@localhost")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--quality", "loss"], "quality: it has kl, this search loss"),
        (["--cost", "macs"], "cost: it has bytes, this search macs"),
        (["--seed", "7"], "seed: it has 0, this search 7"),
        (["--val-set-size", "9"], "prompts: it has 8, this search 9"),
        (["--weight-format", "int4"], "weight formats: it has ['int8_sym'], this search ['int4']"),
    ],
)
def test_a_study_of_another_objective(
    options: list[str], told: str, run_cli: Callable, command: Callable, refused: Callable, tmp_path: Path
) -> None:
    shared = ["--storage", f"sqlite:///{tmp_path}/study.db", "--study", "mine"]
    assert run_cli(*command("--evals", "3", "--no-seeds", *shared)).code == 0
    # where trials are shared, and in the directory
    has(refused(command(*options, "--evals", "3", *shared)), "study.db", "'mine' is of another search", told)
    assert run_cli(*command("--evals", "3", "--no-seeds", "--output", tmp_path / "own")).code == 0
    has(refused(command(*options, "--evals", "3", "--output", tmp_path / "own")), "study.log", told, "--output")


def test_a_study_of_another_super_adapter_or_space(
    run_cli: Callable, command: Callable, refused: Callable, llama_copy: TinySource, data: Path, tmp_path: Path
) -> None:
    shared = ["--storage", f"sqlite:///{tmp_path}/study.db", "--study", "mine", "--cost", "bytes", "--val-set-size", "8"]
    shared += ["--data", str(data), "--evals", "3", "--no-seeds", "--prompt", "alpaca"]
    assert run_cli(*command(*shared)).code == 0
    content = json.loads(llama_copy.space.read_text())
    content["bootstrapNAS"]["training"]["elasticity"]["width"]["overwrite_groups_widths"][3] = [128, 64]
    llama_copy.space.write_text(json.dumps(content))
    config = llama_copy.adapter / "adapter_config.json"
    config.write_text(config.read_text() + " ")
    error = refused(["search", *llama_copy.arguments(), "--output", str(tmp_path / "other"), *shared])
    has(error, "search space: it has", "super adapter: it has", "adapter_config.json")


def test_another_program_s_study(run_cli: Callable, command: Callable, refused: Callable, tmp_path: Path) -> None:
    import optuna

    url = f"sqlite:///{tmp_path}/study.db"
    optuna.create_study(storage=url, study_name="theirs", directions=["minimize"] * 2).add_trial(
        optuna.trial.create_trial(values=[1.0, 2.0])
    )
    has(refused(command("--storage", url, "--study", "theirs")), "'theirs' is of another search", "another program's")


def test_a_pick_that_nothing_can_meet_is_told_first(command: Callable, refused: Callable) -> None:
    has(refused(command("--pick", "bytes<=10")), "--pick bytes<=10: nothing meets it", "the nearest is the minimal network")
    has(refused(command("--pick", "macs<=0.1x")), "nothing meets it", "macs", "x)")


def test_a_pick_that_nothing_met(run_cli: Callable, command: Callable, tmp_path: Path) -> None:
    ran = run_cli(*command("--evals", "5", "--quality", "loss", "--pick", "loss<=0.001", "--pick", "bytes<=0.99x"))
    assert ran.code == 1
    has(ran.err, "--pick loss<=0.001: nothing meets it; the nearest is evaluation", "loss")
    record = json.loads((tmp_path / "out/search.json").read_text())
    assert record["finished"] and [one["name"] for one in record["picks"]] == ["pick:bytes<=0.99x"], "all else is written"


@pytest.mark.parametrize("pick", ["bytes=3", "ttft<=3", "kl<=0.5x", "bytes>=3", "bytes<=1.2.3", "kl<=-1"])
def test_a_pick_that_cannot_be_read(pick: str, command: Callable, refused: Callable) -> None:
    has(refused(command("--pick", pick)), "--pick cannot be used", pick)


@pytest.mark.parametrize(("option", "value"), [("--quality", "f1"), ("--cost", "watts"), ("--sampler", "grid")])
def test_unknown_names(option: str, value: str, command: Callable, refused: Callable) -> None:
    has(refused(command(option, value), code=2), value, "is not one of")


def test_unknown_device(command: Callable, refused: Callable) -> None:
    has(refused(command("--cost", "tpot", "--device", "XPU")), "XPU", "CPU")


def test_unknown_weight_format(command: Callable, refused: Callable) -> None:
    has(refused(command("--weight-format", "int8,int3"), code=2), "int8,int3", "expected one or several of")


def test_settings_of_the_search_space_that_cannot_be_used(
    llama_copy: TinySource, data: Path, refused: Callable, tmp_path: Path
) -> None:
    command = ["search", *llama_copy.arguments(), "--data", str(data), "--output", str(tmp_path / "out")]
    edit(llama_copy.space, num_evals="many")
    has(refused(command), "num_evals must be a number, found 'many'")
    edit(llama_copy.space, population=1, mutation_prob=3)
    has(refused(command), "population: at least 2, found 1", "mutation_prob: between 0 and 1, found 3")


def test_a_directory_of_something_else(command: Callable, refused: Callable, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/thesis.tex").write_text("important")
    has(refused(command("--overwrite")), "holds no search", "kept as it is")


def test_nothing_to_resume(command: Callable, refused: Callable) -> None:
    has(refused(command("--resume")), "--resume", "holds no search")


def test_two_searches_of_one_directory(run_cli: Callable, command: Callable, refused: Callable, tmp_path: Path) -> None:
    assert run_cli(*command("--evals", "3", "--no-seeds")).code == 0
    with locked(tmp_path / "out") as held:
        assert held
        ran = run_cli(*command("--evals", "3"))
    assert ran.code == 1
    has(ran.err, tmp_path / "out", "another search is writing it", "--storage")


def test_a_damaged_record(run_cli: Callable, command: Callable, tmp_path: Path, refused: Callable) -> None:
    assert run_cli(*command("--evals", "3", "--no-seeds")).code == 0
    path = tmp_path / "out/search.json"
    whole = path.read_text()
    path.write_text(whole[:100])
    has(refused(command("--evals", "3")), path, "not readable as JSON")
    content = json.loads(whole)
    content["front"], content["evaluations"][0]["quality"] = [99], "good"
    path.write_text(json.dumps(content))
    has(refused(command("--evals", "3")), path, "evaluations.0.quality", "Start the same search again")
    path.write_text(json.dumps({**json.loads(whole), "front": [99]}))
    has(refused(command("--evals", "3")), "front: evaluation 99; there are 3")
    path.unlink()
    assert run_cli(*command("--evals", "3")).code == 0, "the study has everything"


def test_options_that_do_nothing(command: Callable, refused: Callable) -> None:
    has(refused(command("--protocol", "generate"), code=2), "--protocol does nothing")
    has(refused(command("--device", "CPU", "--threads", "1"), code=2), "--device, --threads", "no latency is measured")
    has(refused(command("--overwrite", "--resume"), code=2), "--overwrite begins anew")
    has(refused(command("--overwrite", "--storage", "sqlite:///x.db"), code=2), "--study NAME")


def test_accuracy_of_data_that_asks_nothing(command: Callable, refused: Callable) -> None:
    has(refused(command("--quality", "accuracy")), "accuracy cannot be measured on it", 'needs "answer"')
    has(refused(command("--quality", "accuracy", "--weight-format", "int8,int4")), "name one --weight-format")


def test_a_base_that_cannot_be_loaded_leaves_nothing(
    llama_copy: TinySource, data: Path, run_cli: Callable, tmp_path: Path
) -> None:
    """Its tensors are read after the study is opened; what was there before stays."""
    from safetensors.torch import load_file, save_file

    file = llama_copy.base / "model.safetensors"
    tensors = load_file(file)
    tensors["model.layers.1.mlp.down_proj.weight"][0, 0] = float("nan")
    save_file(tensors, file, metadata={"format": "pt"})
    (tmp_path / "empty").mkdir()
    for folder in ("new", "empty"):
        command = ["search", *llama_copy.arguments(), "--data", data, "--val-set-size", "4", "--output", tmp_path / folder]
        ran = run_cli(*command)
        assert ran.code == 1 and "model.layers.1.mlp.down_proj.weight" in ran.err
    assert not (tmp_path / "new").exists() and not list((tmp_path / "empty").iterdir())
