"""Records of `compress` that are made up: a realistic one, and hostile text."""

import math
import random
from dataclasses import replace
from typing import Any

from lonas_edge.families import CAUSAL_LM
from lonas_edge.pipeline.record import Candidate, CompressRecord, Curve, Interval, Latency, Network, Quality, Sample, Step
from lonas_edge.space.picture import Layer, Part

HOSTILE = (
    "<script>alert(1)</script><img src=https://example.com/x onerror=alert(2)> {{ 7 * 7 }} {% raw %} </style> ]]> "
    "\"quoted\" 'single' a|b `code` $x_1$ &amp; ![i](https://example.com/i.png) \x00\x1b[31m\ud800"
)
RIGHT_TO_LEFT = "مرحبا بالعالم، هذا نص طويل من اليمين إلى اليسار \u202eoverride (123)"
FIRST, SECOND = "tpot<=0.7x", "tpot<=0.5x"


def near(value: float, half: float) -> Interval:
    return Interval(value, value - half, value + half)


def network(name: str, **changes: Any) -> Network:
    """A baseline of round numbers; qualities and latencies by names such as `loss_difference` and `tpot_samples`."""
    values: dict[str, Any] = {
        "name": name,
        "folder": None,
        "weight_format": "int8",
        "file_bytes": 136_000_000,
        "parameters": 134_515_008,
        "loss": 1.25,
        "loss_difference": None,
        "accuracy": 70.0,
        "accuracy_difference": None,
        "ttft_ms": near(200, 4),
        "tpot_ms": near(20, 0.25),
        "ttft_ratio": None,
        "tpot_ratio": None,
        "ttft_samples": (196.0, 200.0, 204.0),
        "tpot_samples": (19.5, 20.0, 20.5),
        "removed": (),
    }
    values |= changes
    quality = {name: Quality(values.pop(name), values.pop(f"{name}_difference")) for name in ("loss", "accuracy")}
    latency = {
        name: Latency(*(values.pop(f"{name}_{part}") for part in ("ms", "ratio", "samples"))) for name in ("ttft", "tpot")
    }
    return Network(**values, quality=quality, latency=latency)


def picture(count: int, seed: int = 1) -> tuple[Layer, ...]:
    """Layers of which some have narrow MLPs, and some no attention or no MLP."""
    draw = random.Random(seed)
    heads = [0 if draw.random() < 0.15 else draw.choice((9, 9, 9, 6)) for _ in range(count)]
    widths = [0 if draw.random() < 0.05 else draw.choice((1536, 1152, 960, 768)) for _ in range(count)]
    return tuple((Part("attention", h, 9), Part("mlp", w, 1536)) for h, w in zip(heads, widths, strict=True))


def small(*networks: Network, **changes: Any) -> CompressRecord:
    """A record without a search, training or samples."""
    values: dict[str, Any] = {
        "task": CAUSAL_LM.name,
        "source": "smollm2-lora",
        "base": "SmolLM2-135M",
        "data": "train.jsonl",
        "examples": {"train": 4000, "held_out": 200},
        "options": {"target": ["tpot<=0.7x"], "seed": 0, "teacher": None},
        "sha256": {"adapter_model.safetensors": "ab" * 32},
        "machine": {"processor": "Intel(R) Xeon(R) Processor", "cores": 2, "system": "Linux"},
        "versions": {"openvino": "2026.4.0", "torch": "2.6.0"},
        "cost": "tpot",
        "steps": (),
        "networks": networks,
        "curves": (),
        "candidates": (),
        "samples": (),
        "prompt_len": 256,
        "new_tokens": 64,
    }
    return CompressRecord(**values | changes)


def compressed(name: str, tpot: float, delta: float, **changes: Any) -> Network:
    """A compressed network, compared with a baseline of 20 ms and a loss of 1.25."""
    draw = random.Random(len(name))
    values: dict[str, Any] = {
        "folder": name.replace("<=", "-").replace(" ", "-"),
        "weight_format": "int4",
        "file_bytes": 61_500_000,
        "loss": 1.25 + delta,
        "loss_difference": Interval(delta, delta - 0.004, delta + 0.005),
        "accuracy": 69.5,
        "accuracy_difference": Interval(-0.5, -0.75, -0.25),
        "ttft_ms": near(10 * tpot, 3),
        "tpot_ms": near(tpot, 0.2),
        "ttft_ratio": near(tpot / 20, 0.02),
        "tpot_ratio": near(tpot / 20, 0.01),
        "ttft_samples": tuple(draw.gauss(10 * tpot, 4) for _ in range(40)),
        "tpot_samples": tuple(tpot * (1 + 0.03 * draw.expovariate(1)) for _ in range(40)),
    }
    return network(name, **values | changes)


