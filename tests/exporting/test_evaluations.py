"""What `eval --card` keeps. `lonas_edge_eval_version_1.json` was written before there were typed records."""

import json
import shutil
from pathlib import Path

import pytest

from lonas_edge.errors import LonasEdgeError
from lonas_edge.exporting.evaluations import FILE, Evaluations

OLD = Path(__file__).parent / "lonas_edge_eval_version_1.json"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shutil.copy(OLD, tmp_path / FILE)
    return tmp_path


def test_a_directory_of_version_1_is_read(folder: Path):
    found, old = Evaluations.of(folder), json.loads(OLD.read_text())
    assert list(found.by_protocol) == list(old) == ["option-text", "generate"]
    for protocol, one in found.by_protocol.items():
        (target,) = old[protocol]["targets"]
        assert one.described == old[protocol]["protocol_described"]
        assert (one.num_beams, one.limit, one.seed) == (old[protocol]["num_beams"], None, 0)
        assert (one.target.average, one.target.identity) == (target["average"], target["identity"])
        assert [task.accuracy for task in one.target.tasks] == [task["accuracy"] for task in target["tasks"]]
        assert one.conditions.date == old[protocol]["conditions"]["date"]
    assert found.by_protocol["generate"].target.properties == {"KV_CACHE_PRECISION": "u8"}


def test_another_evaluation_takes_the_place_of_its_protocol_s(folder: Path):
    found = Evaluations.of(folder)
    ranked, generated = found.by_protocol["option-text"], found.by_protocol["generate"]
    found.with_one("generate", ranked).with_one("answer-word", generated).write(folder / FILE)
    assert json.loads((folder / FILE).read_text())["schema"] == "lonas-edge/evaluations/2"
    again = Evaluations.of(folder)
    assert again.by_protocol == {"option-text": ranked, "generate": ranked, "answer-word": generated}


def test_no_file_is_no_evaluation(tmp_path: Path):
    assert Evaluations.of(tmp_path) == Evaluations()


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ({"schema": "lonas-edge/evaluations/3", "by_protocol": {}}, "written by a newer lonas-edge"),
        ({"generate": {"targets": []}}, "damaged"),
        ({"schema": "lonas-edge/evaluations/2", "by_protocol": {"generate": {}}}, "by_protocol.generate.target"),
    ],
)
def test_what_cannot_be_read_is_refused(content: object, told: str, tmp_path: Path):
    (tmp_path / FILE).write_text(json.dumps(content))
    with pytest.raises(LonasEdgeError, match=FILE) as error:
        Evaluations.of(tmp_path)
    assert told in str(error.value)
