"""The verification of an export: that it refuses nothing right, and lets nothing wrong pass.

    python benchmarks/faults.py --networks 100 --output benchmarks/results/faults.json
    python benchmarks/faults.py --tiny --networks 20                    each family of the tests instead, twice
    python benchmarks/faults.py --tiny --only bert,bloom                these alone

1. `export --stage checkpoint` of random sub-networks: adapters untrained (lora_B zero) and random, bases in fp32 and bf16,
   channels as stored and in a random order, in turn. Counted: refused; the largest difference between super-network and merge.
2. Injected faults, each into the merge of `--faulty` sub-networks in which it changes something. Counted: caught.

The verification's own functions are called for the second, so that the super-network is asked once for all faults.
"""

import argparse
import json
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests/doors")]

import torch  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402
from wrong_merges import BLIND, FAULTS, ON_DISK, inputs_of, narrowed_of, sliced_ranks  # noqa: E402

from lonas_edge.errors import LonasEdgeError  # noqa: E402
from lonas_edge.exporting import verify  # noqa: E402
from lonas_edge.exporting.export import ExportOptions, export  # noqa: E402
from lonas_edge.network.divergence import compare  # noqa: E402
from lonas_edge.network.materialize import MaterializedModel, write_weights  # noqa: E402
from lonas_edge.network.source import Source, open_source  # noqa: E402
from lonas_edge.space.subnetwork import Subnetwork  # noqa: E402
from lonas_edge.versions import versions  # noqa: E402

STRUCTURED = ", heads and depth"  # of the name of a source with both
PACKAGES = ("lonas-edge", "torch", "transformers", "peft")
# sub-networks and sources


def random_subnetwork(source: Source, seed: int) -> Subnetwork:
    """Each width drawn alone."""
    draw = random.Random(seed)
    return source.subnetwork([draw.choice(group.widths) for group in source.space.groups], f"random:{seed}")


def visible_subnetwork(source: Source, seed: int) -> Subnetwork:
    """A random one in which a rank and a width are cut, so that every fault changes something."""
    for number in range(seed * 1000, seed * 1000 + 1000):
        model = MaterializedModel(source, random_subnetwork(source, number))
        if sliced_ranks(model) and narrowed_of(model):
            return model.subnetwork
    raise SystemExit("the search space has no sub-network with a narrower layer and a smaller rank")


@dataclass(frozen=True)
class Files:
    """Directories and file of a source, and what is particular about it."""

    name: str
    base: Path
    adapter: Path
    space: Path

    def opened(self) -> Source:
        """The package's view of it."""
        return open_source(str(self.adapter), str(self.base), self.space)


def variants(files: Files, work: Path) -> list[Files]:
    """Untrained and random adapter, fp32 and bf16 base, channels as stored and in a random order: all eight."""
    bases = {"fp32": _base_in(files.base, torch.float32, work), "bf16": _base_in(files.base, torch.bfloat16, work)}
    found = []
    for dtype, base in bases.items():
        for trained in (False, True):
            for ordered in (False, True):
                name = f"{files.name}, {dtype}, {'random' if trained else 'untrained'}{', ordered' * ordered}"
                found.append(Files(name, base, _adapter(files, trained, ordered, work), files.space))
    return found