def realistic(layers: int = 30) -> CompressRecord:
    """Four networks, 60 searched sub-networks, three trainings, four prompts."""
    draw = random.Random(0)
    gauss = draw.gauss
    baseline = network(
        "unpruned INT8 (optimum-cli)",
        ttft_samples=tuple(gauss(200, 5) for _ in range(40)),
        tpot_samples=tuple(20 * (1 + 0.03 * draw.expovariate(1)) for _ in range(40)),
    )
    networks = (
        baseline,
        compressed("unpruned INT4 (optimum-cli)", 15.4, 0.061, folder=None),
        compressed(f"compressed INT4 ({FIRST})", 13.1, 0.018, removed=picture(layers), target=FIRST),
        compressed(f"compressed INT4 ({SECOND})", 9.8, 0.094, removed=picture(layers, 5), target=SECOND),
    )
    points = [(1 - 0.6 * draw.random(), draw.random()) for _ in range(60)]
    candidates = [Candidate(cost, 0.002 * math.exp(9 * (1 - cost) + 2 * noise), False) for cost, noise in points]
    candidates.sort(key=lambda point: point.cost)
    for index in range(len(candidates)):
        point = candidates[index]
        candidates[index] = replace(point, optimal=all(p.kl > point.kl for p in candidates if p.cost < point.cost))
    for name, bound in ((FIRST, 0.7), (SECOND, 0.5)):
        best = min((p for p in candidates if p.optimal and p.cost <= bound), key=lambda p: p.kl)
        candidates[candidates.index(best)] = replace(best, picks=(name,))
    curves = tuple(
        Curve(
            name,
            tuple((step, level + 1.5 * level * math.exp(-step / 150) + gauss(0, 0.1) * level) for step in range(1, steps + 1)),
            tuple((step, 1.25 + 1.3 * math.exp(-step / 150)) for step in range(0, steps + 1, steps // 6)),
            distilled=level < 1,
        )
        for name, steps, level in (
            ("train the super-adapter", 1200, 1.2),
            (f"recover {FIRST}", 300, 0.1),
            (f"recover {SECOND}", 300, 0.1),
        )
    )
    answers = ("The capital of France is Paris.", "Paris. " * 40, "```python\nprint('Paris')\n```\n\n- one\n- two", "")
    samples = tuple(
        Sample(prompt, "Paris is the capital of France.", {n.name: answers[(i + k) % 4] for k, n in enumerate(networks)})
        for i, prompt in enumerate(("What is the capital of France?", "Write a haiku.\nAbout rain.", "x" * 900, RIGHT_TO_LEFT))
    )
    steps = tuple(
        Step(name, f"lonas-edge {command}", seconds, estimate)
        for name, command, seconds, estimate in (
            ("space", "space --model SmolLM2-135M --adapter smollm2-lora --output space.json", 3.2, None),
            (
                "train the super-adapter",
                "train --model SmolLM2-135M --data train.jsonl --steps 1200 --output super",
                4210,
                4000,
            ),
            ("search", f'search super --data train.jsonl --evals 60 --pick "{FIRST}" --pick "{SECOND}" --output s', 930, 1200),
            (f"recover {FIRST}", f"train --from super --subnet s/subnetworks/{FIRST}.json --weight-format int4", 1320, 1300),
            (f"export {FIRST} INT4", "export recovered --weight-format int4 --output out", 48, 60),
        )
    )
    changes = {"candidates": tuple(candidates), "curves": curves, "samples": samples, "steps": steps}
    return small(*networks, **changes, options={"target": [FIRST, SECOND], "weight_format": "int4", "evals": 60, "seed": 0})


def hostile() -> CompressRecord:
    """Markup, formulas, control characters and right-to-left text wherever a text can be; losses that are not finite."""
    bad = Interval(math.nan, -math.inf, math.inf)
    answers = {"unpruned": HOSTILE, f"a|b\n{HOSTILE}": "x" * 100_000, "other": RIGHT_TO_LEFT}
    networks = (
        network("unpruned"),
        compressed(f"a|b\n{HOSTILE}", 13.0, 0.01, loss=math.inf, loss_difference=bad, removed=((Part("mlp", 0, 8),), ())),
        compressed("c", 12.0, 0.01, tpot_ms=bad, tpot_samples=(), ttft_samples=(1.0,), accuracy_difference=bad),
        compressed("huge", 12.0, 1e300, tpot_samples=(math.nan, math.inf, 3.0)),
    )
    curves = (
        Curve(HOSTILE, (), ()),
        Curve("all NaN", ((1, math.nan), (2, math.inf)), ()),
        Curve("one", ((1, 1.0),), ()),
        Curve("diverged", ((1, 1.0), (2, 1e300), (3, 1e308), (4, 1e308)), ((4, math.nan),)),
    )
    candidates = (
        Candidate(1.0, 0.0, True),
        Candidate(0.5, math.nan, False),
        Candidate(0.7, 0.1, True, (HOSTILE,)),
        Candidate(0.6, math.inf, False),
    )
    return small(
        *networks,
        source=HOSTILE,
        data=HOSTILE,
        options={HOSTILE: {HOSTILE: [HOSTILE]}},
        machine={"processor": HOSTILE},
        steps=(Step(HOSTILE, f"echo {HOSTILE}\n```\nsecond line", math.nan, None),),
        curves=curves,
        candidates=candidates,
        samples=(Sample(HOSTILE, RIGHT_TO_LEFT, answers), Sample("", "", {})),
    )
