"""Which draft for speculative decoding? Sub-networks of one super-adapter beside a main model, by what is accepted and gained.

    python benchmarks/draft_study.py SUPER_ADAPTER --data PROMPTS.json --work DIR \\
        --output benchmarks/results/draft_study.json

Exports the main sub-network (--subnet, --weight-format) with each draft (--drafts) in each format (--formats), and runs
`lonas-edge bench --arms draft` on each pair: k tokens ahead (--ahead) in one run beside the main model alone, on prompts of
PROMPTS.json, which the super-adapter should not have been trained on. A draft is minimal, heuristic, a sub-network file, deep:
the heuristic widths, and every block left out that the search space lets; or the directory of an adapter that `train --from`
trained for one sub-network. What is measured is put beside the formula of
Leviathan et al. 2023 (arXiv:2211.17192). A pair whose report is in --work is not measured again.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from lonas_edge.bench.machine import describe
from lonas_edge.bench.report import Report
from lonas_edge.bench.speculation import Speculation
from lonas_edge.exporting.exported import open_exported
from lonas_edge.formats import DEFAULT_FORMAT, FORMATS
from lonas_edge.network.source import Source, open_source
from lonas_edge.versions import versions

PACKAGES = ("lonas-edge", "openvino", "openvino-genai", "nncf", "torch", "transformers")
DEEP = "deep"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", help="SOURCE of `lonas-edge export`")
    parser.add_argument("--model", help="as of `lonas-edge export`")
    parser.add_argument("--nncf-config", type=Path, help="as of `lonas-edge export`")
    parser.add_argument("--data", type=Path, required=True, help="prompts, as of `lonas-edge bench`")
    parser.add_argument("--work", type=Path, required=True, help="scratch directory; exports and reports are kept there")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--subnet", default="maximal", help="the main model")
    parser.add_argument("--weight-format", default=DEFAULT_FORMAT, help="of the main model")
    parser.add_argument("--drafts", default=f"minimal,heuristic,{DEEP}")
    parser.add_argument("--formats", default=f"int4,{DEFAULT_FORMAT}", help="of the drafts")
    parser.add_argument("--calibration", type=Path, help="as of `lonas-edge export`, of drafts whose format looks at data")
    parser.add_argument("--ahead", default="2,3,5", help="--num-assistant-tokens")
    parser.add_argument("--prompt-len", type=int, default=256)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=24)
    parser.add_argument("--starts", type=int, default=8)
    parser.add_argument("--no-verify", action="store_true", help="of the exports")
    return parser.parse_args()


def lonas_edge(*command: object) -> None:
    """Run the command line, its progress shown."""
    subprocess.run([sys.executable, "-m", "lonas_edge", *map(str, command)], check=True, stdout=subprocess.DEVNULL)


def drafts_of(arguments: argparse.Namespace, source: Source) -> dict[str, str]:
    """What `--draft` is given, by the name of each draft; `deep` is written as a file, where the space has blocks."""
    found = {Path(name).stem if Path(name).exists() else name: name for name in arguments.drafts.split(",")}
    blocks = [group.kind == "block" for group in source.space.groups]
    if DEEP in found and found[DEEP] == DEEP:
        del found[DEEP]
        if any(blocks):
            heuristic = source.select("heuristic").widths
            widths = [0 if block else width for block, width in zip(blocks, heuristic, strict=True)]
            file = arguments.work / f"{DEEP}.json"
            file.write_text(json.dumps({"widths": widths, "name": DEEP}))
            found[DEEP] = str(file)
        else:
            print("no blocks in the search space: there is no deep cut")
    return found


def measure(arguments: argparse.Namespace, name: str, draft: str, weight_format: str) -> Report:
    """Export a pair and measure it."""
    folder = arguments.work / f"{name}-{weight_format}"
    report = arguments.work / f"{folder.name}-bench"
    if not (report / "bench.json").exists() or Report.read(report / "bench.json").interrupted:
        made = ["--model", arguments.model] if arguments.model else []
        made += ["--nncf-config", arguments.nncf_config] if arguments.nncf_config else []
        made += ["--no-verify"] if arguments.no_verify else []
        looks = arguments.calibration and FORMATS[weight_format].group_sizes
        looked = ["--calibration", arguments.calibration] if looks else []
        main = ["--subnet", arguments.subnet, "--weight-format", arguments.weight_format, "--output", folder, "--overwrite"]
        beside = ["--draft", draft, "--draft-format", weight_format, *looked]
        if Path(draft).is_dir():
            own = arguments.work / f"{name}-{weight_format}-draft"
            lonas_edge("export", draft, *looked, "--weight-format", weight_format, "--output", own, "--overwrite")
            beside = ["--draft", own]
        lonas_edge("export", arguments.source, *made, *main, *beside)
        lengths = ["--prompt-len", arguments.prompt_len, "--new-tokens", arguments.new_tokens]
        often = ["--rounds", arguments.rounds, "--starts", arguments.starts, "--warmup", 1, "--no-memory"]
        asked = ["--arms", "draft", "--num-assistant-tokens", arguments.ahead, "--data", arguments.data]
        lonas_edge("bench", folder, *asked, *lengths, *often, "--output", report, "--overwrite")
    return Report.read(report / "bench.json")


def summary(found: Report, one: Speculation) -> dict[str, Any]:
    """What is kept of one pair and number of tokens ahead."""
    (tpot,) = (row.tpot.p50 for row in found.rows if row.arm == "subnet" and row.tpot)
    (ttft,) = (c.speedup for c in found.comparisons if c.arm == one.arm and c.metric == "ttft")
    gain = one.measured
    return {
        "ahead": one.assistant_tokens,
        "accepted": one.acceptance_rate,
        "acceptance": one.acceptance,
        "tokens_per_pass": one.tokens_per_pass,
        "draft_cost": one.draft_cost,
        "pass_cost": one.pass_cost,
        "predicted": one.predicted,
        "tpot": {"subnet_ms": tpot, "speedup": gain.ratio, "low": gain.low, "high": gain.high},
        "ttft_times": ttft.ratio,
        "texts": vars(one.texts),
        "texts_fp32": vars(one.exact) if one.exact else None,
    }


def main() -> None:
    arguments = parse()
    arguments.work.mkdir(parents=True, exist_ok=True)
    os.environ["XDG_CACHE_HOME"] = str(arguments.work.resolve() / "cache")
    source = open_source(arguments.source, arguments.model, arguments.nncf_config, weights=False)
    pairs, common = [], None
    for name, draft in drafts_of(arguments, source).items():
        for weight_format in arguments.formats.split(","):
            found = measure(arguments, name, draft, weight_format)
            manifest = open_exported(arguments.work / f"{name}-{weight_format}").own_manifest
            ahead = [summary(found, one) for one in found.speculations]
            warnings = list(found.warnings) + [failure.reason for failure in found.failures]
            pairs.append({**vars(manifest.draft), "load": dict(found.load), "warnings": warnings, "ahead": ahead})
            common = {name: found.conditions[name] for name in ("prompts", "schedule", "threads")}
            common |= {"base": manifest.base.name, "subnet": manifest.subnetwork.name, "weight_format": manifest.weight_format}
            common |= {"calibration": arguments.calibration.name if arguments.calibration else None}
            common |= {"parameters": manifest.sizes.subnetwork.parameters, "new_tokens": arguments.new_tokens}
            for one in ahead:
                told = "" if one["predicted"] is None else f"{one['predicted']:.2f} x by the formula, "
                tpot = one["tpot"]
                ends = "" if tpot["low"] is None else f" [{tpot['low']:.2f}, {tpot['high']:.2f}]"
                print(
                    f"{name}, {weight_format}, k = {one['ahead']}: accepted {one['accepted'] or 0:.0%}, "
                    f"{one['tokens_per_pass']:.2f} tokens a pass, c = {one['draft_cost']:.2f}, {told}"
                    f"TPOT {tpot['speedup']:.2f} x{ends}, "
                    f"texts {one['texts']['equal']}/{one['texts']['compared']}",
                    flush=True,
                )
    every = [{"draft": pair["subnetwork"], "format": pair["weight_format"], **one} for pair in pairs for one in pair["ahead"]]
    best = max(every, key=lambda one: one["tpot"]["speedup"])
    print(f"best: {best['draft']}, {best['format']}, k = {best['ahead']}: TPOT {best['tpot']['speedup']:.2f} x")
    conditions = {**describe("CPU"), "versions": versions(PACKAGES), **(common or {})}
    report = {"conditions": conditions, "pairs": pairs, "best": {name: best[name] for name in ("draft", "format", "ahead")}}
    if arguments.output:
        partial = arguments.output.with_suffix(".partial")
        partial.write_text(json.dumps(report, indent=1) + "\n")
        shutil.move(partial, arguments.output)


if __name__ == "__main__":
    main()
