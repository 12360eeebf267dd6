"""From a materialized model to OpenVINO IR: graph, compressed weights, tokenizers."""

import sys

# No telemetry from a tool that runs offline: openvino and nncf take stubs when the package is not there. It also costs a
# second of a 135M export (openvino-telemetry 2025.2).
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]

MODEL, WEIGHTS = "openvino_model.xml", "openvino_model.bin"
RUNTIME = "lonas_edge_runtime.json"  # runtime properties that `bench --tune` chose

END_TO_END = "end-to-end"
LABELS = {"tpot": "TPOT", "ttft": "TTFT", END_TO_END: "end to end"}  # objectives of a tuning, for people
