"""Fuzz every command with mutated and hostile files; `tests/fuzz` has the mutators and the judge.

    python benchmarks/fuzz.py --seed 7 --cases 1000 --output benchmarks/results/fuzz.json
    python benchmarks/fuzz.py --seed 7 --case 13 --verbose              one case, its directory kept

Each case runs in a forked child, on one thread; `--jobs` cases run at a time.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
os.environ |= {"CUDA_VISIBLE_DEVICES": "", "TOKENIZERS_PARALLELISM": "false", "TQDM_DISABLE": "1"}
os.environ.setdefault("MPLBACKEND", "agg")
ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests/fuzz")]

from runner import import_all, run_in_jobs  # noqa: E402 - numpy counts threads when it is imported

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


def prepared(work: Path) -> Path:
    """The directory of the original files, made if it is not there."""
    from inputs import make_inputs

    originals = work / "originals"
    if not (originals / "bert/ir").exists():
        print(f"making the original files in {originals}", file=sys.stderr)
        originals.mkdir(parents=True)
        make_inputs(originals)
    return originals


def main() -> None:
    options = _options()
    start = time.monotonic()
    import_all()
    from cases import Cases
    from commands import COMMANDS

    work = Path(options.work or tempfile.mkdtemp(prefix="fuzz-")).resolve()
    names = options.only.split(",") if options.only else list(COMMANDS)
    originals = prepared(work)
    if options.case is not None:
        result, ran = Cases(originals, work / "cases", names).run(options.seed, options.case, keep=True)
        print(result)
        if options.verbose:
            print(f"exit code {ran.code}, {ran.seconds:.1f} s, in {work / 'cases'}")
            print(f"--- stdout\n{ran.out[-3000:]}\n--- stderr\n{ran.err[-6000:]}")
        raise SystemExit(result.outcome not in ("refused", "right"))

    def run(folder: Path, numbers: Sequence[int]) -> list[Any]:
        cases, results = Cases(originals, folder, names), []
        for number in numbers:
            result, _ = cases.run(options.seed, number, keep=options.keep)
            results.append(result)
            if options.verbose or result.outcome not in ("refused", "right"):
                print(result, flush=True)
        return results

    results = run_in_jobs(range(options.first, options.first + options.cases), options.jobs, work / "cases", run)
    summary = _summary(results, options.seed, time.monotonic() - start)
    print(f"seed {summary['seed']}, {summary['cases']} cases, {summary['seconds']} s: {summary['outcomes']}")
    for what in ("by_command", "by_file"):
        for name, counts in summary[what].items():
            print(f"  {name:32} {', '.join(f'{count} {outcome}' for outcome, count in counts.items())}")
    if options.output:
        Path(options.output).write_text(json.dumps(summary, indent=1) + "\n")
    raise SystemExit(bool(summary["failures"]))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="cases that run at a time")
    parser.add_argument("--case", type=int, help="run this case alone and keep its directory")
    parser.add_argument("--only", help="commands, comma-separated")
    parser.add_argument("--work", help="directory for the files; the original ones are reused; default: a temporary one")
    parser.add_argument("--keep", action="store_true", help="keep the directories of the cases")
    parser.add_argument("--verbose", action="store_true")
    parser.add_argument("--output", help="JSON file to write")
    return parser.parse_args()


def _summary(results: list[Any], seed: int, seconds: float) -> dict[str, Any]:
    from judge import OUTCOMES

    from lonas_edge.bench.machine import describe
    from lonas_edge.versions import versions

    def table(name_of: Callable[[Any], str]) -> dict[str, Counter[str]]:
        rows: dict[str, Counter[str]] = {}
        for result in results:
            rows.setdefault(name_of(result), Counter())[result.outcome] += 1
        return dict(sorted(rows.items()))

    counts = Counter(result.outcome for result in results)
    return {
        "seed": seed,
        "cases": len(results),
        "outcomes": {outcome: counts[outcome] for outcome in OUTCOMES},
        "by_command": table(lambda result: result.command),
        "by_file": table(lambda result: Path(result.file).name),
        "by_mutator": table(lambda result: result.mutation.partition(":")[0]),
        "failures": [vars(result) for result in results if result.outcome not in ("refused", "right")],
        "seconds": round(seconds, 1),
        "versions": versions(PACKAGES),
        "processor": describe("CPU")["processor"],
    }


if __name__ == "__main__":
    main()
