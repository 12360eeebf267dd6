"""Numbers, tables and sentences of a compression: for the terminal, Markdown, HTML and the model card."""

import json
import math
from typing import Any

from lonas_edge.pipeline.options import KEEP
from lonas_edge.pipeline.record import CompressRecord, Interval, Network

Table = tuple[list[str], list[list[str]]]  # headings, rows

MISSING = "–"
HEADINGS = (
    "network",
    "held-out loss",
    "loss Δ [95 %]",
    "accuracy Δ, points [95 %]",
    "TTFT, ms",
    "TTFT ratio [95 %]",
    "TPOT, ms",
    "TPOT ratio [95 %]",
    "size, MB",
)

_KINDS = {"mlp": "MLP"}
_COSTS = {"tpot": "TPOT", "ttft": "TTFT", "macs": "MACs", "end-to-end": "end-to-end time"}
_LONGEST_NUMBER = 1e7  # larger ones are written with an exponent
_HOUR, _MINUTE = 3600, 60
# what starts a block, emphasis, code, an image or a link, a cell, a tag, a character reference


def network_table(record: CompressRecord) -> Table:
    """Return the table of the measured networks; differences and ratios are from the first one."""
    return list(HEADINGS), [_row(network) for network in record.networks]


def _row(network: Network) -> list[str]:
    return [
        network.name,
        number(network.loss, 3),
        difference(network.loss_difference, 3),
        difference(network.accuracy_difference, 2),
        number(network.ttft_ms.value, 1),
        ratio(network.ttft_ratio),
        number(network.tpot_ms.value, 2),
        ratio(network.tpot_ratio),
        megabytes(network.file_bytes),
    ]


def explain(record: CompressRecord) -> str:
    """Explain the table."""
    first = f" Δ and ratios: compared with {record.networks[0].name}, paired." if len(record.networks) > 1 else ""
    held_out = f"{record.examples['held_out']:,} held-out examples" if "held_out" in record.examples else "held-out examples"
    more = record.tokens_per_text
    texts = f" Ratios are for equal texts: the smaller vocabulary takes {more:.3f}x the tokens." if more != 1 else ""
    return " ".join(
        (
            f"Loss: nats per learned token of {held_out}. Accuracy: learned tokens that are the most likely ones.{first} "
            f"Latency: medians, {record.prompt_len} prompt tokens, {record.new_tokens} generated tokens.{texts} "
            "In brackets: 95 % intervals.",
            *record.warnings,
        )
    )


def summary(record: CompressRecord) -> list[str]:
    """State what was compressed, and the results of each compressed network."""
    base = f" (base model {record.base})" if record.base not in ("", record.source) else ""
    examples = f" with {record.examples['train']:,} examples of {record.data}" if record.examples.get("train") else ""
    took = duration(sum(step.seconds for step in record.steps))
    took = f" in {took}" if record.steps and took != MISSING else ""
    sentences = [f"{record.source}{base} was compressed{examples}{took}."]
    sentences += [] if record.candidates else ["No sub-networks were searched."]
    compressed = [network for network in record.networks if network.folder is not None]
    sentences += [_result(record, network) for network in compressed]
    return sentences if compressed else [*sentences, "No compressed network was kept."]


def _result(record: CompressRecord, network: Network) -> str:
    """State what was removed, what the search predicted for the target, and what was measured."""
    first, size = record.networks[0], f"{megabytes(network.file_bytes)} MB"
    start = f"{network.name}: {_removed(record, network)}"
    if network.tpot_ratio is None or network.loss_difference is None:
        return f"{start}. TPOT {number(network.tpot_ms.value, 2)} ms, held-out loss {number(network.loss, 3)}, {size}."
    size += f" ({network.file_bytes / first.file_bytes:.2f}x)" if first.file_bytes else ""
    return (
        f"{start}{_searched(record, network)}. Compared with {first.name}: TPOT {ratio(network.tpot_ratio)}, held-out loss "
        f"{difference(network.loss_difference, 3)}, {size}."
    )


def _removed(record: CompressRecord, network: Network) -> str:
    """What was removed, such as `9 of 30 attention blocks removed`."""
    parts = [part for layer in network.removed for part in layer]
    kinds = {kind: [part.kept for part in parts if part.kind == kind] for kind in dict.fromkeys(part.kind for part in parts)}
    named = [
        f"{kept.count(0)} of {len(kept)} {_KINDS.get(kind, kind)} blocks removed" for kind, kept in kinds.items() if 0 in kept
    ]
    narrowed = any(0 < part.kept < part.full for part in parts)
    trimmed = record.options.get("vocabulary", KEEP) != KEEP
    named += ["widths reduced"] if narrowed else []
    named += ["vocabulary trimmed"] if trimmed else []
    return ", ".join(named) or "nothing was removed"


