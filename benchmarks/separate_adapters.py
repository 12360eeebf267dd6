"""Three adapters on one base (`export --adapter separate`) next to three merged exports: disk, memory, TPOT.

    python benchmarks/separate_adapters.py --work models/bench

SmolLM2-135M with synthetic adapters of rank 32 and of rank 8, INT8, the heuristic sub-network. Memory is the peak RSS of a
process of openvino_genai that answers with each adapter in turn: with one pipeline, or with one for each merged export. TPOT is
measured in one process, in turns: 64 tokens; the median, and the median ratio to the merged export in the same round.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from study import conditions, lonas_edge
from synthetic_adapter import write_adapter

ROOT = Path(__file__).parent.parent
COUNT, TOKENS = 3, 64
PROMPT = "The sun is a star, and the planets are"


def pipelines(kind: str, folder: Path) -> list[Any]:
    """One function for each adapter, from a round to the TPOT in milliseconds."""
    import openvino_genai as genai

    scheduler = genai.SchedulerConfig()
    config = genai.GenerationConfig(max_new_tokens=TOKENS, ignore_eos=True, apply_chat_template=False)

    def tpot(pipe: Any, **options: Any) -> float:
        return float(pipe.generate([PROMPT], config, **options).perf_metrics.get_tpot().mean)

    if kind == "merged":
        pipes = [genai.LLMPipeline(folder / f"merged-{n}", "CPU", scheduler_config=scheduler) for n in range(COUNT)]
        return [lambda pipe=pipe: tpot(pipe) for pipe in pipes]
    adapters = [genai.Adapter(folder / f"separate/adapters/adapter-{n}.safetensors") for n in range(COUNT)]
    mode = genai.AdapterConfig.Mode.MODE_STATIC if kind == "static" else genai.AdapterConfig.Mode.MODE_DYNAMIC
    used = genai.AdapterConfig(adapters[:1] if kind == "static" else adapters, mode)
    pipe = genai.LLMPipeline(folder / "separate", "CPU", scheduler_config=scheduler, adapters=used)
    if kind == "static":
        return [lambda: tpot(pipe)]
    return [lambda adapter=adapter: tpot(pipe, adapters=genai.AdapterConfig(adapter)) for adapter in adapters]


def peak(kind: str, folder: Path) -> int:
    """Peak RSS in bytes of a new process that answers with each adapter."""
    code = (
        "import sys; from pathlib import Path; sys.path.insert(0, sys.argv[1]); import separate_adapters as s;"
        "[ask() for ask in s.pipelines(sys.argv[2], Path(sys.argv[3]))];"
        "from lonas_edge.processes import peak_memory; print(peak_memory())"
    )
    command = [sys.executable, "-c", code, str(Path(__file__).parent), kind, str(folder)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def latency(folder: Path, rounds: int) -> dict[str, Any]:
    """Median TPOT, and median ratio to the merged export in the same round."""
    asks = {kind: pipelines(kind, folder)[0] for kind in ("merged", "dynamic", "static")}
    for ask in asks.values():
        ask()
    times = [{kind: ask() for kind, ask in asks.items()} for _ in range(rounds)]
    ratios = {kind: statistics.median(each[kind] / each["merged"] for each in times) for kind in asks}
    return {"tpot_ms": {kind: statistics.median(each[kind] for each in times) for kind in asks}, "ratio": ratios}


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def study(folder: Path, base: Path, rank: int, rounds: int, *flags: str) -> dict[str, Any]:
    """Export and measure adapters of a rank."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    separate, merged = folder / "separate", [folder / f"merged-{number}" for number in range(COUNT)]
    for number, output in enumerate(merged):
        adapter, space = folder / f"adapter-{number}", folder / "space.json"
        write_adapter(base, adapter, rank, 2 * rank, seed=number)
        if not number:
            lonas_edge("space", "--adapter", adapter, "--model", base, "--output", space)
        source = adapter, "--model", base, "--nncf-config", space, "--subnet", "heuristic", *flags
        lonas_edge("export", *source, "--output", output)
        lonas_edge("export", *source, "--output", separate, "--adapter", "separate")
    manifests = [json.loads((each / "lonas_edge.json").read_text()) for each in (separate, *merged)]
    result = {
        "rank": rank,
        "bytes": {"merged": sum(map(size, merged)), "separate": size(separate), "adapters": size(separate / "adapters")},
        "peak_rss": {kind: peak(kind, folder) for kind in ("merged", "dynamic")},
    }
    if not flags:
        result["kl_separate"] = [each["parity"]["ir_adapter"]["mean_kl"] for each in manifests[0]["adapters"].values()]
        result["kl_merged"] = [manifest["parity"]["ir"]["mean_kl"] for manifest in manifests[1:]]
    return result | (latency(folder, rounds) if rounds else {})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="directory for the exports, which are kept")
    parser.add_argument("--base", type=Path, default=ROOT / "models/smollm2-135m")
    parser.add_argument("--ranks", type=int, nargs="+", default=[32, 8])
    parser.add_argument("--rounds", type=int, default=20, help="rounds of the TPOT; 0 for none")
    parser.add_argument("--no-verify", action="store_true", help="export without verification, which gives the KL")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    flags = ["--no-verify"] if arguments.no_verify else []
    results = [
        study(arguments.work / f"separate-rank-{rank}", arguments.base.resolve(), rank, arguments.rounds, *flags)
        for rank in arguments.ranks
    ]
    content = {"adapters": COUNT, "conditions": conditions(), "studies": results}
    print(json.dumps(content, indent=1))
    if arguments.output:
        arguments.output.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
