"""From a materialized model to OpenVINO IR: graph, compressed weights, tokenizers."""

MODEL, WEIGHTS = "openvino_model.xml", "openvino_model.bin"
RUNTIME = "lonas_edge_runtime.json"  # runtime properties that `bench --tune` chose

END_TO_END = "end-to-end"
LABELS = {"tpot": "TPOT", "ttft": "TTFT", END_TO_END: "end to end"}  # objectives of a tuning, for people
