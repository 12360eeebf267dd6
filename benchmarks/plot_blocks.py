"""Plot results of benchmarks/blocks.py: accuracy over TPOT, by what was removed, one panel each.

python benchmarks/plot_blocks.py TITLE=FILE.json … --output FILE.png
"""

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

KINDS = ("none", "attention", "mlp", "layer", "mixed", "widths")


def main() -> None:
    """Draw the panels side by side, with the same vertical axis."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="+", metavar="TITLE=FILE")
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    figure, axes = pyplot.subplots(
        1, len(arguments.results), figsize=(5.5 * len(arguments.results), 4), sharey=True, squeeze=False, layout="constrained"
    )
    for axis, result in zip(axes[0], arguments.results, strict=True):
        title, _, file = result.rpartition("=")
        draw(axis, title, json.loads(Path(file).read_text())["rows"])
    axes[0][0].set_ylabel("accuracy, points from INT8")
    axes[0][-1].legend(title="removed")
    figure.savefig(arguments.output, dpi=120)


def draw(axis: Any, title: str, rows: dict[str, Any]) -> None:
    """Draw a panel: points with the 95 % interval of the difference, lines between networks of a kind."""
    for kind in KINDS:
        own = sorted((row for row in rows.values() if row["kind"] == kind), key=lambda row: row["tpot_ms"])
        if not own:
            continue
        speeds = [row["tpot_ms"] / rows["none"]["tpot_ms"] for row in own]
        accuracies = [row["accuracy"] for row in own]
        values, lows, highs = ([each[name] or each["value"] for each in accuracies] for name in ("value", "low", "high"))
        bars = [
            [v - low for v, low in zip(values, lows, strict=True)],
            [high - v for v, high in zip(values, highs, strict=True)],
        ]
        axis.errorbar(speeds, values, yerr=bars, marker="o", capsize=3, label=kind)
    axis.axhline(0, color="grey", linewidth=0.8)
    axis.set(title=title, xlabel="TPOT, relative to the unpruned INT4 model")


if __name__ == "__main__":
    main()
