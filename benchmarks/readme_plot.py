"""The plot of docs/results.md: TTFT and TPOT of SmolLM2-135M's heuristic sub-network beside what else runs the same model.

    python benchmarks/readme_plot.py [benchmarks/results/latency_smollm2_135m/bench.json] [docs/images/latency.png]

Takes the report that `benchmarks/latency.py` wrote; nothing is measured here.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

REPORT = Path("benchmarks/results/latency_smollm2_135m/bench.json")
PLOT = Path("docs/images/latency.png")
PROMPT_LENGTH = 256
ARMS = {
    "subnet": "lonas-edge: sub-network, INT8",
    "unpruned": "OpenVINO: unpruned, INT8",
    "gguf": "llama.cpp: unpruned, Q8_0",
    "lora": "PyTorch: LoRA, fp32",
}
METRICS = {"ttft": "time to first token, ms", "tpot": "time per further token, ms"}


def medians(report: dict[str, Any], metric: str) -> list[float]:
    """Medians of one metric, an arm each, in the order of `ARMS`."""
    rows = {row["arm"]: row for row in report["rows"] if row["case"]["prompt_len"] == PROMPT_LENGTH}
    return [rows[arm][metric]["p50"] for arm in ARMS]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("report", type=Path, nargs="?", default=REPORT)
    parser.add_argument("plot", type=Path, nargs="?", default=PLOT)
    arguments = parser.parse_args()
    report = json.loads(arguments.report.read_text())
    figure, panels = plt.subplots(1, len(METRICS), figsize=(9, 2.5), sharey=True, layout="constrained")
    for panel, (metric, label) in zip(panels, METRICS.items(), strict=True):
        bars = panel.barh(list(ARMS.values()), medians(report, metric), color=["tab:blue"] + ["lightgray"] * (len(ARMS) - 1))
        panel.bar_label(bars, fmt=lambda value: f"{value:.0f}" if value >= 100 else f"{value:.1f}", padding=3)
        panel.set_xlabel(label)
        panel.margins(x=0.15)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].invert_yaxis()
    machine = report["conditions"]["machine"]
    figure.suptitle(
        f"SmolLM2-135M, {PROMPT_LENGTH}-token prompts, {machine['processors']} cores of an {machine['processor']}; "
        "medians, shorter is faster",
        fontsize="medium",
    )
    figure.savefig(arguments.plot, dpi=120)


if __name__ == "__main__":
    main()
