"""Time of a training step with random sub-networks against one of plain PEFT LoRA: same base, same batches.

    python benchmarks/train_step.py models/smollm2-135m nncf_config/smollm2_135m.json \\
        --output benchmarks/results/train_step.json

A step is forward, backward, gradient clipping and AdamW on batches of random tokens, the last of which are learned.
The plain arm is an untouched `PeftModel`. Reported are the median over the rounds of each arm, the median of the paired ratios,
the cost of `activate`, the share of multiply-accumulates that the drawn sub-networks keep, and the peak memory of each arm in a
process of its own.
"""

import argparse
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

DTYPES = ("fp32", "bf16")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("base", type=Path)
    parser.add_argument("space", type=Path)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--dtypes", default=",".join(DTYPES))
    parser.add_argument("--examples", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--learned", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--peak-of", choices=["plain", "elastic"], help=argparse.SUPPRESS)
    return parser.parse_args()


class Arm:
    """A model that is trained; `elastic` activates a random sub-network before each step."""

    def __init__(self, arguments: argparse.Namespace, dtype: str, elastic: bool):
        import torch
        from peft import get_peft_model
        from torch.optim import AdamW

        from lonas_edge.formats import DTYPES
        from lonas_edge.network.source import open_source
        from lonas_edge.network.super_network import SuperNetwork, load_base
        from lonas_edge.training.elastic_trainer import InactiveKept
        from lonas_edge.training.inputs import lora_config, resolved
        from lonas_edge.training.plan import TrainOptions

        source = open_source(None, str(arguments.base), arguments.space)
        self.elasticity = source.elasticity
        torch.manual_seed(0)
        architecture = source.architecture
        base = load_base(source.base, architecture.family.task, DTYPES[dtype].torch)
        config = lora_config(resolved(TrainOptions(), architecture), architecture)
        self.model = get_peft_model(base, config).to(arguments.device).train()
        self.optimizer = AdamW([p for p in self.model.parameters() if p.requires_grad], lr=1e-5)
        self.autocast = torch.autocast(arguments.device, torch.bfloat16, enabled=dtype == "bf16")
        self.network, self.activation, self.kept = None, [], []
        if elastic:
            self.network = SuperNetwork(self.model, self.elasticity)
            self.chosen: tuple[int, ...] = ()
            InactiveKept(self.optimizer, lambda: self.network.inactive_parts(self.chosen))

    def step(self, batch: dict[str, Any], draw: random.Random) -> float:
        """One step; returns its seconds."""
        import torch
        from torch.nn import functional as F

        _synchronize(batch["input_ids"])
        start = time.perf_counter()
        if self.network:
            self.chosen = tuple(draw.choice(group.widths) for group in self.elasticity.space.groups)
            self.network.activate(self.chosen)
            self.activation.append(time.perf_counter() - start)
        with self.autocast:
            logits = self.model(input_ids=batch["input_ids"], logits_to_keep=batch["logits_to_keep"], use_cache=False).logits
            loss = F.cross_entropy(logits.flatten(0, 1).float(), batch["labels"].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_([p for p in self.model.parameters() if p.requires_grad], 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        _synchronize(batch["input_ids"])
        return time.perf_counter() - start


def _synchronize(tensor: Any) -> None:
    if tensor.is_cuda:
        import torch

        torch.cuda.synchronize()


def batches(arguments: argparse.Namespace, vocabulary: int) -> Callable[[int], dict[str, Any]]:
    import torch

    def make(index: int) -> dict[str, Any]:
        ids = torch.randint(vocabulary, (arguments.examples, arguments.tokens), generator=torch.Generator().manual_seed(index))
        kept = torch.arange(arguments.tokens - 1 - arguments.learned, arguments.tokens - 1)
        batch = {"input_ids": ids, "logits_to_keep": kept, "labels": ids[:, kept + 1].contiguous()}
        return {name: tensor.to(arguments.device) for name, tensor in batch.items()}

    return make


def flops_kept(arm: Arm, chosen: list[tuple[int, ...]], arguments: argparse.Namespace) -> float:
    """Mean share of the multiply-accumulates that the sub-networks keep; the head counts at the learned tokens only."""
    family, tokens = arm.elasticity.architecture.family, arguments.tokens

    from lonas_edge.space.subnetwork import Subnetwork

    def macs(widths: dict[str, Any]) -> int:
        total = 0
        for name, w in widths.items():
            adapter = (w.rank or 32) * (w.in_features + w.out_features) if name.endswith(family.default_targets) else 0
            total += (w.in_features * w.out_features + adapter) * (arguments.learned if name == family.head else tokens)
        return total

    whole = macs(Subnetwork(arm.elasticity, arm.elasticity.maximal).linears)
    return statistics.mean(macs(Subnetwork(arm.elasticity, widths).linears) / whole for widths in chosen)


def compare(arguments: argparse.Namespace, dtype: str) -> dict[str, Any]:
    plain, elastic = Arm(arguments, dtype, False), Arm(arguments, dtype, True)
    make = batches(arguments, plain.model.config.vocab_size)
    draw, seconds, chosen = random.Random(0), {"plain": [], "elastic": []}, []
    for index in range(arguments.warmup + arguments.rounds):
        arms = [("plain", plain), ("elastic", elastic)]
        for name, arm in arms if index % 2 else reversed(arms):
            seconds[name].append(arm.step(make(index), draw))
        chosen.append(elastic.chosen)
    measured = {name: values[arguments.warmup :] for name, values in seconds.items()}
    ratios = [e / p for e, p in zip(measured["elastic"], measured["plain"], strict=True)]
    return {
        "plain_seconds": statistics.median(measured["plain"]),
        "elastic_seconds": statistics.median(measured["elastic"]),
        "ratio": statistics.median(ratios),
        "ratio_of_sums": sum(measured["elastic"]) / sum(measured["plain"]),
        "ratios": [round(ratio, 3) for ratio in ratios],
        "flops_kept": flops_kept(elastic, chosen[arguments.warmup :], arguments),
        "activate_ms": 1e3 * statistics.median(elastic.activation[arguments.warmup :]),
    }


def peak(arguments: argparse.Namespace, dtype: str, name: str) -> float:
    """Peak resident memory (CPU) or allocated memory (CUDA) of three steps of one arm in its own process, in bytes."""
    command = [sys.executable, __file__, *sys.argv[1:], "--dtypes", dtype, "--peak-of", name]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def _peak_of(arguments: argparse.Namespace) -> None:
    import torch

    arm = Arm(arguments, arguments.dtypes, arguments.peak_of == "elastic")
    make, draw = batches(arguments, arm.model.config.vocab_size), random.Random(0)
    for index in range(3):
        arm.step(make(index), draw)
    cuda = arguments.device == "cuda"
    print(torch.cuda.max_memory_allocated() if cuda else _high_water())


def _high_water() -> int:
    """Peak resident memory of this program. Not ru_maxrss, which a child inherits from its parent."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def main() -> None:
    arguments = parse()
    if arguments.peak_of:
        _peak_of(arguments)
        return
    import torch

    results = {}
    for dtype in arguments.dtypes.split(","):
        results[dtype] = compare(arguments, dtype)
        results[dtype]["peak_bytes"] = {name: peak(arguments, dtype, name) for name in ("plain", "elastic")}
        print(dtype, json.dumps(results[dtype]), flush=True)
    from export_cost import conditions

    report = {
        "conditions": conditions()
        | {"torch_threads": torch.get_num_threads(), "cpus": os.cpu_count(), "os": platform.system()},
        "device": torch.cuda.get_device_name() if arguments.device == "cuda" else "cpu",
        "model": arguments.base.name,
        "search_space": arguments.space.name,
        "batch": {"examples": arguments.examples, "tokens": arguments.tokens, "learned": arguments.learned},
        "rounds": arguments.rounds,
        "results": results,
    }
    if arguments.output:
        arguments.output.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
