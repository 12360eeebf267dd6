"""Files that are read with their faults told, and replaced whole or not at all."""

import os
from pathlib import Path

import pytest

from lonas_edge.errors import LonasEdgeError
from lonas_edge.files import read_text, replace_text


def test_replaced_in_utf8_with_plain_line_ends(tmp_path: Path) -> None:
    (tmp_path / "card.md").write_text("old")
    replace_text(tmp_path / "card.md", "62.5 ± 0.4 …\n")
    assert (tmp_path / "card.md").read_bytes() == b"62.5 \xc2\xb1 0.4 \xe2\x80\xa6\n"
    assert [path.name for path in tmp_path.iterdir()] == ["card.md"]


def test_a_disk_that_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "card.md").write_text("old")

    def full(self: Path, _target: Path) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(LonasEdgeError, match=r"card\.md: cannot be written: .*No space left"):
        replace_text(tmp_path / "card.md", "new")
    assert [path.name for path in tmp_path.iterdir()] == ["card.md"]
    assert (tmp_path / "card.md").read_text() == "old"


def test_no_such_directory(tmp_path: Path) -> None:
    with pytest.raises(LonasEdgeError, match=r"none/card\.md: cannot be written"):
        replace_text(tmp_path / "none/card.md", "new")


@pytest.mark.parametrize("content", [b"a\r\n\xe2\x80\xa6", b"\xef\xbb\xbfa\r\n\xe2\x80\xa6"])
def test_text_is_read_as_it_is(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(content)
    assert read_text(tmp_path / "file", "the list") == "a\r\n…"


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"a\nb\n\xe9t\xe9", "line 3 is not UTF-8"),
        ("{}".encode("utf-16"), "UTF-16. Save it as UTF-8"),
        (b"x" * 11, "larger than 10 bytes"),
    ],
)
def test_text_that_cannot_be_read(content: bytes, text: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(LonasEdgeError) as raised:
        read_text(tmp_path / "file", "the list", limit=10)
    assert str(raised.value).startswith(f"{tmp_path / 'file'}: the list cannot be read: ")
    assert text in str(raised.value)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="of POSIX systems")
def test_what_is_not_a_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, found in ((tmp_path / "pipe", "a pipe"), (Path("/dev/zero"), "a device"), (tmp_path, "found a directory")):
        with pytest.raises(LonasEdgeError, match=rf"{path}: the list cannot be read: expected a file, .*{found}"):
            read_text(path, "the list")
    with pytest.raises(LonasEdgeError, match=r"the list cannot be read: .*No such file"):
        read_text(tmp_path / "absent", "the list")
