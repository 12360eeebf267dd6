"""The plane: right answers over time, of what stock tools make of a LoRA model and of what is found in a super-adapter.

    python benchmarks/plane.py LORA_ADAPTER --found DIR --found DIR … --datasets DIR --work DIR --output DIR

LORA_ADAPTER is merged and stored as stock tools do it: `optimum-cli export openvino` in INT8 and INT4, optimum-intel's
INT4 with AWQ and scale estimation, and with GPTQ, on --text, llama.cpp's Q8_0 and Q4_K_M (`pip install
'lonas-edge[llama-cpp]'`). The others are exported directories of sub-networks. All answer the same questions by `option-text`
(differences from stock INT8 are paired), and are measured in turn in one run of `bench`. llama.cpp ranks a few questions a
second; without --ask-gguf its files are measured alone. Finished steps are kept in --work, answers where `eval` keeps them.
"""

import argparse
import ctypes
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from accuracy_study import TASKS, lonas_edge

from lonas_edge.bench.machine import describe
from lonas_edge.evaluate.openvino_lm import OpenVinoLM
from lonas_edge.evaluate.protocols import PROTOCOLS
from lonas_edge.evaluate.ranking import Likelihood, Ranked
from lonas_edge.evaluate.run import EvalOptions, evaluate
from lonas_edge.evaluate.targets import RunOptions, Target, open_targets
from lonas_edge.network.tokenizer import load_tokenizer
from lonas_edge.versions import versions

PACKAGES = ("lonas-edge", "openvino", "openvino-genai", "optimum-intel", "nncf", "torch", "transformers", "llama-cpp-python")
STOCK = ("int8", "int4", "int4-awq", "int4-gptq")  # the first is what answers are compared with
DATA_AWARE = {  # optimum-intel's options
    "int4-awq": {"quant_method": "awq", "scale_estimation": True},
    "int4-gptq": {"sym": True, "gptq": True},
}
GGUF = ("Q8_0", "Q4_K_M")
TEXTS = 96  # that AWQ and scale estimation look at


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("lora", type=Path, help="a PEFT adapter that knows its base")
    parser.add_argument("--found", type=Path, action="append", default=[], help="an exported directory; may be repeated")
    parser.add_argument("--datasets", type=Path, required=True)
    parser.add_argument("--text", type=Path, required=True, help="instruction data that INT4 looks at: the training's own")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--stock", default=",".join(STOCK), help="of optimum; the first is what answers are compared with")
    parser.add_argument("--gguf", default=",".join(GGUF), help="of llama.cpp; nothing leaves it out")
    parser.add_argument("--ask-gguf", action="store_true", help="let llama.cpp answer, too")
    parser.add_argument("--limit", type=int, help="questions of each task; all when not given")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--starts", type=int, default=6)
    parser.add_argument("--only", choices=["answers"], help="stop after this step")
    return parser.parse_args()


def merged(lora: Path, work: Path) -> Path:
    """The LoRA model as a Hugging Face checkpoint."""
    folder = work / "merged"
    if not folder.exists():
        lonas_edge("export", lora, "--subnet", "maximal", "--stage", "checkpoint", "--dtype", "fp32", "--output", folder)
    return folder


