"""How clients run an export: stages where it may stop, with the lines of the model card, and the graph of a server.

Sources of the graph, with which MediaPipe describes a language model to OpenVINO Model Server: its documentation
(https://docs.openvino.ai/2025/model-server/ovms_docs_llm_reference.html, "LLM Calculator" and "Models Directory";
https://docs.openvino.ai/2025/model-server/ovms_docs_serving_model.html), `src/llm/llm_calculator.proto` and
`src/graph_export/graph_export.cpp` of openvinotoolkit/model_server, 2026.3, and MediaPipe's `calculator.proto`.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from lonas_edge.families import CAUSAL_LM, CLASSIFICATION, EMBEDDING


@dataclass(frozen=True)
class Stage:
    """A stage where an export stops.

    Attributes:
        library: Name of the library that runs the result, on model hubs.
        tags: Further tags on model hubs.
        run: Lines of the model card that show how to run it, by the pipeline tag of the model's task. POOLING and LENGTH stand
            for an embedding model's arguments and its longest text.
    """

    name: str
    library: str
    tags: tuple[str, ...]
    run: Mapping[str, tuple[str, ...]]


_TESTED = "lonas-edge is developed and measured on AMD and Intel CPUs; it was never run on an Intel GPU or NPU."


def _opened(auto_model: str) -> tuple[str, ...]:
    return (
        f"Where layers have unequal widths (`per_layer_config` in config.json) or lack blocks, `{auto_model}` of transformers "
        "5.5 does not open the checkpoint as it is. Open it with:",
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
    "`OVModelForCausalLM.from_pretrained`, OpenVINO Model Server and `lm_eval --model openvino --device cpu` open the "
    f"directory, too. {_TESTED}",
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
    _TESTED,
)
_EMBEDS = (
    "```python",
    "from openvino_genai import TextEmbeddingPipeline",
    "",
    'pipe = TextEmbeddingPipeline("THIS_DIRECTORY", "CPU", POOLING)',
    'print(pipe.embed_documents(["It is raining.", "It is dry."]))',
    "```",
    "",
    "Pass these arguments: openvino_genai does not read the files of sentence-transformers, and pools the first token by "
    "default. Texts are cut after LENGTH tokens. sentence-transformers "
    '(`SentenceTransformer("THIS_DIRECTORY", backend="openvino")`) and `OVModelForFeatureExtraction` open the directory, too. '
    f"{_TESTED}",
)
_OPENED_EMBEDDER = (
    'Where all layers have equal widths, sentence-transformers opens it: `SentenceTransformer("THIS_DIRECTORY")`. transformers '
    "reports a pooler with random weights, which nothing reads. Texts are cut after LENGTH tokens.",
    "",
)
_TASKS = (CAUSAL_LM, CLASSIFICATION)
_CHECKPOINT = Stage(
    "checkpoint",
    "transformers",
    (),
    {
        **{task.pipeline_tag: _opened(task.auto_model) for task in _TASKS},
        EMBEDDING.pipeline_tag: (*_OPENED_EMBEDDER, *_opened(EMBEDDING.auto_model)),
    },
)
_IR = Stage(
    "ir",
    "openvino",
    ("openvino",),
    {CAUSAL_LM.pipeline_tag: _GENERATES, CLASSIFICATION.pipeline_tag: _CLASSIFIES, EMBEDDING.pipeline_tag: _EMBEDS},
)
STAGES = {stage.name: stage for stage in (_CHECKPOINT, _IR)}

GRAPH_FILE = "graph.pbtxt"
GRAPH = """\
# OpenVINO Model Server: --model_path names this directory. Options go into LLMCalculatorOptions; fields that are missing have
# the server's defaults.
input_stream: "HTTP_REQUEST_PAYLOAD:input"
output_stream: "HTTP_RESPONSE_PAYLOAD:output"

node {
  name: "LLMExecutor"
  calculator: "HttpLLMCalculator"
  input_stream: "LOOPBACK:loopback"
  input_stream: "HTTP_REQUEST_PAYLOAD:input"
  input_side_packet: "LLM_NODE_RESOURCES:llm"
  output_stream: "LOOPBACK:loopback"
  output_stream: "HTTP_RESPONSE_PAYLOAD:output"
  input_stream_info { tag_index: "LOOPBACK:0" back_edge: true }
  node_options {
    [type.googleapis.com/mediapipe.LLMCalculatorOptions] {
      models_path: "./"
      device: "CPU"
    }
  }
  input_stream_handler {
    input_stream_handler: "SyncSetInputStreamHandler"
    options {
      [mediapipe.SyncSetInputStreamHandlerOptions.ext] {
        sync_set { tag_index: "LOOPBACK:0" }
      }
    }
  }
}
"""
RUN_SERVER = (  # lines of the model card
    "OpenVINO Model Server, an OpenAI API at `http://localhost:8000/v3`:",
    "",
    "```sh",
    'docker run --rm -p 8000:8000 -v "$PWD/THIS_DIRECTORY:/models/model:ro" openvino/model_server:latest \\',
    "  --model_path /models/model --model_name model --rest_port 8000",
    "```",
)