def _searched(record: CompressRecord, network: Network) -> str:
    """What the search predicted for a target, and for TPOT and TTFT what was measured next to the stock file in the format."""
    found = next((each for each in record.candidates if network.target in each.picks), None)
    if found is None:
        return ""
    stock = next((each for each in record.networks if each.target is None and each.weight_format == _stock(network)), None)
    measured = ""
    if stock and record.cost in ("tpot", "ttft"):
        times = [(each.tpot_ms if record.cost == "tpot" else each.ttft_ms).value for each in (network, stock)]
        figure = times[0] / times[1] * record.tokens_per_text if times[1] else math.nan
        measured = f"; measured: {number(figure, 2)}x that of {stock.name}"
    return (
        f". For {network.target}, the search predicted {number(found.cost, 2)}x the {cost_title(record.cost)} of the unpruned "
        f"network in the same format, at a KL divergence of {number(found.kl, 3)} nats before the recovery{measured}"
    )


def _stock(network: Network) -> str:
    """The format of stock files with as many bits."""
    return network.weight_format.removesuffix("_sym")


def cost_title(cost: str) -> str:
    """A cost as titles have it."""
    return _COSTS.get(cost, cost)


def step_table(record: CompressRecord) -> Table:
    """Return the estimated and the actual time of each step, and their sums."""
    rows = [[step.name, duration(step.estimated_seconds), duration(step.seconds)] for step in record.steps]
    estimates = [step.estimated_seconds for step in record.steps]
    if len(rows) > 1:
        known = [seconds for seconds in estimates if seconds is not None]
        estimate = duration(sum(known)) if len(known) == len(estimates) else MISSING
        rows.append(["total", estimate, duration(sum(step.seconds for step in record.steps))])
    return ["step", "estimated", "actual"], rows


def number(value: float, digits: int, sign: bool = False) -> str:
    """Format a number that may be infinite or none."""
    if math.isnan(value):
        return "NaN"
    plus = "+" if sign else ""
    if math.isinf(value):
        return "-∞" if value < 0 else f"{plus}∞"
    return f"{value:{plus}.2e}" if abs(value) >= _LONGEST_NUMBER else f"{value:{plus}z.{digits}f}"


def difference(interval: Interval | None, digits: int) -> str:
    """Format a difference with its interval."""
    if interval is None:
        return MISSING
    value, low, high = (number(part, digits, sign=True) for part in (interval.value, interval.low, interval.high))
    return f"{value} [{low}, {high}]"


def ratio(interval: Interval | None) -> str:
    """Format a ratio with its interval."""
    if interval is None:
        return MISSING
    return f"{number(interval.value, 2)}x [{number(interval.low, 2)}, {number(interval.high, 2)}]"


def megabytes(size: int) -> str:
    """Format a size in MB, without the unit."""
    return f"{size / 1e6:,.0f}" if size >= 100e6 else f"{size / 1e6:.1f}"


def duration(seconds: float | None) -> str:
    """Format a duration."""
    if seconds is None or not math.isfinite(seconds):
        return MISSING
    if seconds < 10:
        return f"{max(seconds, 0):.1f} s"
    if round(seconds) < _MINUTE:
        return f"{seconds:.0f} s"
    minutes = round(seconds / _MINUTE)
    return f"{minutes} min" if minutes < _HOUR // _MINUTE else f"{minutes // 60} h {minutes % 60} min"


def show(value: Any) -> str:
    """Format the value of an option or a condition."""
    if value is None or value == "":
        return MISSING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, (list, tuple)) and not any(isinstance(part, (list, tuple, dict)) for part in value):
        return ", ".join(map(show, value)) or MISSING
    return json.dumps(value, ensure_ascii=False) if isinstance(value, (list, tuple, dict)) else str(value)


def conditions(record: CompressRecord) -> dict[str, dict[str, str]]:
    """Return the conditions by heading."""
    counts = {f"{part.replace('_', '-')} examples": f"{count:,}" for part, count in record.examples.items()}
    lengths = {"prompt tokens of the latencies": record.prompt_len, "generated tokens": record.new_tokens}
    parts: dict[str, dict[str, Any]] = {
        "Machine": {name.replace("_", " "): value for name, value in record.machine.items()},
        "Versions": dict(record.versions),
        "Data": {"file": record.data, **counts, **lengths},
        "SHA-256 of the inputs": dict(record.sha256),
        "Options": record.options,
    }
    return {title: {name: show(value) for name, value in part.items()} for title, part in parts.items() if part}
