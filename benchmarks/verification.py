"""Test the verification of an export: it must pass correct networks and catch injected errors.

    python benchmarks/verification.py --networks 100 --output benchmarks/results/verification.json
    python benchmarks/verification.py --tiny --networks 20              each model family of the tests
    python benchmarks/verification.py --tiny --only bert,bloom          some of them

1. Export random sub-networks as checkpoints: untrained (lora_B zero) and random adapters, fp32 and bf16 bases, channels as
   stored and in a random order. Counts refusals and the largest difference between super-network and merge.
2. Inject every error of `tests/fuzz/injected.py` into the merge of `--faulty` sub-networks. Counts the errors that are caught.
   The verification's functions are called directly, so that the super-network is evaluated once for all errors.
"""

import argparse
import json
import os
import random
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}
ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests/fuzz")]

import torch  # noqa: E402
from injected import ERRORS, INVISIBLE, ON_DISK, inputs_of, narrowed_of, sliced_ranks  # noqa: E402
from runner import run_in_jobs  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

from lonas_edge.bench.machine import describe  # noqa: E402
from lonas_edge.errors import LonasEdgeError  # noqa: E402
from lonas_edge.exporting import verify  # noqa: E402
from lonas_edge.exporting.export import ExportOptions, export  # noqa: E402
from lonas_edge.exporting.parity import compare  # noqa: E402
from lonas_edge.network.materialize import MaterializedModel, write_weights  # noqa: E402
from lonas_edge.network.source import Source, open_source  # noqa: E402
from lonas_edge.space.subnetwork import Subnetwork  # noqa: E402
from lonas_edge.versions import versions  # noqa: E402

if TYPE_CHECKING:
    from tiny_models import TinySource

STRUCTURED = "+heads+depth"  # ending of the names of sources with elastic heads and blocks
Counts = dict[str, dict[str, Any]]


def random_subnetwork(source: Source, seed: int) -> Subnetwork:
    """Draw each width independently."""
    draw = random.Random(seed)
    return source.subnetwork([draw.choice(group.widths) for group in source.space.groups], f"random:{seed}")


def visible_model(source: Source, seed: int) -> MaterializedModel:
    """Merge a random sub-network with a smaller rank and a narrower layer, so that every error changes something."""
    for number in range(seed * 1000, seed * 1000 + 1000):
        model = MaterializedModel(source, random_subnetwork(source, number))
        if sliced_ranks(model) and narrowed_of(model):
            return model
    raise SystemExit("the search space has no sub-network with a narrower layer and a smaller rank")


@dataclass(frozen=True)
class Files:
    """The files of a source."""

    name: str
    base: Path
    adapter: Path
    space: Path

    def opened(self) -> Source:
        return open_source(str(self.adapter), str(self.base), self.space)


def variants(files: Files, work: Path) -> list[Files]:
    """All eight combinations of untrained and random adapter, fp32 and bf16 base, stored and random channel order."""
    sources = []
    for dtype in (torch.float32, torch.bfloat16):
        base = _base_in(files.base, dtype, work)
        for trained in (False, True):
            for ordered in (False, True):
                name = f"{files.name}, {dtype}, {'random' if trained else 'untrained'}{', ordered' * ordered}"
                sources.append(Files(name, base, _adapter(files, trained, ordered, work), files.space))
    return sources


def _base_in(base: Path, dtype: torch.dtype, work: Path) -> Path:
    name = str(dtype).removeprefix("torch.")
    folder = work / f"{base.name}-{name}"
    if not folder.exists():
        shutil.copytree(base, folder)
        for file in folder.glob("*.safetensors"):
            save_file({name: value.to(dtype) for name, value in load_file(file).items()}, file, metadata={"format": "pt"})
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"dtype": name}))
    return folder


