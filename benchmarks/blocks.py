"""Study: what to remove. Sub-networks of equal TPOT, from spaces of several kinds, after the same short recovery.

    python benchmarks/blocks.py LORA --model BASE --data train.jsonl --eval-data held_out.jsonl --test test.jsonl \\
        --bounds 0.85 0.7 --steps 30 --work DIR --output FILE.json

Every kind is searched by KL and the TPOT of INT4 files. The network under each bound, relative to the unpruned INT4 model, is
recovered for --steps steps, exported to INT4, and answers the test prompts. `none` is the unpruned model with the same steps.
`layer` removes whole layers greedily by KL. `widths` orders the MLPs' channels by importance first, as `train` does.
Differences are from the unpruned LoRA in INT8, paired. Exports are timed interleaved in one run of `bench`. A stopped study
continues from --work.
"""

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from study import conditions, exported, lonas_edge, timed

from lonas_edge.data.registry import open_data
from lonas_edge.network.channel_order import by_importance
from lonas_edge.network.modeling import load_model
from lonas_edge.network.source import open_source
from lonas_edge.network.super_network import load_super_network
from lonas_edge.network.tokenizer import require_tokenizer
from lonas_edge.search import LATENCY
from lonas_edge.search.cost import CostSettings
from lonas_edge.search.latency_table import LatencyTable, predicted_cost

KINDS = {
    "attention": ["--depth", "attention", "--ratios", "1"],
    "mlp": ["--depth", "mlp", "--ratios", "1"],
    "mixed": ["--depth", "attention,mlp", "--ratios", "1"],
    "layer": ["--depth", "attention,mlp", "--ratios", "1"],  # both blocks of a layer at once; needs the search of `mixed`
    "widths": ["--ratios", "1,0.875,0.75,0.625,0.5,0.375,0.25"],
}
PROMPTS, LAYER_PROMPTS, CALIBRATION = 32, 8, 64  # of a search; of the removal of layers; to order channels


