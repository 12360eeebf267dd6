"""Study: what a smaller vocabulary costs on a task, without training after the trimming.

    python benchmarks/vocabulary.py LORA --model BASE --data train.jsonl --test test.jsonl --sizes 32768 65536 \\
        --metric exact-match --work DIR --output FILE.json

The base is trimmed by --data, the LoRA is exported on it to INT8, and answers the test prompts. Differences from the whole
vocabulary are paired. TPOT is that of INT4 files, interleaved in one run of `bench`. A stopped study continues from --work.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from study import conditions, exported, lonas_edge, timed

from lonas_edge.network.source import open_source
from lonas_edge.vocabulary.model_vocabulary import ModelVocabulary


def main() -> None:
    """Trim, export, evaluate and time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lora", type=Path)
    for name in ("--model", "--data", "--test", "--work", "--output"):
        parser.add_argument(name, type=Path, required=True)
    parser.add_argument("--sizes", type=int, nargs="+", required=True)
    parser.add_argument("--metric", default="exact-match")
    parser.add_argument("--limit", type=int, default=700, help="test prompts")
    parser.add_argument("--rounds", type=int, default=12)
    arguments = parser.parse_args()
    work: Path = arguments.work
    opened = ModelVocabulary(open_source(str(arguments.model)), arguments.data)
    costs = {each.tokens: each for each in opened.sizes()}
    bases = {"whole": arguments.model}
    for size in arguments.sizes:
        bases[str(size)] = work / f"base-{size}"
        if not bases[str(size)].exists():
            options = ["--data", arguments.data, "--vocabulary", size]
            lonas_edge("trim", arguments.model, *options, "--output", bases[str(size)])
    rows: dict[str, dict[str, Any]] = {"whole": {"tokens": opened.rows}}
    rows |= {str(size): {"tokens": size, "tokens_per_text": costs[size].tokens_per_text} for size in arguments.sizes}
    files = {}
    for form in ("int8", "int4_sym"):
        options = ["--weight-format", form, "--no-verify"]
        files[form] = {
            name: exported(work / f"{form}-{name}", arguments.lora, "--model", base, *options) for name, base in bases.items()
        }
    if not (work / "eval").exists():
        options = ["--data", arguments.test, "--metric", arguments.metric, "--limit", arguments.limit]
        lonas_edge("eval", *files["int8"].values(), *options, "--output", work / "eval")
    report = json.loads((work / "eval" / "eval.json").read_text())
    names = {target["name"]: name for name, target in zip(files["int8"], report["targets"], strict=True)}
    for target in report["targets"]:
        rows[names[target["name"]]]["percent"] = target["tasks"][0]["accuracy"]
    for row in report["differences"]:
        if row["scope"] == arguments.metric:
            rows[names[row["target"]]]["accuracy"] = {"value": row["points"], "low": row["low"], "high": row["high"]}
    for name, row in timed(files["int4_sym"], work / "bench", arguments.rounds).items():
        rows[name] |= row
    arguments.output.write_text(json.dumps({"conditions": conditions(), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