def _base_in(base: Path, dtype: torch.dtype, work: Path) -> Path:
    folder = work / f"{base.name}-{str(dtype).removeprefix('torch.')}"
    if not folder.exists():
        shutil.copytree(base, folder)
        for file in folder.glob("*.safetensors"):
            save_file({name: value.to(dtype) for name, value in load_file(file).items()}, file, metadata={"format": "pt"})
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"dtype": str(dtype).removeprefix("torch.")}))
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
        units = {name: (unit, architecture.linears[name].in_features // unit) for name, unit in architecture.units.items()}
        drawn = {name: (unit, torch.randperm(count, generator=generator)) for name, (unit, count) in units.items()}
        order = {name: (one[:, None] * unit + torch.arange(unit)).flatten() for name, (unit, one) in drawn.items()}
        save_file(order, folder / "channel_order.safetensors")
    return folder


# what is counted


def refused_networks(sources: list[Files], networks: int, seed: int, work: Path) -> dict[str, Any]:
    """Export random sub-networks, the sources in turn.

    Returns:
        How many were refused, with what they were refused for, and the largest differences found.
    """
    refused: list[str] = []
    largest: dict[str, float] = {}
    for number in range(networks):
        files = sources[number % len(sources)]
        source, output = files.opened(), work / "out"
        try:
            manifest = export(source, random_subnetwork(source, seed + number), output, ExportOptions(stage="checkpoint"))
        except LonasEdgeError as error:
            refused.append(f"{files.name}, random:{seed + number}: {error}")
            continue
        found = manifest.parity["materialized"].max_logit_difference
        largest[files.name] = max(found, largest.get(files.name, 0.0))
        shutil.rmtree(output)
    return {"networks": networks, "refused": len(refused), "refusals": refused, "largest_difference": largest}


def caught_faults(files: Files, networks: int, seed: int) -> dict[str, Any]:
    """Inject every fault into the merge of several sub-networks.

    Returns:
        For each fault in how many sub-networks it was caught, missed or had nothing to change; the smallest difference made.
    """
    source = files.opened()
    found = {name: {"caught": 0, "missed": 0, "nothing_to_change": 0} for name in (*FAULTS, *BLIND)}
    smallest: dict[str, float] = {}
    for number in range(networks):
        model = MaterializedModel(source, visible_subnetwork(source, seed + number))
        inputs = inputs_of(model)
        reference = verify.super_network_logits(model, inputs)
        verify.check_materialized(
            model.source.folder, compare(reference, verify.materialized_logits(model, inputs)), reference
        )  # right is right
        for name, make in (FAULTS | BLIND).items():
            wrong = make(model, random.Random(f"{seed}:{number}:{name}"))
            if wrong is None:
                found[name]["nothing_to_change"] += 1
                continue
            with wrong.injected():
                parity = compare(reference, verify.materialized_logits(model, inputs))
            smallest[name] = min(parity.max_logit_difference, smallest.get(name, float("inf")))
            found[name][_outcome(verify.check_materialized, model.source.folder, parity, reference)] += 1
    return {"faults": {name: counts | {"smallest_difference": smallest.get(name)} for name, counts in found.items()}}


def caught_on_disk(files: Files, networks: int, seed: int, work: Path) -> dict[str, dict[str, int]]:
    """Change one tensor of a checkpoint that was written rightly.

    Returns:
        For each change in how many sub-networks it was caught or missed.
    """
    source = files.opened()
    found = {name: {"caught": 0, "missed": 0} for name in ON_DISK}
    for number in range(networks):
        model, folder = MaterializedModel(source, random_subnetwork(source, seed + number)), work / "checkpoint"
        folder.mkdir()
        write_weights(model, folder, torch.float32)
        (folder / "config.json").write_text(json.dumps(model.config()))
        verify.check_checkpoint(model, folder, torch.float32)
        file = next(folder.glob("model*.safetensors"))
        kept, name = file.read_bytes(), random.Random(f"{seed}:{number}").choice(sorted(load_file(file)))
        for fault_name, change in ON_DISK.items():
            change(file, name)
            found[fault_name][_outcome(verify.check_checkpoint, model, folder, torch.float32)] += 1
            file.write_bytes(kept)
        shutil.rmtree(folder)
    return found


def _outcome(check: Callable[..., None], *arguments: Any) -> str:
    try:
        check(*arguments)
    except LonasEdgeError:
        return "caught"
    return "missed"


def missed_of(found: dict[str, Any]) -> list[str]:
    """Names of faults that passed and are not known to."""
    counts = {**found["faults"], **found.get("on_disk", {})}
    return [name for name, outcomes in counts.items() if name not in BLIND and outcomes["missed"]]


def tiny_sources(work: Path) -> list[Files]:
    """A source of each family of the tests, and one of each with elastic heads and depth."""
    from tiny_bert import TinyBert
    from tiny_models import CASES, TinyModels, TinySource, has_heads

    def files(name: str, source: TinySource) -> Files:
        return Files(name, source.base, source.adapter, source.space)

    models = TinyModels(work / "tiny")
    found = [files(case, models.source(case)) for case in CASES]
    structured = [models.heads_source(case) if has_heads(case) else models.deep_source(case) for case in CASES]
    found += [files(f"{source.case}{STRUCTURED}", source) for source in structured]
    return [files("bert", TinyBert(work / "tiny-bert").source(3)), *found]  # its heads are always a dimension


def main() -> None:
    options = _options()
    work = Path(options.work or tempfile.mkdtemp(prefix="faults-")).resolve()
    work.mkdir(parents=True, exist_ok=True)
    given = Files(options.base.name, options.base, options.adapter, options.space)
    results: dict[str, Any] = {}
    sources = tiny_sources(work) if options.tiny else [given]
    for files in [one for one in sources if not options.only or one.name in options.only.split(",")]:
        start = time.monotonic()
        found = refused_networks(variants(files, work), options.networks, options.seed, work) if options.networks else {}
        if options.faulty and not files.name.endswith(STRUCTURED):  # the faults are written for whole attentions
            found |= caught_faults(files, options.faulty, options.seed)
            found["on_disk"] = caught_on_disk(files, min(options.faulty, 3), options.seed, work)
        results[files.name] = found | {"seconds": round(time.monotonic() - start, 1)}
        _print(files.name, results[files.name])
    if options.output:
        conditions = {"seed": options.seed, "versions": versions(PACKAGES), "processor": _processor()}
        options.output.write_text(json.dumps(conditions | {"sources": results}, indent=1) + "\n")
    if not options.work:
        shutil.rmtree(work)
    raise SystemExit(any(found.get("refused") or ("faults" in found and missed_of(found)) for found in results.values()))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", type=int, default=100, help="random sub-networks to export; of each family with --tiny")
    parser.add_argument("--faulty", type=int, default=20, help="sub-networks that faults are injected into")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tiny", action="store_true", help="the tiny families instead of --base, --adapter, --space")
    parser.add_argument("--only", help="names of tiny families, separated by commas; all when not given")
    parser.add_argument("--base", type=Path, default=ROOT / "models/smollm2-135m")
    parser.add_argument("--adapter", type=Path, default=ROOT / "models/synthetic-adapter")
    parser.add_argument("--space", type=Path, default=ROOT / "nncf_config/smollm2_135m.json")
    parser.add_argument("--work", help="directory for bases, adapters and outputs, kept. Default: a temporary one")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    return parser.parse_args()


def _processor() -> str:
    found = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return found[0].partition(": ")[2] if found else "unknown"


def _print(name: str, found: dict[str, Any]) -> None:
    if "networks" in found:
        largest = max(found["largest_difference"].values(), default=float("nan"))
        print(f"{name}: {found['refused']} of {found['networks']} refused, largest difference {largest:.2g}", flush=True)
        for refusal in found["refusals"]:
            print(f"  {refusal}")
    for fault_name, counts in {**found.get("faults", {}), **found.get("on_disk", {})}.items():
        known = " (known to pass)" if fault_name in BLIND else ""
        told = ", ".join(f"{value:.2g} {what}" if value is not None else f"- {what}" for what, value in counts.items())
        print(f"  {fault_name:38} {told}{known}", flush=True)


if __name__ == "__main__":
    main()
