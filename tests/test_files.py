"""Files that are replaced whole or not at all."""

from pathlib import Path

import pytest

from lonas_edge.errors import LonasEdgeError
from lonas_edge.files import replace_text


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
