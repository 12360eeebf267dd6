"""What several commands share of their command line."""

import sys

import pytest

from lonas_edge.cli.options import require_extra
from lonas_edge.errors import LonasEdgeError


def test_a_missing_extra_is_told_with_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino_genai", None)  # as if it were not installed
    with pytest.raises(LonasEdgeError, match=r"^openvino-genai is not installed; pip install 'lonas-edge\[bench\]'$"):
        require_extra("bench", "openvino_genai", "json")
    with pytest.raises(LonasEdgeError, match="openvino-genai, no-such are not installed"):
        require_extra("bench", "openvino_genai", "json", "no_such")
    require_extra("bench", "json")
