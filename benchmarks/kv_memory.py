"""KV-cache memory of exported directories at a long prompt, as the clients hold it.

    python benchmarks/kv_memory.py DIR DIR … --tokens 4096 --output benchmarks/results/kv_memory.json

Each directory in a process of its own. optimum-intel: bytes of the IR's state after the prompt, by the request's own account.
openvino_genai's LLMPipeline: what the process' resident memory has more after answering the long prompt than after a prompt of
16 tokens (cache and the prompt's activations). Predicted: `kv_elements` of the configuration, at the precision the state has.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

PACKAGES = ("lonas-edge", "openvino", "openvino-genai", "optimum-intel")


def resident() -> int:
    """Bytes of memory that this process holds now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def in_genai(folder: str, tokens: int) -> dict[str, int]:
    """Growth of the process from a short to a long prompt."""
    import numpy
    import openvino
    import openvino_genai

    pipeline = openvino_genai.LLMPipeline(folder, "CPU")
    before = 0
    for length in (16, tokens):
        before = resident()
        pipeline.generate(openvino.Tensor(numpy.full((1, length), 300, dtype=numpy.int64)), max_new_tokens=2, ignore_eos=True)
    return {"resident_growth": resident() - before}


def in_optimum(folder: str, tokens: int) -> dict[str, int]:
    """Bytes of the IR's state after the prompt, and the elements and precision they are of."""
    import torch
    from optimum.intel import OVModelForCausalLM

    model = OVModelForCausalLM.from_pretrained(folder, compile=True)
    model(input_ids=torch.full((1, tokens), 300), attention_mask=torch.ones(1, tokens, dtype=torch.long))
    states = [state.state for state in model.request.query_state() if "past_key_values" in state.name]
    return {"states": len(states), "state_bytes": sum(state.byte_size for state in states)}


CLIENTS = {"genai": in_genai, "optimum": in_optimum}


def measure(folder: Path, tokens: int) -> dict[str, Any]:
    """What all clients say of one directory."""
    from transformers import AutoConfig

    from lonas_edge.space.architecture import Architecture

    config = AutoConfig.for_model(**json.loads((folder / "config.json").read_text()))
    found: dict[str, Any] = {"cache_elements": Architecture.from_config(config, "config.json").kv_elements() * tokens}
    for client in CLIENTS:
        command = [sys.executable, __file__, str(folder), "--tokens", str(tokens), "--client", client]
        found[client] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", type=Path, nargs="+", metavar="DIR")
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--client", choices=list(CLIENTS), help="this client alone, in this process")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    if arguments.client:
        print(json.dumps(CLIENTS[arguments.client](str(arguments.folders[0]), arguments.tokens)))
        return
    from lonas_edge.bench.machine import describe
    from lonas_edge.versions import versions

    report: dict[str, Any] = {"conditions": {**describe("CPU"), "versions": versions(PACKAGES)}, "tokens": arguments.tokens}
    report["networks"] = {folder.name: measure(folder, arguments.tokens) for folder in arguments.folders}
    for name, one in report["networks"].items():
        print(f"{name}: {json.dumps(one)}")
    if arguments.output:
        arguments.output.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
