"""Study: an embedding model with layers removed and recovered, next to stock files: STS-B, and texts per second.

    python benchmarks/embeddings.py models/minilm-l6 --datasets GLUE --work DIR --output benchmarks/results/embeddings.json

For each seed, a search removes layers from the model. The rest learns the whole model's embeddings of texts without labels:
for INT8, and by another training, quantization-aware, for INT4. All files, and the unpruned model by `lonas-edge export`,
embed the pairs of STS-B's development set; differences of Spearman's correlation from `optimum-cli` INT8 are paired by
bootstrap. The first seed's files are timed in rounds, one file after the other, with sentence-transformers in PyTorch and
ONNX Runtime (fp32 and dynamic INT8), which need `pip install sentence-transformers onnx onnxscript onnxruntime`;
`--no-others` leaves them out. A stopped study continues.
"""

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import torch
from scipy.stats import spearmanr
from study import conditions, exported, lonas_edge, trained
from transformers import AutoModel

from lonas_edge.data.sentences import SentenceTask

TASKS = ("STS-B", "MRPC", "RTE", "SST-2")  # whose training files give the texts
SST2 = 10_000  # of its 67,000 phrases
HELD_OUT = 500
LENGTHS, BATCHES = (32, 128, 512), (1, 8, 32)
FORMATS = {"int8": "int8_sym", "int4": "int4_sym"}
BASELINE = "optimum-int8"
INPUTS = ("input_ids", "attention_mask", "token_type_ids")
GROUP = "192"  # the activation group that exports of lonas-edge hold; every user of a stock file can set it
RESAMPLES, LEAST = 2000, 0.2  # bootstrap samples; seconds of a measurement


def read(path: Path) -> tuple[Any, ...]:
    """The texts of a file of GLUE."""
    return SentenceTask().read([(path, 1.0)]).examples


def texts_of(datasets: Path, work: Path) -> tuple[Path, Path]:
    """Write texts without labels, and held-out ones; none is in the development set."""
    train, held_out = work / "texts.jsonl", work / "held_out.jsonl"
    if not held_out.exists():
        tested = {text for each in read(datasets / "STS-B/dev.tsv") for text in each.texts}
        found: list[str] = []
        for task in TASKS:
            rows = [text for each in read(datasets / task / "train.tsv") for text in each.texts]
            random.Random(task).shuffle(rows)
            found += rows[:SST2] if task == "SST-2" else rows
        kept = sorted(set(found) - tested)
        random.Random(0).shuffle(kept)
        for path, part in ((train, kept[HELD_OUT:]), (held_out, kept[:HELD_OUT])):
            path.write_text("".join(json.dumps({"text": text}) + "\n" for text in part))
    return train, held_out


def stock(base: Path, name: str, work: Path) -> Path:
    """An IR that optimum-cli writes."""
    folder = work / f"optimum-{name}"
    if not folder.exists():
        options = ["--task", "feature-extraction", "--library", "transformers", "--weight-format", name]
        options += ["--group-size", "64"] if name == "int4" else []
        program = Path(sys.executable).parent / "optimum-cli"
        subprocess.run([program, "export", "openvino", "-m", base, *options, folder], check=True)
        for path in [*base.glob("*sentence*.json"), base / "modules.json", *base.glob("*_Pooling/config.json")]:
            target = folder / path.relative_to(base)
            target.parent.mkdir(exist_ok=True)
            target.write_bytes(path.read_bytes())
    return folder


