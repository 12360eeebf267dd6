"""Training on given sub-networks instead of the whole search space."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_models import TinySource
from training_runs import Watched, run

from lonas_edge.errors import LonasEdgeError
from lonas_edge.training.inputs import open_inputs, read_subnetworks


def test_only_given_sub_networks_are_drawn(
    llama: TinySource, data: Path, tmp_path: Path, choose: Callable, watched: Watched
) -> None:
    networks = tuple(tuple(choose(llama, name)) for name in ("minimal", "unequal:3"))
    record = run(llama, data, tmp_path / "out", subnetworks=networks)
    assert {widths for _, widths in watched.passes} == set(networks)
    assert [tuple(widths) for widths in record["options"]["subnetworks"]] == list(networks)


def test_read(llama: TinySource, data: Path, tmp_path: Path, choose: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    """A directory, files and names; each network once; all problems are listed."""
    inputs = open_inputs(str(llama.base), data, llama.space)
    (tmp_path / "front").mkdir()
    for name in ("minimal", "unequal:3"):
        (tmp_path / f"front/{name[:3]}.json").write_text(json.dumps({"widths": choose(llama, name)}))
    (tmp_path / "again.json").write_text(json.dumps({"widths": choose(llama, "minimal")}))
    widths = read_subnetworks(inputs, [str(tmp_path / "front"), str(tmp_path / "again.json"), "minimal"])
    assert sorted(widths) == sorted(tuple(choose(llama, name)) for name in ("minimal", "unequal:3"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "maximal").mkdir()  # a directory does not hide the name
    assert read_subnetworks(inputs, ["maximal"]) == (tuple(choose(llama, "maximal")),)
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.json").write_text('{"widths": [1]}')
    message = r"empty: contains no sub-network file[\s\S]*bad\.json: not a sub-network of this[\s\S]*random:x"
    with pytest.raises(LonasEdgeError, match=message):
        read_subnetworks(inputs, [str(tmp_path / "empty"), str(tmp_path / "bad.json"), "random:x"])


def test_the_command_line(llama: TinySource, data: Path, tmp_path: Path, run_cli: Callable, choose: Callable) -> None:
    (tmp_path / "front").mkdir()
    (tmp_path / "front/one.json").write_text(json.dumps({"widths": choose(llama, "minimal")}))
    base = ["train", "--data", data, "--output", tmp_path / "out", "--steps", 1, "--subnetworks", tmp_path / "front"]
    model = ["--model", llama.base]
    for arguments, message in (
        ([*model, "--no-elastic"], "--subnetworks needs --elastic"),
        (["--from", llama.adapter], "--subnetworks cannot be combined with --from"),
    ):
        ran = run_cli(*base, *arguments)
        assert (ran.code, message in " ".join(ran.err.split())) == (2, True), ran.err
    elastic = [*model, "--nncf-config", llama.space, "--rank", 8, "--json"]
    ran = run_cli(*base, *elastic)
    assert ran.code == 0, ran.err
    assert json.loads(ran.out)["options"]["subnetworks"] == [choose(llama, "minimal")]
