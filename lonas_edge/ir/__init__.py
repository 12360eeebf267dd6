"""From a materialized model to OpenVINO IR: graph, compressed weights, tokenizers."""

MODEL, WEIGHTS = "openvino_model.xml", "openvino_model.bin"
