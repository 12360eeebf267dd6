"""The model card names the prompt that was trained with: whoever asks the model has to know it."""

import pytest
from test_exported import MANIFEST

from lonas_edge.exporting.manifest import Manifest
from lonas_edge.exporting.model_card import model_card

ALPACA = """It was trained with the prompt `alpaca`. Ask it so; its answer takes the place of `{output}`:

```text
Below is an instruction that describes a task. Write a response that appropriately completes the request.

### Instruction:
{instruction}

### Response:
{output}
```

With an input beside the instruction:

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

"""
QUESTION = """It was trained with the prompt `question`. Ask it so; its answer takes the place of `{output}`:

```text
Question: {instruction}
Answer: {output}
```

With an input beside the instruction:

```text
{input}
Question: {instruction}
Answer: {output}
```

"""
TRAILING = "  "  # blanks at the end of a line, which are the reference's
LONAS = f"""It was trained with the prompt `lonas`. Ask it so; its answer takes the place of `{{output}}`:

```text
Below is an instruction that describes a task. Write a response that appropriately completes the request.{TRAILING}

                    ### Instruction:
                    {{instruction}}

                    ### Response:
                    {{output}}
```

With an input"""
CHAT = "It was trained with the prompt `chat`: ask it in the chat template that the tokenizer has"
BY_ITSELF = ", in which openvino_genai puts what it is asked by itself.\n\n"
OFF = "openvino_genai puts what it is asked in the tokenizer's chat template unless told `apply_chat_template=False`.\n\n"
FILE = {"chat_template.jinja": [{"bytes": 1, "sha256": "ab"}]}


def card(**changes: object) -> str:
    return model_card(Manifest.from_json({**MANIFEST, **changes}, "here"))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"prompt": "alpaca"}, ALPACA + "## Checked"),
        ({"prompt": "question"}, QUESTION + "## Checked"),
        ({"prompt": "lonas"}, LONAS),
        ({"prompt": "question", "stage": "checkpoint", "files": FILE}, QUESTION + "## Checked"),
        ({"prompt": "question", "files": FILE}, QUESTION + OFF + "## Checked"),
        ({"prompt": "chat", "files": FILE}, CHAT + BY_ITSELF + "## Checked"),
        ({"prompt": "chat", "stage": "checkpoint", "files": FILE}, CHAT + ".\n\n## Checked"),
        ({"prompt": "chat", "stage": "gguf"}, CHAT + ".\n\n## Checked"),
    ],
)
def test_the_prompt(changes: dict[str, object], told: str) -> None:
    assert told in card(**changes)


@pytest.mark.parametrize("changes", [{"prompt": None}, {"prompt": "of a later version"}, {"prompt": None, "files": FILE}])
def test_a_prompt_that_is_not_known(changes: dict[str, object]) -> None:
    found = card(**changes)
    assert "trained with" not in found and "apply_chat_template" not in found
