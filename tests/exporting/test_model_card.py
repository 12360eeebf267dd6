"""The model card: prompts, the call for NPUs."""

import pytest
from test_exported import MANIFEST

from lonas_edge.exporting.manifest import Manifest
from lonas_edge.exporting.model_card import fits_npu, model_card

ALPACA = """`alpaca`; the answer takes the place of `{output}`:

```text
Below is an instruction that describes a task. Write a response that appropriately completes the request.

### Instruction:
{instruction}

### Response:
{output}
```

With an input in addition to the instruction:

```text
Below is an instruction that describes a task, paired with an input that provides further context. Write a response that \
appropriately completes the request.

### Instruction:
{instruction}

### Input:
{input}

### Response:
{output}
```

## Verification"""
APPLIES = "openvino_genai applies the tokenizer's chat template unless you pass `apply_chat_template=False`.\n\n## Verification"
CHAT = "It was trained with the prompt `chat`: use the tokenizer's chat template"
FILE = {"chat_template.jinja": {"bytes": 1, "sha256": "ab"}}


def manifest(**changes: object) -> Manifest:
    return Manifest.from_json({**MANIFEST, **changes}, "here")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"prompt": "alpaca"}, ALPACA),
        ({"prompt": "alpaca", "stage": "checkpoint", "files": FILE}, ALPACA),
        ({"prompt": "question", "files": FILE}, APPLIES),
        ({"prompt": "chat", "files": FILE}, CHAT + ", which openvino_genai applies by itself.\n\n## Verification"),
        ({"prompt": "chat", "stage": "checkpoint"}, CHAT + ".\n\n## Verification"),
    ],
)
def test_the_prompt(changes: dict[str, object], expected: str) -> None:
    assert expected in model_card(manifest(**changes))


@pytest.mark.parametrize(
    ("stored", "changes", "fits"),
    [
        ([("int4_sym", 128, 1.0)], {}, True),
        ([("int4_sym", -1, 1.0)], {}, True),
        ([("int4_sym", 64, 1.0)], {}, False),
        ([("int4", 128, 1.0)], {}, False),
        ([("int4_sym", 128, 0.8), ("int8", None, 0.2)], {}, False),
        ([], {"stage": "checkpoint"}, False),
        ([("int4_sym", 128, 1.0)], {"pipeline": "text-classification"}, False),
    ],
)
def test_exports_for_npus(stored: list, changes: dict, fits: bool) -> None:
    parts = [{"weight_format": name, "group_size": size, "share": share} for name, size, share in stored]
    exported = manifest(compression=parts, **changes)
    assert fits_npu(exported) is fits
    assert ('openvino_genai.LLMPipeline("THIS_DIRECTORY", "NPU", MAX_PROMPT_LEN=1024' in model_card(exported)) is fits
