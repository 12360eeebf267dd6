"""Other ways to solve what a cut leaves, beside what `export --solve` does: what is left of the KL on held-out prompts.

    python benchmarks/solving_ways.py SUPER_ADAPTER --subnet FILE --data TRAIN.json --held-out HELD_OUT.json --work DIR \\
        --output benchmarks/results/solving_ways.json

In plain PyTorch, on two checkpoints that `export` writes, of the maximal network and of a sub-network of narrower MLPs (LLaMA,
all attention there). With x the input of `down_proj` in the maximal network and z the one in the sub-network:

- least squares: W x_K nearest to W0 x, x_K the channels that are kept; what `export --solve` does;
- with a bias: W x_K + b (the mean of what is cut: FLAP, An et al., AAAI 2024);
- sequential: W z nearest to what the maximal network's MLP makes of the sub-network's own stream (as SlimGPT, Ling et al.,
  NeurIPS 2024), layer after layer, each on what the ones before were solved to;
- sequential, towards the maximal stream: W z nearest to what brings the stream back to the maximal network's;
- block-wise: gate, up and down together by --steps steps of Adam on the MLP's output, begun at least squares.

All are drawn towards the sub-network's own weight with the shrinkage of `export --solve`.
"""

import argparse
import copy
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accuracy_study import lonas_edge
from transformers import AutoTokenizer

import lonas_edge as package
from lonas_edge.bench.machine import describe
from lonas_edge.network.solving import SHRINKAGE
from lonas_edge.versions import versions

PACKAGES = ("lonas-edge", "torch", "transformers", "peft")
LEAST_SQUARES, BIAS, SEQUENTIAL, BACK, BLOCK = (
    "least squares",
    "with a bias",
    "sequential",
    "sequential, towards the maximal stream",
    "block-wise",
)
Streams = list[torch.Tensor]  # hidden states, [tokens, hidden], of each prompt


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source")
    parser.add_argument("--subnet", required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--held-out", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--prompts", type=int, default=512)
    parser.add_argument("--held-out-prompts", type=int, default=128)
    parser.add_argument("--steps", type=int, default=100, help="of block-wise training, each on --tokens tokens")
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--lr", type=float, default=1e-4)
    parser.add_argument("--output", type=Path)
    return parser.parse_args()