def networks(arguments: argparse.Namespace, seed: int) -> dict[str, Path]:
    """All IRs of a seed by name."""
    base, work = arguments.base, arguments.work / f"seed-{seed}"
    work.mkdir(parents=True, exist_ok=True)
    train, held_out = texts_of(arguments.datasets, arguments.work)
    space, search = work / "space.json", work / "search"
    if not space.exists():
        lonas_edge("space", "--model", base, "--depth", "layer", "--ratios", "1", "--output", space)
    if not search.exists():
        options = ["--nncf-config", space, "--data", held_out, "--num-samples", 256, "--cost", "macs"]
        lonas_edge("search", base, *options, "--seed", seed, "--output", search)
    chosen = {}
    for path in sorted((search / "subnetworks").glob("front-*.json")):
        widths = json.loads(path.read_text())["widths"]
        chosen[sum(width == 0 for width in widths.values())] = path
    irs = {f"optimum-{name}": stock(base, name, arguments.work) for name in ("int8", "int4")}
    irs["unpruned, int8"] = exported(arguments.work / "unpruned", base, "--weight-format", FORMATS["int8"])
    for removed in arguments.removed:
        for name, form in FORMATS.items():
            command = ["--from", base, "--nncf-config", space, "--subnet", chosen[removed], "--teacher", base, "--data", train]
            command += ["--eval-data", held_out, "--steps", arguments.steps, "--batch-size", 32, "--lr", arguments.lr]
            command += ["--dtype", "fp32", "--seed", seed, *(["--weight-format", form] if name == "int4" else [])]
            adapter = trained(work / f"recovered-{removed}-{name}", *command)
            irs[f"{removed} removed, {name}"] = exported(work / f"ir-{removed}-{name}", adapter, "--weight-format", form)
    return irs


def cosines(irs: dict[str, Path], datasets: Path, work: Path) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Cosines of STS-B's pairs by each file, as `lonas-edge eval` computes them, and the scores."""
    output = work / "eval"
    if not output.exists():
        lonas_edge("eval", *irs.values(), "--tasks", "STS-B", "--datasets", datasets, "--output", output)
    found, report = {}, json.loads((output / "eval.json").read_text())
    for name, target in zip(irs, report["targets"], strict=True):
        rows = [json.loads(line) for line in (output / "samples" / target["name"] / "samples_STS-B.jsonl").open()]
        rows.sort(key=lambda row: row["doc_id"])
        found[name] = np.array([row["answer"] for row in rows])
        labels = np.array([row["label"] for row in rows])
    return found, labels


def accuracies(seeds: list[tuple[dict[str, np.ndarray], np.ndarray]]) -> dict[str, dict[str, Any]]:
    """Spearman's correlation in percent for each seed, and the paired difference of the means from the baseline."""
    draw, labels = np.random.default_rng(0), seeds[0][1]
    samples = [draw.integers(len(labels), size=len(labels)) for _ in range(RESAMPLES)]

    def mean(name: str, chosen: Any) -> float:
        return statistics.mean(100 * spearmanr(found[name][chosen], labels[chosen]).statistic for found, _ in seeds)

    every = np.arange(len(labels))
    baseline = [mean(BASELINE, chosen) for chosen in samples]
    rows = {}
    for name in seeds[0][0]:
        differences = [mean(name, chosen) - other for chosen, other in zip(samples, baseline, strict=True)]
        low, high = np.quantile(differences, (0.025, 0.975))
        rows[name] = {
            "spearman": [round(100 * float(spearmanr(found[name], labels).statistic), 2) for found, _ in seeds],
            "difference": [round(float(figure), 2) for figure in (mean(name, every) - mean(BASELINE, every), low, high)],
        }
    return rows


def runners(irs: dict[str, Path], base: Path, others: bool) -> dict[str, Callable[[dict[str, np.ndarray]], Any]]:
    """Functions that compute the hidden states of a batch, by the file's or tool's name."""
    core, made = ov.Core(), {}
    files = {name: (folder, {}) for name, folder in irs.items()}
    files[f"{BASELINE}, group {GROUP}"] = irs[BASELINE], {"DYNAMIC_QUANTIZATION_GROUP_SIZE": GROUP}
    for name, (folder, properties) in files.items():
        compiled = core.compile_model(folder / "openvino_model.xml", "CPU", {"PERFORMANCE_HINT": "LATENCY", **properties})
        names = {port.any_name for port in compiled.inputs}
        request = compiled.create_infer_request()
        made[name] = lambda batch, request=request, names=names: request.infer({key: batch[key] for key in names})
    if not others:
        return made
    import onnxruntime
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(base), device="cpu", local_files_only=True).eval()

    def torch_run(batch: dict[str, np.ndarray]) -> Any:
        with torch.inference_mode():
            return model({key: torch.from_numpy(array) for key, array in batch.items()})

    made["sentence-transformers, PyTorch fp32"] = torch_run
    folder = Path(tempfile.mkdtemp())
    body = AutoModel.from_pretrained(base, add_pooling_layer=False).eval()
    batch = {key: torch.ones(2, 8, dtype=torch.long) for key in INPUTS}
    shapes = {key: {0: torch.export.Dim("texts"), 1: torch.export.Dim("tokens", max=512)} for key in INPUTS}
    torch.onnx.export(body, kwargs=batch, f=folder / "model.onnx", dynamo=True, dynamic_shapes=shapes, verbose=False)
    quantize_dynamic(folder / "model.onnx", folder / "int8.onnx", weight_type=QuantType.QInt8)
    for name, file in (("fp32", "model.onnx"), ("dynamic INT8", "int8.onnx")):
        session = onnxruntime.InferenceSession(folder / file, providers=["CPUExecutionProvider"])
        known = {port.name for port in session.get_inputs()}
        made[f"ONNX Runtime, {name}"] = lambda batch, session=session, known=known: session.run(
            None, {key: batch[key] for key in known}
        )
    return made


