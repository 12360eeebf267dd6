"""Study: what to remove. Sub-networks of equal TPOT, from spaces of several kinds, after the same short recovery.

    python benchmarks/blocks.py LORA --model BASE --data train.jsonl --eval-data held_out.jsonl \\
        --bounds 0.85 0.7 --steps 30 --work DIR --output FILE.json

Every kind is searched by KL and the TPOT of INT4 files. The network under each bound, relative to the unpruned INT4 model, is
recovered for --steps steps; the result is its loss on held-out examples. `none` is the unpruned model with the same steps.
`layer` removes whole layers greedily by KL. `widths` offers MLP widths, `all` these and blocks, as `compress` does. A stopped
study continues from --work.
"""

import argparse
import json
import subprocess
from pathlib import Path
from typing import Any

import torch
from study import conditions, lonas_edge

from lonas_edge.data.registry import open_data
from lonas_edge.network.source import open_source
from lonas_edge.network.super_network import load_super_network
from lonas_edge.network.tokenizer import require_tokenizer
from lonas_edge.search import LATENCY
from lonas_edge.search.cost import CostSettings
from lonas_edge.search.latency_table import LatencyTable, predicted_cost

RATIOS = "1,0.75,0.5,0.25"
KINDS = {
    "attention": ["--depth", "attention", "--ratios", "1"],
    "mlp": ["--depth", "mlp", "--ratios", "1"],
    "mixed": ["--depth", "attention,mlp", "--ratios", "1"],
    "layer": ["--depth", "attention,mlp", "--ratios", "1"],  # both blocks of a layer at once; needs the search of `mixed`
    "widths": ["--ratios", RATIOS],
    "all": ["--depth", "attention,mlp", "--ratios", RATIOS],
}
ENDINGS = {"attention": ".self_attn", "mlp": ".mlp"}
PROMPTS, LAYER_PROMPTS = 32, 8  # of a search; of the removal of layers


