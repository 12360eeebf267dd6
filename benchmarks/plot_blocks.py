"""Plot results of benchmarks/blocks.py: held-out loss after the recovery over TPOT, by what was removed, one panel each.

python benchmarks/plot_blocks.py TITLE=FILE.json … --output FILE.png
"""

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot, ticker

KINDS = {
    "attention": "attention blocks",
    "mlp": "MLP blocks",
    "layer": "whole layers",
    "mixed": "both, by KL per saved TPOT",
    "widths": "MLP widths, attention blocks",  # of widths_half_billion.json; `blocks.py` now offers widths alone
    "all": "MLP widths and both (default)",
}


def main() -> None:
    """Draw the panels, two in a row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="+", metavar="TITLE=FILE")
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    rows = (len(arguments.results) + 1) // 2
    figure, axes = pyplot.subplots(rows, 2, figsize=(11, 4 * rows), sharey=True, squeeze=False, layout="constrained")
    for axis, result in zip(axes.flat, arguments.results, strict=False):
        title, _, file = result.rpartition("=")
        draw(axis, title, json.loads(Path(file).read_text())["rows"])
    for row in axes:
        row[0].set_ylabel("held-out loss (nats per learned token)")
    entries = {label: line for axis in axes.flat for line, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    axes[0][-1].legend(entries.values(), entries.keys(), title="removed")
    figure.savefig(arguments.output, dpi=120)


def draw(axis: Any, title: str, rows: dict[str, Any]) -> None:
    """Draw a panel: lines between networks of a kind, from the unpruned one."""
    unpruned = rows["none"]["losses"][-1][1]
    for number, (kind, label) in enumerate(KINDS.items()):
        own = sorted((row for row in rows.values() if row["kind"] == kind), key=lambda row: -row.get("tpot", row["bound"]))
        if not own:
            continue
        speeds = [1.0, *(row.get("tpot", row["bound"]) for row in own)]
        axis.plot(speeds, [unpruned, *(row["losses"][-1][1] for row in own)], marker="o", color=f"C{number}", label=label)
    axis.set_yscale("log")
    axis.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    axis.yaxis.set_major_formatter(ticker.ScalarFormatter())
    axis.yaxis.set_minor_formatter(ticker.NullFormatter())
    axis.set(title=title, xlabel="TPOT, relative to the unpruned INT4 model")


if __name__ == "__main__":
    main()