def timed(made: dict[str, Callable[[dict[str, np.ndarray]], Any]], rounds: int) -> dict[str, dict[str, dict[str, Any]]]:
    """Texts per second and paired ratios of the time to the baseline, by length and batch, then by name."""
    draw, table = np.random.default_rng(0), {}
    for length in LENGTHS:
        for texts in BATCHES:
            ids = draw.integers(1000, 30000, size=(texts, length))
            batch = dict(zip(INPUTS, (ids, np.ones_like(ids), np.zeros_like(ids)), strict=True))
            seconds: dict[str, list[float]] = {name: [] for name in made}
            for number in range(rounds + 1):
                for name, run in made.items():
                    start, count = time.perf_counter(), 0
                    while count == 0 or time.perf_counter() - start < LEAST:
                        run(batch)
                        count += 1
                    if number:  # the first round warms up
                        seconds[name].append((time.perf_counter() - start) / count)
            table[f"{length} tokens, batch {texts}"] = {
                name: {
                    "texts_per_second": round(texts / statistics.median(values), 1),
                    "ratio": interval([a / b for a, b in zip(values, seconds[BASELINE], strict=True)]),
                }
                for name, values in seconds.items()
            }
    return table


def interval(ratios: list[float]) -> list[float]:
    """Median of ratios, and its 95 % interval by bootstrap."""
    draw = np.random.default_rng(0)
    medians = np.median(draw.choice(ratios, size=(RESAMPLES, len(ratios))), axis=1)
    return [round(float(figure), 3) for figure in (np.median(ratios), *np.quantile(medians, (0.025, 0.975)))]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", type=Path)
    parser.add_argument("--datasets", type=Path, required=True, help="GLUE: TASK/train.tsv and STS-B/dev.tsv")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--removed", type=int, nargs="+", default=[2], help="numbers of removed layers")
    parser.add_argument("--steps", type=int, default=3000, help="steps of a recovery")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--no-others", dest="others", action="store_false", help="time IRs only")
    parser.add_argument("--only", choices=["networks", "accuracy"], help="stop after this step")
    return parser.parse_args()


def main() -> None:
    arguments = parse()
    arguments.work.mkdir(parents=True, exist_ok=True)
    irs = {seed: networks(arguments, seed) for seed in arguments.seeds}
    if arguments.only == "networks":
        return
    rows = accuracies([cosines(irs[seed], arguments.datasets, arguments.work / f"seed-{seed}") for seed in arguments.seeds])
    for name, row in rows.items():
        print(f"{name:20} {row['spearman']}  {row['difference'][0]:+.2f} ({row['difference'][1]} to {row['difference'][2]})")
    if arguments.only:
        return
    first = irs[arguments.seeds[0]]
    times = timed(runners(first, arguments.base, arguments.others), arguments.rounds)
    for case, row in times.items():
        print(case, {name: (figures["texts_per_second"], figures["ratio"]) for name, figures in row.items()})
    machine = conditions()
    if arguments.output:
        report = {
            "title": f"{arguments.base.name} on {machine['processors']} cores of an {machine['processor']}",
            "conditions": machine,
            "settings": {name: str(getattr(arguments, name)) for name in ("seeds", "removed", "steps", "lr", "rounds")},
            "bytes": {name: sum(file.stat().st_size for file in path.glob("openvino_model.*")) for name, path in first.items()},
            "networks": rows,
            "times": times,
        }
        arguments.output.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