def texts_of(file: Path) -> list[str]:
    """What INT4 looks at, as the training saw it."""
    rows = json.loads(file.read_text())
    step = max(1, len(rows) // TEXTS)
    return [f"Question: {row['instruction']}\nAnswer: {row['output']}" for row in rows[::step]][:TEXTS]


def stock_ir(name: str, checkpoint: Path, text: Path, work: Path) -> Path:
    """An IR as optimum-intel writes it."""
    folder = work / f"stock-{name}"
    if folder.exists():
        return folder
    if name in DATA_AWARE:
        from optimum.intel import OVModelForCausalLM, OVWeightQuantizationConfig

        looks_at = {"dataset": texts_of(text), "num_samples": TEXTS, "tokenizer": str(checkpoint)}
        config = OVWeightQuantizationConfig(bits=4, group_size=64, ratio=1.0, **looks_at, **DATA_AWARE[name])
        OVModelForCausalLM.from_pretrained(checkpoint, export=True, quantization_config=config).save_pretrained(folder)
        plain = stock_ir("int8", checkpoint, text, work)
        for file in [*plain.glob("openvino_*tokenizer.*"), *plain.glob("tokenizer*"), *plain.glob("*.jinja")]:
            (folder / file.name).write_bytes(file.read_bytes())
        return folder
    program = Path(sys.executable).parent / "optimum-cli"
    options = ["--task", "text-generation-with-past", "--weight-format", name]
    options += ["--group-size", "64"] if name == "int4" else []
    subprocess.run([program, "export", "openvino", "-m", checkpoint, *options, folder], check=True)
    return folder


def stock_gguf(name: str, lora: Path, work: Path) -> Path:
    """A GGUF file as llama.cpp's own quantization writes it."""
    import llama_cpp

    file, folder = work / f"stock.{name}.gguf", work / "gguf"
    if file.exists():
        return file
    if not folder.exists():
        lonas_edge("export", lora, "--subnet", "maximal", "--stage", "gguf", "--gguf-type", "f32", "--output", folder)
    (whole,) = folder.glob("*.gguf")
    options = llama_cpp.llama_model_quantize_default_params()
    options.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{name}")
    options.nthread = 2
    if llama_cpp.llama_model_quantize(str(whole).encode(), str(file).encode(), ctypes.byref(options)):
        raise SystemExit(f"{whole}: llama.cpp could not quantize it as {name}")
    return file


class GgufLM(OpenVinoLM):
    """A GGUF file in llama.cpp, asked as an IR is; it ranks alone."""

    def rank(self, batch: Sequence[Ranked]) -> list[list[Likelihood]]:
        """See `RankingLM`: a context is computed once, each continuation behind it."""
        import llama_cpp

        if self._ranker is None:
            threads = len(os.sched_getaffinity(0))
            self._ranker = llama_cpp.Llama(
                str(self.folder),
                n_ctx=self.max_length,
                logits_all=True,
                verbose=False,
                n_threads=threads,
                n_threads_batch=threads,
            )
        return [self._ranked(self._ranker, item) for item in batch]

    @staticmethod
    def _ranked(llama: Any, item: Ranked) -> list[Likelihood]:
        start = len(item.context)
        llama.reset()
        llama.eval(list(item.context))
        found = []
        for end in item.continuations:
            llama.n_tokens = start
            if len(end) > 1:
                llama.eval(list(end[:-1]))
            logits = llama.scores[start - 1 : start - 1 + len(end)].astype(np.float64)
            chosen = logits[np.arange(len(end)), list(end)]
            normal = np.log(np.exp(logits - logits.max(1, keepdims=True)).sum(1)) + logits.max(1)
            found.append((float((chosen - normal).sum()), bool((chosen == logits.max(1)).all())))
        return found


def gguf_target(file: Path, checkpoint: Path) -> Target:
    """A GGUF file as what is evaluated."""
    tokenizer = load_tokenizer(checkpoint)
    identity = {"file": file.name, "bytes": file.stat().st_size, "modified": file.stat().st_mtime}
    length, precision = 1024, file.stem.split(".")[-1]
    return Target(
        name=file.name, kind="gguf", precision=precision, prompt="question", max_length=length, tokenizer=tokenizer, sizes=None,
        identity=identity, batch_size=64, folder=None, load=lambda: GgufLM(file, tokenizer, length), heeds=frozenset(),
    )  # fmt: skip


def timed(arms: Sequence[Path], found: Path, arguments: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """TTFT and TPOT of all in one run, in turn."""
    output = arguments.work / "bench"
    if not output.exists():
        settings = [
            "--rounds",
            arguments.rounds,
            "--warmup",
            1,
            "--starts",
            arguments.starts,
            "--no-memory",
            "--output",
            output,
        ]
        lonas_edge("bench", found, "--arms", ",".join(["subnet", *map(str, arms)]), *settings)
    report = json.loads((output / "bench.json").read_text())
    gains: dict[str, dict[str, Any]] = {}
    for one in report["comparisons"]:
        gains.setdefault(one["arm"], {})[one["metric"]] = one["speedup"]
    return {
        found.name if row["arm"] == "subnet" else row["arm"]: {
            "ttft_ms": row["ttft"]["p50"],
            "tpot_ms": row["tpot"]["p50"],
            "answer_ms": row["generate_duration"]["p50"],
            "first_found_faster": gains.get(row["arm"]),
        }
        for row in report["rows"]
    }


def shown(name: str) -> str:
    """What a file is called in the plot."""
    return name.replace("stock-", "optimum ").replace("stock.", "llama.cpp ").removesuffix(".gguf")


def draw(rows: dict[str, dict[str, Any]], ours: set[str], title: str, file: Path) -> None:
    """Right answers over TPOT, and over TTFT; files that were not asked are lines."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, 2, figsize=(11, 4.5), sharey=True, layout="constrained")
    labels = {"tpot_ms": "time per further token, ms", "ttft_ms": "time to first token, ms"}
    asked = {name: row for name, row in rows.items() if row["average"] is not None}
    averages = [row["average"] for row in asked.values()]
    tall = max(averages) - min(averages)
    for panel, (metric, label) in zip(panels, labels.items(), strict=True):
        low, high = min(row[metric] for row in asked.values()), max(row[metric] for row in asked.values())
        for name, row in asked.items():
            own = name in ours
            color = "tab:blue" if own else "dimgray"
            panel.plot(row[metric], row["average"], "o" if own else "s", color=color)
            right = [
                (other[metric] - row[metric]) * (-1 if own else 1)
                for other in asked.values()
                if abs(other["average"] - row["average"]) < 0.05 * tall
            ]
            above = any(0 < distance < 0.5 * (high - low) for distance in right)  # of what the label would cover
            place = {"xytext": (-7 if own else 7, 5 if above else -3), "textcoords": "offset points"}
            side = {"ha": "right" if own else "left", "fontsize": "small", "color": color}
            panel.annotate(shown(name), (row[metric], row["average"]), **place, **side)
        panel.set_xlim(low - 0.55 * (high - low), high + 0.75 * (high - low))
        side = {"rotation": 90, "ha": "right", "va": "bottom", "fontsize": "x-small", "color": "gray"}
        unasked = {shown(name): row[metric] for name, row in rows.items() if name not in asked}
        beyond = {name: at for name, at in unasked.items() if at > panel.get_xlim()[1]}
        for name in unasked.keys() - beyond.keys():
            panel.axvline(unasked[name], color="lightgray", linestyle=":", zorder=0)
            panel.text(unasked[name], 0.02, f"{name}, not asked", transform=panel.get_xaxis_transform(), **side)
        told = "\n".join(f"{name}: {at:.0f} ms \N{RIGHTWARDS ARROW}" for name, at in beyond.items())
        panel.text(0.99, 0.02, told, transform=panel.transAxes, **{**side, "rotation": 0})
        panel.set_xlabel(label)
        panel.margins(y=0.1)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("right answers, %")
    figure.suptitle(title, fontsize="medium")
    figure.savefig(file, dpi=120)


def main() -> None:
    arguments = parse()
    arguments.work.mkdir(parents=True, exist_ok=True)
    checkpoint = merged(arguments.lora, arguments.work)
    irs = [stock_ir(name, checkpoint, arguments.text, arguments.work) for name in arguments.stock.split(",")]
    files = [stock_gguf(name, arguments.lora, arguments.work) for name in arguments.gguf.split(",") if name]
    targets = open_targets([*map(str, irs), *map(str, arguments.found)], [None], RunOptions())
    targets += [gguf_target(file, checkpoint) for file in files if arguments.ask_gguf]
    options = EvalOptions(TASKS, arguments.datasets, PROTOCOLS["option-text"], limit=arguments.limit)
    report, _ = evaluate(targets, options, lambda *_: None)
    if arguments.only:
        return
    first, *others = arguments.found
    times = timed([*others, *irs, *files], first, arguments)
    differences = {one.target: one for one in report.differences if one.scope == "average"}
    asked = {
        one.name: {
            "average": one.average,
            "stderr": one.average_stderr,
            "less_stock_int8": (lambda d: d and {"points": d.points, "half_width_95": d.half_width_95})(
                differences.get(one.name)
            ),
            "tasks": {task.task: task.accuracy for task in one.tasks},
        }
        for one in report.targets
    }
    rows = {name: {**asked.get(name, {"average": None}), **measured} for name, measured in times.items()}
    conditions = {**describe("CPU"), "versions": versions(PACKAGES)}
    settings = {"limit": arguments.limit, "rounds": arguments.rounds, "starts": arguments.starts, "texts": TEXTS}
    for name, row in sorted(rows.items(), key=lambda item: item[1]["tpot_ms"]):
        less = row.get("less_stock_int8")
        told = f"  {less['points']:+.1f} ± {less['half_width_95'] or 0:.1f}" if less else ""
        answers = "not asked" if row["average"] is None else f"{row['average']:.1f} %"
        print(f"{name:34} {answers}  {row['ttft_ms']:.0f} / {row['tpot_ms']:.2f} ms{told}")
    if arguments.output:
        arguments.output.mkdir(parents=True, exist_ok=True)
        told = {"conditions": conditions, "settings": settings, "rows": rows}
        (arguments.output / "plane.json").write_text(json.dumps(told, indent=1) + "\n")
        base = json.loads((checkpoint / "lonas_edge.json").read_text())["base"]["name"]
        machine = f"{conditions['processors']} cores of an {conditions['processor']}"
        title = f"LoRA on {base}, {machine}: blue is lonas-edge; higher and further left is better"
        draw(rows, {folder.name for folder in arguments.found}, title, arguments.output / "plane.png")


if __name__ == "__main__":
    main()
