"""The network as tensors: read, ordered, activated, sliced and merged."""