def main() -> None:
    """Search and recover all kinds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lora", type=Path)
    for name in ("--model", "--data", "--eval-data", "--work", "--output"):
        parser.add_argument(name, type=Path, required=True)
    parser.add_argument("--bounds", nargs="+", required=True)
    parser.add_argument("--kinds", nargs="+", default=list(KINDS))
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--micro-batch-size", type=int, default=16)
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--prompts", type=int, default=PROMPTS, help="of a search")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    rows: dict[str, dict[str, Any]] = {}
    for kind in arguments.kinds:
        space, search = prepared(kind, arguments)
        picks = {bound: search / "subnetworks" / f"tpot-{bound}x.json" for bound in arguments.bounds}
        if not rows:
            rows["none"] = {"kind": "none", "losses": recovered("none", space, "maximal", arguments)}
        for bound, pick in picks.items():
            if not pick.exists():
                continue  # no network of this kind is as fast
            name = f"{kind}-{bound}"
            rows[name] = {"kind": kind, "bound": float(bound), "losses": recovered(name, space, pick, arguments)}
            rows[name] |= described(pick, search)
            print(name, rows[name], flush=True)
    result = {"conditions": conditions(), "steps": arguments.steps, "seed": arguments.seed, "rows": rows}
    arguments.output.write_text(json.dumps(result, indent=1) + "\n")


def prepared(kind: str, arguments: argparse.Namespace) -> tuple[Path, Path]:
    """The space of a kind, and its search."""
    space, lora, search = arguments.work / f"{kind}.json", arguments.lora, arguments.work / f"search-{kind}"
    model, data = ["--model", arguments.model], ["--data", arguments.data] if RATIOS in KINDS[kind] else []
    if not space.exists():
        lonas_edge("space", "--adapter", lora, *model, *KINDS[kind], *data, "--output", space)
    if kind == "layer":
        remove_layers(search / "subnetworks", space, arguments)
    elif not (search / "search.json").exists():
        bounds = sorted(arguments.bounds, key=float, reverse=True)
        options = ["--data", arguments.eval_data, "--num-samples", arguments.prompts, "--weight-format", "int4_sym"]
        options += ["--nncf-config", space, "--evals", 480, "--seed", arguments.seed]
        while not (search / "search.json").exists():
            picks = [part for bound in bounds for part in ("--pick", f"tpot={bound}x")]
            try:
                lonas_edge("search", lora, *model, *options, *picks, "--output", search)
            except subprocess.CalledProcessError:
                if len(bounds) == 1:
                    raise
                bounds.pop()  # no network of this kind is as fast
    return space, search


def remove_layers(folder: Path, space: Path, arguments: argparse.Namespace) -> None:
    """Remove the layer whose KL is lowest, given those removed, until the predicted TPOT meets each bound."""
    if folder.exists():
        return
    source = open_source(str(arguments.lora), str(arguments.model), space)
    table = LatencyTable.from_json(json.loads((arguments.work / "search-mixed" / LATENCY).read_text()), "the search of `mixed`")
    cost = predicted_cost("tpot", source, CostSettings("int4_sym"), table.curves)
    data = open_data(arguments.eval_data, source.architecture, None, record=source.prompt_record)
    tokenizer = require_tokenizer(source.base.folder, "a search")
    batches = data.batches(tokenizer, LAYER_PROMPTS, arguments.seed)
    network = load_super_network(source, torch.bfloat16)
    reference, whole = network.reference(batches), source.select("maximal")
    names, chosen = list(whole.by_group), list(whole.widths)
    left = sorted({name.rpartition(".")[0] for name in names if name.endswith((".mlp", ".self_attn"))})

    def without(layer: str) -> tuple[int, ...]:
        removed = {f"{layer}.mlp", f"{layer}.self_attn"}
        return tuple(0 if name in removed else width for name, width in zip(names, chosen, strict=True))

    made = folder.with_suffix(".new")
    made.mkdir(parents=True, exist_ok=True)
    for bound in sorted(arguments.bounds, key=float, reverse=True):
        while cost(chosen) > float(bound) * cost(whole.widths):
            scores = network.kl([without(layer) for layer in left], batches, reference)
            best = min(zip(scores, left, strict=True))[1]
            chosen = list(without(best))
            left.remove(best)
        (made / f"tpot-{bound}x.json").write_text(json.dumps({"widths": dict(zip(names, chosen, strict=True))}))
    made.rename(folder)


def described(pick: Path, search: Path) -> dict[str, Any]:
    """The numbers of removed blocks, and the search's KL and cost of a pick, if a search made it."""
    widths = json.loads(pick.read_text())["widths"]
    removed = {kind: sum(name.endswith(end) and not width for name, width in widths.items()) for kind, end in ENDINGS.items()}
    if not (search / "search.json").exists():
        return removed
    record = json.loads((search / "search.json").read_text())
    number = next(each["evaluation"] for each in record["picks"] if each["file"] == pick.stem)
    unpruned = next(each["evaluation"] for each in record["named"] if each["name"] == "maximal")
    chosen, whole = (record["evaluations"][index] for index in (number, unpruned))
    return {**removed, "kl": chosen["quality"], "tpot": chosen["cost"] / whole["cost"]}


def recovered(name: str, space: Path, subnet: object, arguments: argparse.Namespace) -> list[tuple[int, float]]:
    """Recover a network in INT4; return its losses on the held-out examples, by step."""
    adapter = arguments.work / f"{name}-adapter"
    if not adapter.exists():
        options = ["--model", arguments.model, "--nncf-config", space, "--teacher", arguments.lora]
        options += ["--data", arguments.data, "--eval-data", arguments.eval_data, "--weight-format", "int4_sym"]
        options += ["--dtype", "bf16", "--steps", arguments.steps, "--seed", arguments.seed, "--overwrite"]
        options += ["--micro-batch-size", arguments.micro_batch_size]
        lonas_edge("train", "--from", arguments.lora, "--subnet", subnet, *options, "--output", adapter)
    record = json.loads((adapter / "training.json").read_text())
    return [(each["step"], each["loss"]) for each in record["eval_data"]["losses"]]


if __name__ == "__main__":
    main()
