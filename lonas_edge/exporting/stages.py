"""Where an export stops: one object a stage; the command line takes its choices from here."""

from collections.abc import Mapping
from dataclasses import dataclass

from lonas_edge.families import CAUSAL_LM, CLASSIFICATION


@dataclass(frozen=True)
class Stage:
    """Where an export stops.

    Attributes:
        name: What it is called on the command line and in records.
        library: What model hubs call the library that runs the result.
        tags: What else model hubs find it by.
        run: How to run it, lines of the model card, by what the model is for as model hubs call it.
    """

    name: str
    library: str
    tags: tuple[str, ...]
    run: Mapping[str, tuple[str, ...]]


_WHERE = "lonas-edge is developed and measured on AMD and Intel CPUs; nothing was run on an Intel GPU or NPU."


def _opened(auto_model: str) -> tuple[str, ...]:
    return (
        f"Layers may be of unequal widths (`per_layer_config` in config.json), which `{auto_model}` of transformers "
        "5.5 refuses. Two lines open it:",
        "",
        "```python",
        "from lonas_edge import load_checkpoint",
        'model = load_checkpoint("THIS_DIRECTORY")',
        "```",
    )


_GENERATES = (
    "```python",
    "import openvino_genai",
    "",
    'pipe = openvino_genai.LLMPipeline("THIS_DIRECTORY", "CPU")',
    'print(pipe.generate("The sun is", max_new_tokens=32))',
    "```",
    "",
    "`OVModelForCausalLM.from_pretrained`, OpenVINO Model Server and `lm_eval --model openvino --device cpu` take the "
    f"directory as it is, too. {_WHERE}",
)
_CLASSIFIES = (
    "```python",
    "from optimum.intel import OVModelForSequenceClassification",
    "from transformers import AutoTokenizer",
    "",
    'model = OVModelForSequenceClassification.from_pretrained("THIS_DIRECTORY")',
    'tokenizer = AutoTokenizer.from_pretrained("THIS_DIRECTORY")',
    'print(model(**tokenizer("It is raining.", "It is dry.", return_tensors="pt")).logits)',
    "```",
    "",
    _WHERE,
)
_LLAMA_CPP = (
    "```sh",
    "llama-cli -m THIS_DIRECTORY/model.*.gguf -p 'The sun is' -n 32",
    "```",
    "",
    "Tokenizer and chat template are in the file. Whatever is made of llama.cpp opens it: `llama-server`, llama-cpp-python, "
    "`lonas-edge bench --arms FILE`. Layers of unequal widths are its architecture `deci`. lonas-edge checks such "
    "files with llama-cpp-python on CPUs.",
)
_TASKS = (CAUSAL_LM, CLASSIFICATION)
_CHECKPOINT = Stage("checkpoint", "transformers", (), {task.pipeline_tag: _opened(task.auto_model) for task in _TASKS})
_IR = Stage(
    "ir",
    "openvino",
    ("openvino",),
    {CAUSAL_LM.pipeline_tag: _GENERATES, CLASSIFICATION.pipeline_tag: _CLASSIFIES},
)
_GGUF = Stage("gguf", "gguf", ("gguf", "llama.cpp"), {CAUSAL_LM.pipeline_tag: _LLAMA_CPP})
STAGES = {stage.name: stage for stage in (_CHECKPOINT, _IR, _GGUF)}
