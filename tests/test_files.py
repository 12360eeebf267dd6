"""Files that are read with clear errors, and text that is written atomically."""

import hashlib
import os
from pathlib import Path

import pytest

from lonas_edge.errors import LonasEdgeError
from lonas_edge.files import check_model_folder, json_sha256, read_by, read_json, read_text, replace_text


def test_replaced_in_utf8_with_plain_line_ends(tmp_path: Path) -> None:
    (tmp_path / "card.md").write_text("old")
    replace_text(tmp_path / "card.md", "62.5 ± 0.4 …\n")
    assert (tmp_path / "card.md").read_bytes() == b"62.5 \xc2\xb1 0.4 \xe2\x80\xa6\n"
    assert [path.name for path in tmp_path.iterdir()] == ["card.md"]


def test_text_that_cannot_be_written_keeps_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(LonasEdgeError, match=r"none/card\.md: cannot be written"):
        replace_text(tmp_path / "none/card.md", "new")
    (tmp_path / "card.md").write_text("old")

    def full(self: Path, _target: Path) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(LonasEdgeError, match=r"card\.md: cannot be written: .*No space left"):
        replace_text(tmp_path / "card.md", "new")
    assert [path.name for path in tmp_path.iterdir()] == ["card.md"]
    assert (tmp_path / "card.md").read_text() == "old"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"a": ', "Expecting value"),
        (b"", "Expecting value"),
        (b"[1]", "expected a JSON object, found list"),
        (b'{"a": "\xff"}', r"not UTF-8 \(byte 7: 0xff\)"),
    ],
)
def test_wrong_json_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(LonasEdgeError, match=rf"(?s)^{tmp_path}/a\.json: .*{message}"):
        read_json(tmp_path / "a.json")


def test_files_that_are_none(tmp_path: Path) -> None:
    for message, path in (("Is a directory", tmp_path), ("No such file", tmp_path / "none"), ("null byte", tmp_path / "a\0b")):
        with pytest.raises(LonasEdgeError, match=message):
            read_text(path, "the list")


def test_text(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"\xef\xbb\xbf1\r\n2\n")
    assert read_text(tmp_path / "a", "the list") == "1\n2\n"


def test_errors_of_libraries_name_the_file(tmp_path: Path) -> None:
    class PanicException(BaseException):
        """As Rust's."""

    for error in (KeyError("rope"), RecursionError("deep"), PanicException("index out of bounds")):
        with pytest.raises(LonasEdgeError, match=rf"a\.json: peft cannot read it: {type(error).__name__}: ") as caught:  # noqa: SIM117
            with read_by("peft", tmp_path / "a.json"):
                raise error
        assert str(error) in str(caught.value)
    for passed in (KeyboardInterrupt(), MemoryError(), OSError(12, "Cannot allocate memory")):
        with pytest.raises(type(passed)), read_by("peft", tmp_path):
            raise passed


@pytest.mark.skipif(os.name != "posix", reason="links need a privilege on Windows")
class TestModelFolder:
    """Checks of the files in a model's directory."""

    def test_links_inside_are_accepted(self, tmp_path: Path) -> None:
        (tmp_path / "model").mkdir()
        (tmp_path / "model/real.json").write_text("{}")
        (tmp_path / "model/config.json").symlink_to("real.json")
        (tmp_path / "model/notes").symlink_to("/etc")  # not read
        check_model_folder(tmp_path / "model")
        (tmp_path / "other").symlink_to(tmp_path / "model")  # the directory itself is the user's choice
        check_model_folder(tmp_path / "other")

    def test_links_of_a_hub_cache_are_accepted(self, tmp_path: Path) -> None:
        repository = tmp_path / "hub/models--owner--name"
        snapshot = repository / "snapshots/0123"
        snapshot.mkdir(parents=True)
        (repository / "blobs").mkdir()
        (repository / "blobs/abc").write_text("{}")
        (snapshot / "config.json").symlink_to("../../blobs/abc")
        check_model_folder(snapshot)
        (tmp_path / "hub/models--other--name/blobs").mkdir(parents=True)
        (tmp_path / "hub/models--other--name/blobs/abc").write_text("secret")
        (snapshot / "generation_config.json").symlink_to("../../../models--other--name/blobs/abc")
        with pytest.raises(LonasEdgeError, match=r"generation_config\.json: a link out of the directory"):
            check_model_folder(snapshot)

    def test_all_links_out_are_reported(self, tmp_path: Path) -> None:
        (tmp_path / "secret").write_text("s")
        folder = tmp_path / "model"
        (folder / "additional_chat_templates").mkdir(parents=True)
        (folder / "chat_template.jinja").symlink_to(tmp_path / "secret")
        (folder / "additional_chat_templates/tool.jinja").symlink_to(tmp_path / "secret")
        (folder / "model.safetensors").symlink_to("/dev/zero")
        (folder / "1_Pooling").symlink_to(tmp_path)
        (tmp_path / "config.json").write_text("{}")
        with pytest.raises(LonasEdgeError) as caught:
            check_model_folder(folder)
        files = {line.removeprefix("  - ").split(":")[0] for line in str(caught.value).splitlines()[1:]}
        names = {"1_Pooling/config.json", "additional_chat_templates/tool.jinja", "chat_template.jinja", "model.safetensors"}
        assert files == names


def test_hash_of_json() -> None:
    """By content: the order of names does not count, that of a list does."""
    assert json_sha256({"b": [1, 2], "a": None}) == hashlib.sha256(b'{"a": null, "b": [1, 2]}').hexdigest()
    assert json_sha256([1, 2]) != json_sha256([2, 1])
    assert json_sha256({"path": Path("x")}, str) == json_sha256({"path": "x"})