def main() -> None:
    """Search, recover, export, evaluate and time all kinds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lora", type=Path)
    for name in ("--model", "--data", "--eval-data", "--test", "--work", "--output"):
        parser.add_argument(name, type=Path, required=True)
    parser.add_argument("--bounds", nargs="+", required=True)
    parser.add_argument("--kinds", nargs="+", default=list(KINDS))
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--micro-batch-size", type=int, default=16)
    parser.add_argument("--limit", type=int, default=700, help="test prompts")
    parser.add_argument("--metric", default="exact-match")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--prompts", type=int, default=PROMPTS, help="of a search")
    arguments = parser.parse_args()
    work: Path = arguments.work
    work.mkdir(parents=True, exist_ok=True)
    networks = {
        "INT8": exported(work / "int8", arguments.lora, "--model", arguments.model, "--weight-format", "int8", "--no-verify")
    }
    rows: dict[str, dict[str, Any]] = {"INT8": {"kind": "INT8"}}
    for kind in arguments.kinds:
        lora, space, search = prepared(kind, arguments)
        picks = {bound: search / "subnetworks" / f"tpot-{bound}x.json" for bound in arguments.bounds}
        if kind == arguments.kinds[0]:
            rows["none"] = {"kind": "none"}
            networks["none"] = recovered(work / "none", lora, space, "maximal", arguments)
        for bound, pick in picks.items():
            if not pick.exists():
                continue  # no network of this kind is as fast
            name = f"{kind}-{bound}"
            rows[name] = {"kind": kind, "bound": float(bound), **({} if kind == "layer" else figures(pick, search))}
            networks[name] = recovered(work / name, lora, space, pick, arguments)
            print(name, rows[name], flush=True)
    if not (work / "eval").exists():
        options = ["--data", arguments.test, "--metric", arguments.metric, "--limit", arguments.limit]
        lonas_edge("eval", *networks.values(), *options, "--output", work / "eval")
    report = json.loads((work / "eval" / "eval.json").read_text())
    names = {target["name"]: name for name, target in zip(networks, report["targets"], strict=True)}
    for target in report["targets"]:
        rows[names[target["name"]]]["percent"] = target["tasks"][0]["accuracy"]
    for row in report["differences"]:
        if row["scope"] == arguments.metric:
            rows[names[row["target"]]]["accuracy"] = {"value": row["points"], "low": row["low"], "high": row["high"]}
    for name, row in timed(networks, work / "bench", arguments.rounds).items():
        rows[name] |= row
    result = {"conditions": conditions(), "steps": arguments.steps, "seed": arguments.seed, "rows": rows}
    arguments.output.write_text(json.dumps(result, indent=1) + "\n")


def prepared(kind: str, arguments: argparse.Namespace) -> tuple[Path, Path, Path]:
    """The LoRA of a kind, its space and its search."""
    space, lora, search = arguments.work / f"{kind}.json", arguments.lora, arguments.work / f"search-{kind}"
    model = ["--model", arguments.model]
    if not space.exists():
        lonas_edge("space", "--adapter", lora, *model, *KINDS[kind], "--output", space)
    if kind == "widths":
        lora = arguments.work / "lora-by-importance"
        if not lora.exists():
            order_channels(lora, space, arguments)
    if kind == "layer":
        remove_layers(search / "subnetworks", space, arguments)
    elif not (search / "search.json").exists():
        picks = [part for bound in arguments.bounds for part in ("--pick", f"tpot={bound}x")]
        options = [
            "--data",
            arguments.eval_data,
            "--num-samples",
            arguments.prompts,
            "--weight-format",
            "int4_sym",
            "--seed",
            arguments.seed,
        ]
        evals = 60 if kind == "widths" else 240
        lonas_edge("search", lora, *model, "--nncf-config", space, *options, "--evals", evals, *picks, "--output", search)
    return lora, space, search


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


def order_channels(folder: Path, space: Path, arguments: argparse.Namespace) -> None:
    """Copy the LoRA with an order of its channels by importance in the merged model."""
    merged = exported(
        arguments.work / "merged", arguments.lora, "--model", arguments.model, "--stage", "checkpoint", "--no-verify"
    )
    source = open_source(str(arguments.lora), str(arguments.model), space)
    model = load_model(source.architecture, merged, torch.float32)
    data = open_data(arguments.data, source.architecture, None, record=source.prompt_record)
    prompts = data.prompts(range(CALIBRATION), require_tokenizer(merged, "calibration"), 1024)
    order = by_importance(model, source.elasticity, prompts)
    shutil.copytree(arguments.lora, folder.with_suffix(".new"))
    order.save(folder.with_suffix(".new"))
    folder.with_suffix(".new").rename(folder)


def figures(pick: Path, search: Path) -> dict[str, Any]:
    """The search's figures of a pick, and the number of blocks or widths that differ from the unpruned network's."""
    record = json.loads((search / "search.json").read_text())
    number = next(each["evaluation"] for each in record["picks"] if each["file"] == pick.stem)
    evaluations = record["evaluations"]
    changed = sum(map(int.__ne__, evaluations[number]["widths"], evaluations[0]["widths"]))
    return {**{key: value for key, value in evaluations[number].items() if key not in ("number", "widths")}, "changed": changed}


def recovered(folder: Path, lora: Path, space: Path, subnet: object, arguments: argparse.Namespace) -> Path:
    """Recover a network in INT4, and export it."""
    adapter, ir = folder.with_name(f"{folder.name}-adapter"), folder
    model = ["--model", arguments.model, "--nncf-config", space]
    if not adapter.exists():
        options = ["--teacher", arguments.lora, "--data", arguments.data, "--eval-data", arguments.eval_data]
        options += ["--weight-format", "int4_sym", "--dtype", "bf16", "--steps", arguments.steps, "--seed", arguments.seed]
        options += ["--micro-batch-size", arguments.micro_batch_size, "--overwrite"]
        lonas_edge("train", "--from", lora, *model, "--subnet", subnet, *options, "--output", adapter)
    return exported(ir, adapter, "--model", arguments.model, "--weight-format", "int4_sym", "--no-verify")


if __name__ == "__main__":
    main()
