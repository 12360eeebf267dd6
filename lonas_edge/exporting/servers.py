"""Servers that an exported directory is laid out for: one object a server; the command line takes its choices from here.

OpenVINO Model Server runs language models by a MediaPipe graph, `graph.pbtxt` beside the IR. Sources: its documentation
(https://docs.openvino.ai/2025/model-server/ovms_docs_llm_reference.html, "LLM Calculator" and "Models Directory";
https://docs.openvino.ai/2025/model-server/ovms_docs_serving_model.html), `src/llm/llm_calculator.proto` and
`src/graph_export/graph_export.cpp` of openvinotoolkit/model_server, 2026.3, and MediaPipe's `calculator.proto`.
"""

from collections.abc import Mapping
from dataclasses import dataclass

_GRAPH = """\
# OpenVINO Model Server: --model_path names this directory. What may be changed is in LLMCalculatorOptions; its other fields
# are the server's defaults.
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


@dataclass(frozen=True)
class Server:
    """A server.

    Attributes:
        name: What it is called on the command line.
        files: What it wants beside the IR: content by name.
        run: How to start it, lines of the model card.
        device: The line of its files behind which a draft is named.
        draft: How it is named there, with {draft}.
    """

    name: str
    files: Mapping[str, str]
    run: tuple[str, ...]
    device: str
    draft: str

    def files_beside(self, draft: str | None) -> dict[str, str]:
        """What it wants beside an IR.

        Args:
            draft: Directory of the draft, in the IR's; None where there is none.

        Returns:
            Content by name.
        """
        if draft is None:
            return dict(self.files)
        return {
            name: content.replace(self.device, self.device + self.draft.format(draft=draft))
            for name, content in self.files.items()
        }


_OVMS = Server(
    "ovms",
    {"graph.pbtxt": _GRAPH},
    (
        "OpenVINO Model Server, an OpenAI API at `http://localhost:8000/v3`:",
        "",
        "```sh",
        'docker run --rm -p 8000:8000 -v "$PWD/THIS_DIRECTORY:/models/model:ro" openvino/model_server:latest \\',
        "  --model_path /models/model --model_name model --rest_port 8000",
        "```",
    ),
    '      device: "CPU"\n',
    '      draft_models_path: "./{draft}"\n',
)
SERVERS = {server.name: server for server in (_OVMS,)}
