"""The model card says how an NPU is asked where weights are stored as it needs them, and that none was."""

import pytest
from test_exported import MANIFEST

from lonas_edge.exporting.manifest import Manifest
from lonas_edge.exporting.model_card import as_npus_ask, model_card

CALL = 'openvino_genai.LLMPipeline("THIS_DIRECTORY", "NPU", MAX_PROMPT_LEN=1024, MIN_RESPONSE_LEN=128)'


@pytest.mark.parametrize(
    ("stored", "changes", "fits"),
    [
        ([("int4_sym", 128, 1.0)], {}, True),
        ([("int4_sym", -1, 1.0)], {}, True),
        ([("int4_sym", 64, 1.0)], {}, False),
        ([("int4", 128, 1.0)], {}, False),
        ([("int4_sym", 128, 0.8), ("int8", None, 0.2)], {}, False),
        ([("int8_sym", None, 1.0)], {}, False),
        ([], {"stage": "checkpoint"}, False),
        ([("int4_sym", 128, 1.0)], {"pipeline": "text-classification"}, False),
    ],
)
def test_which_exports_are_for_npus(stored: list, changes: dict, fits: bool) -> None:
    parts = [{"weight_format": name, "group_size": size, "share": share} for name, size, share in stored]
    manifest = Manifest.from_json({**MANIFEST, "compression": parts, **changes}, "here")
    assert as_npus_ask(manifest) is fits
    card = model_card(manifest)
    assert (CALL in card) is fits and ("It was not run on one." in card) is fits
