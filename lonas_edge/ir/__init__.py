"""From a materialized model to OpenVINO IR: graph, compressed weights, tokenizers, parity."""
