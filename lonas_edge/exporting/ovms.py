"""Describe a language model to OpenVINO Model Server by a MediaPipe graph next to the IR.

Sources: its documentation (https://docs.openvino.ai/2025/model-server/ovms_docs_llm_reference.html, "LLM Calculator" and
"Models Directory"; https://docs.openvino.ai/2025/model-server/ovms_docs_serving_model.html), `src/llm/llm_calculator.proto` and
`src/graph_export/graph_export.cpp` of openvinotoolkit/model_server, 2026.3, and MediaPipe's `calculator.proto`.
"""

SERVERS = ("ovms",)  # choices of `export --server`
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
RUN = (  # lines of the model card
    "OpenVINO Model Server, an OpenAI API at `http://localhost:8000/v3`:",
    "",
    "```sh",
    'docker run --rm -p 8000:8000 -v "$PWD/THIS_DIRECTORY:/models/model:ro" openvino/model_server:latest \\',
    "  --model_path /models/model --model_name model --rest_port 8000",
    "```",
)
