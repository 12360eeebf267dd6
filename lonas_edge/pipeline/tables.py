"""Numbers, tables and sentences of a compression: for the terminal, Markdown, HTML and the model card."""

import json
import math
from collections.abc import Sequence
from typing import Any

from lonas_edge.pipeline.options import KEEP
from lonas_edge.pipeline.record import CompressRecord, Interval, Network
from lonas_edge.pipeline.tasks import LAYER, PIPELINE_TASKS, Column, PipelineTask, Timed

Table = tuple[list[str], list[list[str]]]  # headings, rows

MISSING = "–"
_KINDS = {"mlp": "MLP"}
_COSTS = {"tpot": "TPOT", "ttft": "TTFT", "macs": "MACs", "end-to-end": "end-to-end time"}
_LONGEST_NUMBER = 1e7  # larger ones are written with an exponent
_HOUR, _MINUTE = 3600, 60
# what starts a block, emphasis, code, an image or a link, a cell, a tag, a character reference


def task_of(record: CompressRecord) -> PipelineTask:
    """The task of the compressed model."""
    return PIPELINE_TASKS[record.task]


def qualities_of(record: CompressRecord) -> list[Column]:
    """The qualities that were measured."""
    return [column for column in task_of(record).qualities if all(column.name in each.quality for each in record.networks)]


def network_table(record: CompressRecord) -> Table:
    """Return the table of the measured networks; differences and ratios are from the first one."""
    qualities, latencies = qualities_of(record), task_of(record).latencies
    headings = ["network"]
    for column in qualities:
        headings += [column.title] if column.listed else []
        headings.append(f"{column.difference} [95 %]")
    for timed in latencies:
        headings += [f"{timed.title}, ms", f"{timed.title} ratio [95 %]"]
    return [*headings, "size, MB"], [_row(network, qualities, latencies) for network in record.networks]


def _row(network: Network, qualities: Sequence[Column], latencies: Sequence[Timed]) -> list[str]:
    cells = [network.name]
    for column in qualities:
        figure = network.quality[column.name]
        cells += [number(figure.value, column.digits[0])] if column.listed else []
        cells.append(difference(figure.difference, column.digits[1]))
    for timed in latencies:
        times = network.latency[timed.name]
        cells += [number(times.median.value, timed.digits), ratio(times.ratio)]
    return [*cells, megabytes(network.file_bytes)]


def explain(record: CompressRecord) -> str:
    """Explain the table."""
    first = [f"Δ and ratios: compared with {record.networks[0].name}, paired."] if len(record.networks) > 1 else []
    held_out = f"{record.examples['held_out']:,} held-out examples" if "held_out" in record.examples else "held-out examples"
    explained = [column.explained.format(held_out=held_out) for column in qualities_of(record)]
    lengths = task_of(record).lengths.format(record.prompt_len, record.new_tokens)
    more = record.tokens_per_text
    texts = [f"Ratios are for equal texts: the smaller vocabulary takes {more:.3f}x the tokens."] if more != 1 else []
    latency = f"Latency: medians, {lengths}."
    return " ".join((*explained, *first, latency, *texts, "In brackets: 95 % intervals.", *record.warnings))


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
    timed = task_of(record).latencies[-1]
    qualities = [column for column in qualities_of(record) if column.listed]
    times = network.latency[timed.name]
    if times.ratio is None or any(network.quality[column.name].difference is None for column in qualities):
        values = (f"{column.title} {number(network.quality[column.name].value, column.digits[0])}" for column in qualities)
        return f"{start}. {timed.title} {number(times.median.value, timed.digits)} ms, {', '.join(values)}, {size}."
    size += f" ({network.file_bytes / first.file_bytes:.2f}x)" if first.file_bytes else ""
    changes = (
        f"{column.title} {difference(network.quality[column.name].difference, column.digits[1])}{column.unit}"
        for column in qualities
    )
    return (
        f"{start}{_searched(record, network)}. Compared with {first.name}: {timed.title} {ratio(times.ratio)}, "
        f"{', '.join(changes)}, {size}."
    )


def _removed(record: CompressRecord, network: Network) -> str:
    """What was removed, such as `9 of 30 attention blocks removed`."""
    parts = [part for layer in network.removed for part in layer]
    gone = sum(all(part.kept == 0 for part in layer) for layer in network.removed)
    whole = task_of(record).block == LAYER
    kinds = {kind: [part.kept for part in parts if part.kind == kind] for kind in dict.fromkeys(part.kind for part in parts)}
    named = [
        f"{kept.count(0)} of {len(kept)} {_KINDS.get(kind, kind)} blocks removed" for kind, kept in kinds.items() if 0 in kept
    ]
    named = [f"{gone} of {len(network.removed)} layers removed"] * bool(gone) if whole else named
    narrowed = any(0 < part.kept < part.full for part in parts)
    trimmed = record.options.get("vocabulary", KEEP) != KEEP
    named += ["widths reduced"] if narrowed else []
    named += ["vocabulary trimmed"] if trimmed else []
    return ", ".join(named) or "nothing was removed"


def _searched(record: CompressRecord, network: Network) -> str:
    """What the search predicted for a target, and for latencies what was measured next to the stock file in the format."""
    found = next((each for each in record.candidates if network.target in each.picks), None)
    if found is None:
        return ""
    stock = next((each for each in record.networks if each.target is None and each.weight_format == _stock(network)), None)
    measured = ""
    if stock and record.cost in network.latency:
        times = [each.latency[record.cost].median.value for each in (network, stock)]
        figure = times[0] / times[1] * record.tokens_per_text if times[1] else math.nan
        measured = f"; measured: {number(figure, 2)}x that of {stock.name}"
    distance = task_of(record).distance.sentence.format(number(found.kl, 3))
    return (
        f". For {network.target}, the search predicted {number(found.cost, 2)}x the {cost_title(record.cost)} of the unpruned "
        f"network in the same format, at {distance} before the recovery{measured}"
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
    generated = {"generated tokens": record.new_tokens} if record.new_tokens else {}
    lengths = {f"{'prompt ' * bool(generated)}tokens of the latencies": record.prompt_len, **generated}
    parts: dict[str, dict[str, Any]] = {
        "Machine": {name.replace("_", " "): value for name, value in record.machine.items()},
        "Versions": dict(record.versions),
        "Data": {"file": record.data, **counts, **lengths},
        "SHA-256 of the inputs": dict(record.sha256),
        "Options": record.options,
    }
    return {title: {name: show(value) for name, value in part.items()} for title, part in parts.items() if part}
