"""Study: the limit of adjacent MLPs that run as one wide MLP, with random weights in the shape of SmolLM2-135M, head untied.

    python benchmarks/wide_mlps.py --work DIR --output FILE.json

`pairs` has MLPs of twice the width in every second layer and none in the others, except for the last two layers: the weights
are the same, the kernels fewer. `removed` has the same MLPs of the usual width. All are INT4 and timed interleaved with the
unpruned model.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from random_models import random_base
from study import conditions, exported, lonas_edge, timed

from lonas_edge.network.source import open_source

LAYERS = 30


def main() -> None:
    """Export the three models, and time them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=18)
    arguments = parser.parse_args()
    work: Path = arguments.work
    usual, wide = (random_base(shape, work) for shape in ("smollm2-135m", "smollm2-135m-wide"))
    networks = {
        "removed": without_every_second_mlp(usual, work / "removed"),
        "pairs": without_every_second_mlp(wide, work / "pairs"),
        "unpruned": exported(work / "unpruned", usual, "--weight-format", "int4_sym", "--no-verify"),
    }
    rows: dict[str, Any] = {length: timed(networks, work / f"bench-{length}", arguments.rounds, length) for length in (32, 256)}
    arguments.output.write_text(json.dumps({"conditions": conditions(), "rows": rows}, indent=1) + "\n")


def without_every_second_mlp(base: Path, folder: Path) -> Path:
    """Export the base without the MLPs of odd layers."""
    space, subnet = folder.with_suffix(".space.json"), folder.with_suffix(".subnet.json")
    if not space.exists():
        lonas_edge("space", "--model", base, "--depth", "mlp", "--ratios", "1,0.5", "--output", space)
    widths = open_source(str(base), None, space).select("maximal").by_group
    removed = {f"layers.{number}.mlp": 0 for number in range(1, LAYERS - 1, 2)}  # the last MLP cannot be removed
    narrow = {f"layers.{number}.mlp.width": 1536 for number in (LAYERS - 2, LAYERS - 1)}
    subnet.write_text(json.dumps({"widths": widths | removed | narrow}))
    options = ["--nncf-config", space, "--subnet", subnet, "--weight-format", "int4_sym", "--no-verify"]
    return exported(folder, base, *options)


if __name__ == "__main__":
    main()
