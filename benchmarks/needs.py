"""Study: time, memory and disk of fine-tuning and recovery of a model of 1.5 billion parameters, with random weights.

    python benchmarks/needs.py --tokenizer QWEN-2.5-DIR --data train.jsonl --work DIR --output FILE.json

The shape is that of Qwen2.5-1.5B, and the tokenizer that of a smaller Qwen 2.5. The recovery removes every second MLP block and
trains INT4 weights with the LoRA as teacher; the result is exported.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from study import conditions
from transformers import AutoConfig, AutoModelForCausalLM

from lonas_edge.network.source import open_source

SHAPE = {
    "hidden_size": 1536,
    "intermediate_size": 8960,
    "num_hidden_layers": 28,
    "num_attention_heads": 12,
    "num_key_value_heads": 2,
    "max_window_layers": 28,
    "tie_word_embeddings": True,
}


def main() -> None:
    """Train, recover and export; write what each step took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("--tokenizer", "--data", "--work", "--output"):
        parser.add_argument(name, type=Path, required=True)
    parser.add_argument("--lora-steps", type=int, default=20)
    parser.add_argument("--recovery-steps", type=int, default=10)
    arguments = parser.parse_args()
    work: Path = arguments.work
    base, lora, recovered = (work / name for name in ("base", "lora", "recovered"))
    if not base.exists():
        write_base(arguments.tokenizer, base)
    space, subnet = work / "space.json", work / "subnet.json"
    data = ["--data", arguments.data, "--dtype", "bf16"]
    steps: dict[str, Any] = {
        "fine-tune": measured(
            "train", "--no-elastic", "--model", base, *data, "--steps", arguments.lora_steps, "--output", lora
        ),
        "space": measured("space", "--adapter", lora, "--model", base, "--depth", "mlp", "--ratios", "1", "--output", space),
    }
    source = open_source(str(lora), str(base), space)
    removed = {f"layers.{number}.mlp": 0 for number in range(1, SHAPE["num_hidden_layers"] - 1, 2)}
    subnet.write_text(json.dumps({"widths": source.select("maximal").by_group | removed}))
    options = ["--from", lora, "--model", base, "--nncf-config", space, "--subnet", subnet, "--teacher", lora, *data]
    options += ["--weight-format", "int4_sym", "--steps", arguments.recovery_steps]
    steps["recover"] = measured("train", *options, "--output", recovered)
    exported = ["--model", base, "--weight-format", "int4_sym", "--output", work / "model"]
    steps["export"] = measured("export", recovered, *exported)
    for name, folder in (("fine-tune", lora), ("recover", recovered)):
        record = json.loads((folder / "training.json").read_text())
        steps[name] |= {"training_" + key: record[key] for key in ("seconds", "steps", "tokens")}
    sizes = {folder.name: sum(path.stat().st_size for path in folder.iterdir()) for folder in (base, lora, work / "model")}
    result = {"conditions": conditions(), "steps": steps, "bytes": sizes}
    arguments.output.write_text(json.dumps(result, indent=1) + "\n")


def write_base(tokenizer: Path, base: Path) -> None:
    """Write a model of this shape with random weights in bf16 and the other files of `tokenizer`."""
    config = AutoConfig.from_pretrained(tokenizer)
    for name, value in SHAPE.items():
        setattr(config, name, value)
    config.layer_types = ["full_attention"] * SHAPE["num_hidden_layers"]
    torch.manual_seed(0)
    made = base.with_suffix(".new")
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(made)
    for path in tokenizer.iterdir():
        if path.suffix in (".json", ".txt", ".jinja", ".model") and not (made / path.name).exists():
            shutil.copy(path, made)
    made.rename(base)


def measured(*command: Any) -> dict[str, float]:
    """Run a command; return its seconds and its peak memory in bytes. A killed study keeps those of finished commands."""
    record = Path(command[-1]).with_suffix(".measured.json")  # next to its output
    if record.exists():
        return dict(json.loads(record.read_text()))
    started = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "lonas_edge", *map(str, command)])
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{command[0]} failed")
    found = {"seconds": round(time.perf_counter() - started, 1), "peak_bytes": usage.ru_maxrss * 1024}
    record.write_text(json.dumps(found))
    return found


if __name__ == "__main__":
    main()
