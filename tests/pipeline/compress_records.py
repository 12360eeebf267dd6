"""Records of `compress` that are made up."""

from dataclasses import replace
from typing import Any

from lonas_edge.bench.statistics import Interval
from lonas_edge.families import CAUSAL_LM
from lonas_edge.pipeline.record import Candidate, CompressRecord, Curve, Latency, Network, Quality, Sample, StepTime
from lonas_edge.space.picture import Part

HOSTILE = "<script>alert(1)</script><img src=https://example.com/x> {{ 7 * 7 }} </style> \"a\" 'b' c|d `e` $x_1$ &amp;"
TARGET = "tpot<=0.7x"


def near(value: float, half: float) -> Interval:
    return Interval(value, value - half, value + half)


def network(name: str, **changes: Any) -> Network:
    """A baseline of round numbers."""
    quality = {"loss": Quality(1.25, None), "accuracy": Quality(70.0, None)}
    latency = {"ttft": Latency(near(200, 4), None, (196.0, 204.0)), "tpot": Latency(near(20, 0.25), None, (19.5, 20.5))}
    return replace(Network(name, None, "int8", 136_000_000, 134_515_008, quality, latency, ()), **changes)


def compressed(name: str, tpot: float, delta: float, **changes: Any) -> Network:
    """A compressed network, compared with a baseline of 20 ms and a loss of 1.25."""
    quality = {
        "loss": Quality(1.25 + delta, Interval(delta, delta - 0.004, delta + 0.005)),
        "accuracy": Quality(69.5, Interval(-0.5, -0.75, -0.25)),
    }
    latency = {
        "ttft": Latency(near(10 * tpot, 3), near(tpot / 20, 0.02), (10 * tpot, 10 * tpot + 1)),
        "tpot": Latency(near(tpot, 0.2), near(tpot / 20, 0.01), (tpot, tpot + 0.1)),
    }
    removed = tuple((Part("attention", 9 * (index % 3 > 0), 9), Part("mlp", 1536, 1536)) for index in range(30))
    values: dict[str, Any] = {"folder": "model", "weight_format": "int4_sym", "file_bytes": 61_500_000, "target": TARGET}
    return network(name, **{**values, "quality": quality, "latency": latency, "removed": removed, **changes})


def record(*networks: Network, **changes: Any) -> CompressRecord:
    """A record with two steps, three searched sub-networks and two trainings."""
    values: dict[str, Any] = {
        "task": CAUSAL_LM.name,
        "source": "smollm2-lora",
        "base": "SmolLM2-135M",
        "data": "train.jsonl",
        "examples": {"train": 4000, "held_out": 200},
        "options": {"target": [TARGET], "seed": 0, "teacher": None},
        "sha256": {"base": "ab" * 32},
        "machine": {"processor": "Intel(R) Xeon(R) Processor", "cores": 2},
        "versions": {"openvino": "2026.4.0"},
        "cost": "tpot",
        "steps": (
            StepTime("search", "lonas-edge search lora --evals 60", 3000, 2000),
            StepTime("baselines", "lonas-edge export lora\noptimum-cli export openvino", 4000, None),
        ),
        "networks": networks,
        "curves": (
            Curve("fine-tune", ((1, 2.0), (2, 1.5)), ((0, 2.1), (2, 1.6))),
            Curve(f"recover {TARGET}", ((1, 0.2), (2, 0.1)), ((0, 1.9), (2, 1.7)), distilled=True),
        ),
        "candidates": (Candidate(1.0, 0.0, True), Candidate(0.69, 0.1234, True, (TARGET,)), Candidate(0.8, 0.3, False)),
        "samples": (Sample("Capital of France?", "Paris.", {each.name: f"Paris, says {each.name}" for each in networks}),),
        "prompt_len": 256,
        "new_tokens": 64,
    }
    return CompressRecord(**values | changes)


def realistic() -> CompressRecord:
    """Two baselines and a compressed network."""
    stock = compressed("unpruned INT4 (optimum-cli)", 16.0, 0.06, folder=None, removed=(), target=None)
    return record(network("unpruned INT8 (optimum-cli)"), stock, compressed("compressed INT4", 13.0, 0.0184))
