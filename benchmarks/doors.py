"""Damaged and hostile inputs to every command: refused with the file named, or right, or a fault. `tests/doors` has the rules.

    python benchmarks/doors.py --seed 7 --cases 1000 --output benchmarks/results/doors.json
    python benchmarks/doors.py --seed 7 --case 13 --verbose             one case alone, its directory kept

Cases run one after another in forked children of this process, on one thread.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
os.environ |= {"CUDA_VISIBLE_DEVICES": "", "TOKENIZERS_PARALLELISM": "false", "TQDM_DISABLE": "1"}
os.environ.setdefault("MPLBACKEND", "agg")
ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests/doors")]

from runner import import_all  # noqa: E402 - threads are counted when numpy is imported

PACKAGES = (
    "lonas-edge",
    "torch",
    "transformers",
    "peft",
    "safetensors",
    "openvino",
    "openvino-genai",
    "optimum-intel",
    "lm-eval",
)


def main() -> None:
    options = _options()
    start = time.monotonic()
    import_all()
    from suite import Suite
    from world import COMMANDS, make_world

    work = Path(options.work or tempfile.mkdtemp(prefix="doors-")).resolve()
    world = work / "world"
    if not world.exists():
        print(f"making the undamaged files in {world}", file=sys.stderr)
        world.mkdir(parents=True)
        make_world(world)
    names = options.only.split(",") if options.only else list(COMMANDS)
    suite = Suite(world, work / "cases", names)
    print(f"ready after {time.monotonic() - start:.0f} s", file=sys.stderr)
    if options.case is not None:
        result, ran = suite.run(options.seed, options.case, keep=True)
        print(result.shown())
        if options.verbose:
            print(f"exit code {ran.code}, {ran.seconds:.1f} s, in {work / 'cases'}")
            print(f"--- stdout\n{ran.out[-3000:]}\n--- stderr\n{ran.err[-6000:]}")
        raise SystemExit(result.outcome not in ("refused", "right"))
    results = []
    for number in range(options.first, options.first + options.cases):
        result, _ = suite.run(options.seed, number, keep=options.keep)
        results.append(result)
        if options.verbose or result.outcome not in ("refused", "right"):
            print(result.shown(), flush=True)
        if options.seconds and time.monotonic() - start > options.seconds:
            break
    summary = _summary(results, options.seed, time.monotonic() - start)
    _print(summary)
    if options.output:
        Path(options.output).write_text(json.dumps(summary, indent=1) + "\n")
    raise SystemExit(bool(summary["faults"]))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--case", type=int, help="this case alone, its directory kept")
    parser.add_argument("--only", help="commands, separated by commas")
    parser.add_argument("--seconds", type=float, help="end after the case that is under way then")
    parser.add_argument("--work", help="directory for the files; the undamaged ones are used again. Default: a temporary one")
    parser.add_argument("--keep", action="store_true", help="keep the cases' directories")
    parser.add_argument("--verbose", action="store_true")
    parser.add_argument("--output", help="JSON file to write")
    return parser.parse_args()


def _summary(results: list[Any], seed: int, seconds: float) -> dict[str, Any]:
    from judge import OUTCOMES

    from lonas_edge.versions import versions

    def table(key: str) -> dict[str, dict[str, int]]:
        rows: dict[str, Counter[str]] = {}
        for result in results:
            name = (
                Path(result.file).name
                if key == "file"
                else result.damage.partition(":")[0]
                if key == "mutator"
                else result.command
            )
            name = ".jsonl of answers" if result.file.startswith("cache/") and key == "file" else name
            rows.setdefault(name, Counter())[result.outcome] += 1
        return {name: {outcome: rows[name][outcome] for outcome in OUTCOMES if rows[name][outcome]} for name in sorted(rows)}

    counts = Counter(result.outcome for result in results)
    return {
        "seed": seed,
        "cases": len(results),
        "outcomes": {outcome: counts[outcome] for outcome in OUTCOMES},
        "by_command": table("command"),
        "by_file": table("file"),
        "by_mutator": table("mutator"),
        "faults": [vars(result) for result in results if result.outcome not in ("refused", "right")],
        "seconds": round(seconds, 1),
        "versions": versions(PACKAGES),
        "processor": _processor(),
    }


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(": ")[2]
    return "unknown"


def _print(summary: dict[str, Any]) -> None:
    print(f"seed {summary['seed']}, {summary['cases']} cases, {summary['seconds']} s: {summary['outcomes']}")
    for what in ("by_command", "by_file"):
        for name, counts in summary[what].items():
            print(f"  {name:32} {', '.join(f'{count} {outcome}' for outcome, count in counts.items())}")


if __name__ == "__main__":
    main()