def _adapter(files: Files, trained: bool, ordered: bool, work: Path) -> Path:
    folder = work / f"{files.name}-adapter{'-random' * trained}{'-ordered' * ordered}"
    if folder.exists():
        return folder
    shutil.copytree(files.adapter, folder)
    if not trained:
        tensors = load_file(folder / "adapter_model.safetensors")
        zeroed = {name: value.zero_() if ".lora_B." in name else value for name, value in tensors.items()}
        save_file(zeroed, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    if ordered:
        architecture, generator = files.opened().architecture, torch.Generator().manual_seed(3)
        order = {}
        for name, unit in architecture.units.items():  # channels of a head stay together
            drawn = torch.randperm(architecture.linears[name].in_features // unit, generator=generator)
            order[name] = (drawn[:, None] * unit + torch.arange(unit)).flatten()
        save_file(order, folder / "channel_order.safetensors")
    return folder


def refused_networks(sources: list[Files], networks: int, seed: int, work: Path) -> dict[str, Any]:
    """Export random sub-networks, the sources in turn; count refusals and keep the largest difference of each source."""
    refusals: list[str] = []
    largest: dict[str, float] = {}
    for number in range(networks):
        files = sources[number % len(sources)]
        source, output = files.opened(), work / "out"
        try:
            manifest = export(source, random_subnetwork(source, seed + number), output, ExportOptions(stage="checkpoint"))
        except LonasEdgeError as error:
            refusals.append(f"{files.name}, random:{seed + number}: {error}")
            continue
        difference = manifest.parity["materialized"].max_logit_difference
        largest[files.name] = max(difference, largest.get(files.name, 0.0))
        shutil.rmtree(output)
    return {"networks": networks, "refused": len(refusals), "refusals": refusals, "largest_difference": largest}


def caught_errors(files: Files, networks: int, seed: int) -> Counts:
    """Inject every error into several sub-networks.

    Returns:
        For each error, in how many sub-networks it was caught, missed or had nothing to change, and the smallest difference.
    """
    source = files.opened()
    counts: Counts = {name: {"caught": 0, "missed": 0, "nothing_to_change": 0} for name in (*ERRORS, *INVISIBLE)}
    for number in range(networks):
        model = visible_model(source, seed + number)
        inputs = inputs_of(model)
        reference = verify.super_network_logits(model, inputs)
        correct = compare(reference, verify.materialized_logits(model, inputs))
        verify.check_materialized(model.source.folder, correct, reference)
        for name, inject in (ERRORS | INVISIBLE).items():
            injected, count = inject(model, random.Random(f"{seed}:{number}:{name}")), counts[name]
            if injected is None:
                count["nothing_to_change"] += 1
                continue
            with injected.active():
                parity = compare(reference, verify.materialized_logits(model, inputs))
            difference = parity.max_logit_difference
            count["smallest_difference"] = min(difference, count.get("smallest_difference", difference))
            count[_outcome(verify.check_materialized, model.source.folder, parity, reference)] += 1
    return counts


def caught_on_disk(files: Files, networks: int, seed: int, work: Path) -> Counts:
    """Change one tensor of a correct checkpoint on disk; count how often that is caught."""
    source = files.opened()
    counts: Counts = {name: {"caught": 0, "missed": 0} for name in ON_DISK}
    for number in range(networks):
        model, folder = MaterializedModel(source, random_subnetwork(source, seed + number)), work / "checkpoint"
        folder.mkdir()
        write_weights(model, folder, torch.float32)
        (folder / "config.json").write_text(json.dumps(model.config()))
        verify.check_checkpoint(model, folder, torch.float32)
        file = next(folder.glob("model*.safetensors"))
        content, name = file.read_bytes(), random.Random(f"{seed}:{number}").choice(sorted(load_file(file)))
        for error, change in ON_DISK.items():
            change(file, name)
            counts[error][_outcome(verify.check_checkpoint, model, folder, torch.float32)] += 1
            file.write_bytes(content)
        shutil.rmtree(folder)
    return counts


def _outcome(check: Callable[..., None], *arguments: Any) -> str:
    try:
        check(*arguments)
    except LonasEdgeError:
        return "caught"
    return "missed"


def missed_of(counts: Counts) -> list[str]:
    """Errors that passed and are not known to."""
    return [name for name, count in counts.items() if name not in INVISIBLE and count["missed"]]


def tiny_sources(work: Path) -> dict[str, Callable[[], "TinySource"]]:
    """A source of each family of the tests, and one with elastic heads and blocks; created when it is called."""
    from tiny_bert import TinyBert
    from tiny_models import CASES, TinyModels, has_heads

    models, bert = TinyModels(work / "tiny"), TinyBert(work / "tiny-bert")
    sources: dict[str, Callable[[], TinySource]] = {"bert": lambda: bert.source(3)}
    for case in CASES:
        sources[case] = partial(models.source, case)
        sources[f"{case}{STRUCTURED}"] = partial(models.heads_source if has_heads(case) else models.deep_source, case)
    return sources


def result_of(files: Files, work: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Export correct networks of a source, and inject errors into others."""
    networks, seed = options.networks, options.seed
    result = refused_networks(variants(files, work), networks, seed, work) if networks else {}
    counts: Counts = {}
    if options.faulty and not files.name.endswith(STRUCTURED):  # the errors are written for unsplit attention blocks
        counts = caught_errors(files, options.faulty, seed)
        counts |= caught_on_disk(files, min(options.faulty, 3), seed, work)
    _print(files.name, result | {"errors": counts})
    return result | {"errors": counts}


def main() -> None:
    options = _options()
    work = Path(options.work or tempfile.mkdtemp(prefix="verification-")).resolve()
    names = options.only.split(",") if options.only else list(tiny_sources(work))
    names = names if options.tiny else [options.base.name]
    torch.set_num_threads(1)

    def run(folder: Path, numbers: Sequence[int]) -> list[dict[str, Any]]:
        results = []
        for number in numbers:
            given = tiny_sources(folder)[names[number]]() if options.tiny else options
            results.append(result_of(Files(names[number], given.base, given.adapter, given.space), folder, options))
        return results

    results = run_in_jobs(range(len(names)), min(options.jobs, len(names)), work, run)
    if options.output:
        conditions = {"seed": options.seed, "processor": describe("CPU")["processor"]}
        conditions["versions"] = versions(("lonas-edge", "torch", "transformers", "peft"))
        sources = dict(zip(names, results, strict=True))
        options.output.write_text(json.dumps(conditions | {"sources": sources}, indent=1) + "\n")
    if not options.work:
        shutil.rmtree(work)
    failed = [name for name, result in zip(names, results, strict=True) if result.get("refused") or missed_of(result["errors"])]
    print(f"{len(names)} sources, failed: {', '.join(failed) or 'none'}")
    raise SystemExit(bool(failed))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", type=int, default=100, help="random sub-networks to export, for each family with --tiny")
    parser.add_argument("--faulty", type=int, default=20, help="sub-networks to inject errors into")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tiny", action="store_true", help="the tiny families instead of --base, --adapter, --space")
    parser.add_argument("--only", help="names of tiny families, comma-separated")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="families at a time")
    parser.add_argument("--base", type=Path, default=ROOT / "models/smollm2-135m")
    parser.add_argument("--adapter", type=Path, default=ROOT / "models/synthetic-adapter")
    parser.add_argument("--space", type=Path, default=ROOT / "nncf_config/smollm2_135m.json")
    parser.add_argument("--work", help="directory for bases, adapters and outputs, kept; default: a temporary one")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    return parser.parse_args()


def _print(name: str, result: dict[str, Any]) -> None:
    if "networks" in result:
        largest = max(result["largest_difference"].values(), default=float("nan"))
        print(f"{name}: {result['refused']} of {result['networks']} refused, largest difference {largest:.2g}", flush=True)
        print("".join(f"  {refusal}\n" for refusal in result["refusals"]), end="")
    for error, count in result["errors"].items():
        known = " (known to pass)" if error in INVISIBLE else ""
        print(f"  {error:34} {', '.join(f'{value:.3g} {what}' for what, value in count.items())}{known}", flush=True)


if __name__ == "__main__":
    main()
