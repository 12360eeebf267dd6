"""Study: accuracy over latency of a LoRA model stored by other tools, compared with searched sub-networks.

    python benchmarks/plane.py LORA_ADAPTER --searched DIR --searched DIR … --datasets DIR --text DATA.json --work DIR \\
        --output benchmarks/results/FILE.json

LORA_ADAPTER is merged, then stored by `optimum-cli export openvino` in INT8 and INT4, and by optimum-intel in INT4 with AWQ and
with GPTQ (calibrated on --text). The other networks are exported directories. IRs answer the same examples by `option-text`;
differences from optimum's INT8 are paired. TTFT and TPOT of all files are measured interleaved in one run of `bench`. A stopped
run continues from --work.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from study import average, conditions, difference, evaluated, exported, timed
from transformers import AutoTokenizer

OPTIMUM = ("int8", "int4", "int4-awq", "int4-gptq")  # differences are from the first
CALIBRATED = {  # options of optimum-intel
    "int4-awq": {"quant_method": "awq", "scale_estimation": True},
    "int4-gptq": {"sym": True, "gptq": True},
    "int4-mixed": {"quant_method": "awq", "scale_estimation": True, "ratio": 0.8},  # a fifth in INT8, chosen on the data
}
TEXTS = 96  # examples for the calibration
TOOLS = ("lonas-edge", "optimum")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lora", type=Path, nargs="?", help="a PEFT adapter whose configuration names its base")
    parser.add_argument("--searched", type=Path, action="append", default=[], help="an exported directory; may be repeated")
    parser.add_argument("--datasets", type=Path)
    parser.add_argument("--text", type=Path, help="instruction data for the calibration of INT4: the training's own")
    parser.add_argument("--work", type=Path)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--optimum", default=",".join(OPTIMUM))
    parser.add_argument("--limit", type=int, help="examples of each test set; default: all")
    parser.add_argument("--rounds", type=int, default=18)
    arguments = parser.parse_args()
    if not all((arguments.lora, arguments.searched, arguments.datasets, arguments.text, arguments.work)):
        parser.error("LORA, --searched, --datasets, --text and --work are required")
    return arguments


def optimum_ir(name: str, checkpoint: Path, text: Path, work: Path) -> Path:
    """An IR that optimum-intel writes."""
    folder = work / f"optimum-{name}"
    if folder.exists():
        return folder
    if name not in CALIBRATED:
        program = Path(sys.executable).parent / "optimum-cli"
        options = ["--task", "text-generation-with-past", "--weight-format", name]
        options += ["--group-size", "64"] if name == "int4" else []
        subprocess.run([program, "export", "openvino", "-m", checkpoint, *options, folder], check=True)
        return folder
    from optimum.intel import OVModelForCausalLM, OVWeightQuantizationConfig

    texts = calibration_texts(text, checkpoint)
    options = {"dataset": texts, "num_samples": TEXTS, "tokenizer": str(checkpoint), "ratio": 1.0, **CALIBRATED[name]}
    config = OVWeightQuantizationConfig(bits=4, group_size=64, **options)
    OVModelForCausalLM.from_pretrained(checkpoint, export=True, quantization_config=config).save_pretrained(folder)
    plain = optimum_ir("int8", checkpoint, text, work)
    for file in [*plain.glob("openvino_*tokenizer.*"), *plain.glob("tokenizer*"), *plain.glob("*.jinja")]:
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


def calibration_texts(data: Path, checkpoint: Path) -> list[str]:
    """Every n-th example as a text: instructions in JSON, or conversations in JSON Lines."""
    content = data.read_text()
    rows = [json.loads(line) for line in content.splitlines()] if data.suffix == ".jsonl" else json.loads(content)
    rows = rows[:: max(1, len(rows) // TEXTS)][:TEXTS]
    if "messages" not in rows[0]:
        return [f"Question: {row['instruction']}\nAnswer: {row['output']}" for row in rows]
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    return [tokenizer.apply_chat_template(row["messages"], tokenize=False) for row in rows]


def measure(arguments: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Accuracy and latency of every file, by name."""
    work = arguments.work
    work.mkdir(parents=True, exist_ok=True)
    options = ["--subnet", "maximal", "--stage", "checkpoint", "--dtype", "fp32"]
    checkpoint = exported(work / "merged", arguments.lora, *options)
    searched = {folder.name: folder for folder in arguments.searched}
    names = arguments.optimum.split(",")
    optimum = {f"optimum-{name}": optimum_ir(name, checkpoint, arguments.text, work) for name in names}
    accuracy = evaluated({**searched, **optimum}, work / "eval", arguments.datasets, arguments.limit)
    times = timed({**searched, **optimum}, work / "bench", arguments.rounds)
    rows: dict[str, dict[str, Any]] = {}
    for name, row in times.items():
        tool = next((tool for tool in TOOLS if name.startswith(tool)), "lonas-edge")
        known = {}
        if name in accuracy:
            points = difference(accuracy[name], accuracy[f"optimum-{names[0]}"])
            known = {"accuracy": average(accuracy[name]), "difference": [points["points"], points["half_width_95"]]}
        rows[name] = {"tool": tool, **known, **row}
    return rows


def main() -> None:
    arguments = parse()
    rows = measure(arguments)
    for name, row in sorted(rows.items(), key=lambda item: item[1]["tpot_ms"]):
        points = (
            f"{row['accuracy']:.1f} %  {row['difference'][0]:+.1f} ± {row['difference'][1]:.1f}" if "accuracy" in row else ""
        )
        print(f"{name:34} {points:20}  TTFT {row['ttft_ms']:.0f} ms, TPOT {row['tpot_ms']:.2f} ms")
    machine = conditions()
    title = f"{arguments.lora.name} on {machine['processors']} cores of an {machine['processor']}"
    settings = {"limit": arguments.limit, "rounds": arguments.rounds, "texts": TEXTS}
    if arguments.output:
        result = {"title": title, "conditions": machine, "settings": settings, "rows": rows}
        arguments.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
