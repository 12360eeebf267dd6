"""Where an export stops: one object a stage; the command line takes its choices from here."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Stage:
    """Where an export stops.

    Attributes:
        name: What it is called on the command line and in records.
        library: What model hubs call the library that runs the result.
        tags: What else model hubs find it by.
        run: How to run it: lines of the model card.
    """

    name: str
    library: str
    tags: tuple[str, ...]
    run: tuple[str, ...]


_CHECKPOINT = Stage(
    "checkpoint",
    "transformers",
    (),
    (
        "Layers may be of unequal widths (`per_layer_config` in config.json), which `AutoModelForCausalLM` of transformers "
        "5.5 refuses. Two lines open it:",
        "",
        "```python",
        "from lonas_edge import load_checkpoint",
        'model = load_checkpoint("THIS_DIRECTORY")',
        "```",
    ),
)
_IR = Stage(
    "ir",
    "openvino",
    ("openvino",),
    (
        "```python",
        "import openvino_genai",
        "",
        'pipe = openvino_genai.LLMPipeline("THIS_DIRECTORY", "CPU")',
        'print(pipe.generate("The sun is", max_new_tokens=32))',
        "```",
        "",
        "`OVModelForCausalLM.from_pretrained`, OpenVINO Model Server and `lm_eval --model openvino --device cpu` take the "
        "directory as it is, too. lonas-edge is developed and measured on AMD and Intel CPUs; nothing was run on an Intel GPU "
        "or NPU.",
    ),
)
STAGES = {stage.name: stage for stage in (_CHECKPOINT, _IR)}