def prompts(file: Path, count: int, tokenizer: Any) -> list[torch.Tensor]:
    """The first examples of a file as the training saw them, every so many of it; token ids [1, tokens]."""
    rows = json.loads(file.read_text())
    rows = rows[:: max(1, len(rows) // count)][:count]
    return [tokenizer(f"Question: {r['instruction']}\nAnswer: {r['output']}", return_tensors="pt").input_ids for r in rows]


class Stream:
    """The hidden states of a network on all prompts, one layer after another."""

    def __init__(self, model: Any, asked: list[torch.Tensor]):
        self.model = model
        self.layers = model.model.layers
        self.hidden: Streams = [model.model.embed_tokens(ids) for ids in asked]

    def attend(self, index: int) -> tuple[Streams, Streams]:
        """What the MLP's residual is, and what the MLP is given."""
        layer, residual, given = self.layers[index], [], []
        for hidden in self.hidden:
            places = torch.arange(hidden.shape[1])[None]
            rotary = self.model.model.rotary_emb(hidden, places)
            attended, *_ = layer.self_attn(
                hidden_states=layer.input_layernorm(hidden), position_embeddings=rotary, attention_mask=None
            )
            residual.append(hidden + attended)
            given.append(layer.post_attention_layernorm(residual[-1]))
        return residual, given


def inner(mlp: Any, given: torch.Tensor) -> torch.Tensor:
    """What `down_proj` is given, [tokens, width]."""
    found: torch.Tensor = mlp.act_fn(mlp.gate_proj(given)) * mlp.up_proj(given)
    return found.flatten(0, -2)


def joined(parts: Streams) -> torch.Tensor:
    return torch.cat([part.flatten(0, -2) for part in parts])


def fitted(features: torch.Tensor, wanted: torch.Tensor, own: torch.Tensor, bias: bool = False) -> tuple[torch.Tensor, Any]:
    """argmin |wanted - features W^T - b|^2 + d |W - own|^2 in float64; b is 0 without `bias`."""
    x, y, w = features.double(), wanted.double(), own.double()
    means = (x.mean(0), y.mean(0)) if bias else (torch.zeros(x.shape[1]), torch.zeros(y.shape[1]))
    x, y = x - means[0], y - means[1]
    square = x.T @ x
    shrink = SHRINKAGE * features.double().square().sum(0).mean() * torch.eye(x.shape[1], dtype=torch.float64)
    weight = torch.linalg.solve(square + shrink, (y.T @ x + w @ shrink).T).T
    return weight.float(), (means[1] - weight @ means[0].double()).float() if bias else None


def train_block(mlp: Any, given: torch.Tensor, wanted: torch.Tensor, arguments: argparse.Namespace, seed: int) -> None:
    """Gate, up and down together, on the MLP's output."""
    generator = torch.Generator().manual_seed(seed)
    weights = [mlp.gate_proj.weight, mlp.up_proj.weight, mlp.down_proj.weight]
    with torch.enable_grad():
        for weight in weights:
            weight.requires_grad_(True)
        optimizer = torch.optim.Adam(weights, arguments.lr)
        for step in range(arguments.steps):
            optimizer.param_groups[0]["lr"] = arguments.lr * (1 - step / arguments.steps)
            chosen = torch.randint(len(given), (arguments.tokens,), generator=generator)
            loss = (mlp(given[chosen]) - wanted[chosen]).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        for weight in weights:
            weight.requires_grad_(False)


def solved(way: str, whole: Any, cut: Any, asked: list[torch.Tensor], arguments: argparse.Namespace) -> Any:
    """The sub-network, solved in one of the ways."""
    model, own_stream = copy.deepcopy(cut), way in (SEQUENTIAL, BACK)
    reference, stream = Stream(whole, asked), Stream(model, asked)
    for index, layer in enumerate(model.model.layers):
        large, small = whole.model.layers[index].mlp, layer.mlp
        residual, given = reference.attend(index)
        made = [large(one) for one in given]
        own_residual, own_given = stream.attend(index) if own_stream else (residual, given)
        if small.down_proj.in_features < large.down_proj.in_features:
            features = joined([inner(small, one)[None] for one in own_given])
            wanted = joined(made)
            if way == SEQUENTIAL:
                wanted = joined([large(one) for one in own_given])
            if way == BACK:
                wanted = joined([a + b - c for a, b, c in zip(residual, made, own_residual, strict=True)])
            weight, bias = fitted(features, wanted, small.down_proj.weight, way == BIAS)
            small.down_proj.weight.data = weight
            if bias is not None:
                small.down_proj.bias = torch.nn.Parameter(bias, requires_grad=False)
            if way == BLOCK:
                train_block(small, joined(given), wanted, arguments, index)
        reference.hidden = [a + b for a, b in zip(residual, made, strict=True)]
        if own_stream:
            stream.hidden = [a + small(b) for a, b in zip(own_residual, own_given, strict=True)]
    return model


def divergence(whole: Any, model: Any, asked: list[torch.Tensor]) -> float:
    """Mean KL(whole ‖ model) in nats a position."""
    found = []
    for ids in asked:
        p, q = (one(ids).logits[0].double().log_softmax(-1) for one in (whole, model))
        found += (p.exp() * (p - q)).sum(-1).tolist()
    return statistics.mean(found)


def exported(arguments: argparse.Namespace, subnet: str) -> Any:
    """A network as a checkpoint, loaded in fp32."""
    folder = arguments.work / ("maximal" if subnet == "maximal" else "cut")
    if not folder.exists():
        options = ["--stage", "checkpoint", "--dtype", "fp32"]
        lonas_edge("export", arguments.source, "--subnet", subnet, *options, "--output", folder)
    return package.load_checkpoint(folder).eval().requires_grad_(False)


def main() -> None:
    arguments = parse()
    arguments.work.mkdir(parents=True, exist_ok=True)
    whole, cut = exported(arguments, "maximal"), exported(arguments, arguments.subnet)
    tokenizer = AutoTokenizer.from_pretrained(arguments.work / "maximal")
    asked = prompts(arguments.data, arguments.prompts, tokenizer)
    held_out = prompts(arguments.held_out, arguments.held_out_prompts, tokenizer)
    rows: dict[str, dict[str, float]] = {}

    def tell(name: str, make: Callable[[], Any]) -> None:
        start = time.perf_counter()
        model = make()
        rows[name] = {"seconds": round(time.perf_counter() - start, 1), "kl": divergence(whole, model, held_out)}
        print(f"{name:40} KL {rows[name]['kl']:.4f} nats  {rows[name]['seconds']:.0f} s", flush=True)

    with torch.no_grad():
        tell("plain", lambda: cut)
        for way in (LEAST_SQUARES, BIAS, SEQUENTIAL, BACK, BLOCK):
            tell(way, lambda way=way: solved(way, whole, cut, asked, arguments))  # type: ignore[misc]
    kept = ("prompts", "held_out_prompts", "steps", "tokens", "lr")
    report = {
        "conditions": {**describe("CPU"), "versions": versions(PACKAGES)},
        "settings": {**{name: getattr(arguments, name) for name in kept}, "shrinkage": SHRINKAGE},
        "solved_on_tokens": sum(ids.numel() for ids in asked),
        "ways": rows,
    }
    if arguments.output:
        arguments.output.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
