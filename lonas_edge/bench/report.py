"""The report of a benchmark: typed, versioned, as JSON, CSV and Markdown."""

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lonas_edge.bench.arms import SUBNET, Arm, Case, Facts
from lonas_edge.bench.measure import Measured
from lonas_edge.bench.memory import kv_bytes
from lonas_edge.bench.runners import ENGINES
from lonas_edge.bench.speculation import Speculation, Texts
from lonas_edge.bench.statistics import MIN_PAIRS, NOISY_HALF_WIDTH, NOISY_OTHERS, Speedup, Summary, speedup, summarize
from lonas_edge.bench.timing import Timing
from lonas_edge.schema import Record

# Names as in openvino_genai's PerfMetrics; milliseconds.
METRICS: dict[str, Callable[[Timing], float]] = {
    "ttft": lambda timing: 1e3 * timing.ttft,
    "tpot": lambda timing: 1e3 * timing.tpot,
    "generate_duration": lambda timing: 1e3 * timing.end_to_end,
}


@dataclass(frozen=True)
class Work:
    """What a run does, and what is told of it.

    Attributes:
        titles: Its metrics, and what people call them.
        unit: Of its throughput.
        explained: What its tables show beside times.
    """

    titles: Mapping[str, str]
    unit: str
    explained: str


GENERATION = Work(
    {"ttft": "TTFT", "tpot": "TPOT", "generate_duration": "end to end"},
    "tokens/s",
    "Limit: bytes of weights and KV cache that a token reads, over the measured memory bandwidth. ",
)
ONE_PASS = Work({"generate_duration": "latency"}, "sequences/s", "")
MODEL_FIELDS = ("base", "adapter", "subnetwork", "weight_format", "sizes")  # of the manifest, that a report repeats


def work_of(case: Case) -> Work:
    """What is done in a case."""
    return GENERATION if case.new_tokens else ONE_PASS


@dataclass(frozen=True)
class ArmReport:
    """An arm, and what is known of it apart from latency."""

    name: str
    framework: str
    device: str
    precision: str
    source: str
    properties: Mapping[str, str]
    facts: Facts | None


@dataclass(frozen=True)
class Row:
    """Latency of one arm in one case; milliseconds, throughput in tokens a second over the whole batch.

    Where nothing is generated there is neither `ttft` nor `tpot`; `generate_duration` is the pass, throughput in sequences.

    `decode_limit_ms` is the least a decoding step can take: the bytes of weights and KV cache it reads, over the measured
    memory bandwidth; `decode_share_of_limit` is that over the median TPOT. Both only on a CPU.
    """

    arm: str
    case: Case
    ttft: Summary | None
    tpot: Summary | None
    generate_duration: Summary
    throughput: Summary
    decode_limit_ms: float | None
    decode_share_of_limit: float | None


@dataclass(frozen=True)
class Comparison:
    """Speed-up of the sub-network over one arm: its time over the sub-network's, paired over rounds."""

    arm: str
    case: Case
    metric: str
    speedup: Speedup


@dataclass(frozen=True)
class Failure:
    """What could not be measured, and why."""

    arm: str
    prompt_len: int
    new_tokens: int
    batch_size: int
    reason: str


@dataclass(frozen=True)
class Generation:
    """One generation or pass that counts; seconds. `round` and `start` count from 0 over its session."""

    session: int
    arm: str
    prompt_len: int
    new_tokens: int
    batch_size: int
    start: int
    round: int
    token_times: tuple[float, ...]
    end_to_end: float
    ttft: float | None
    tpot: float | None


@dataclass(frozen=True)
class Report(Record):
    """A benchmark.

    Attributes:
        model: What `lonas_edge.json` says of base, adapter and sub-network.
        conditions: Machine, versions, placement, properties, schedule.
        load: Shares of the processor that others used and that the host took, while measuring.
        bandwidth: Bytes a second read from memory, the median over the rounds; None where not measured.
        arms: The arms.
        rows: Latency by arm and case.
        comparisons: Speed-ups by arm, case and metric.
        speculations: What speculative decoding gave, by arm and case.
        failures: What could not be measured, and why.
        warnings: What a reader must know.
        interrupted: Whether it was ended early.
        samples: Every generation that counts.
    """

    NAME = "bench"
    VERSION = 1
    AGAIN = "Run `lonas-edge bench` again."

    model: Mapping[str, Any]
    conditions: Mapping[str, Any]
    load: Mapping[str, float]
    bandwidth: float | None
    arms: Sequence[ArmReport]
    rows: Sequence[Row]
    comparisons: Sequence[Comparison]
    speculations: Sequence[Speculation]
    failures: Sequence[Failure]
    warnings: Sequence[str]
    interrupted: bool
    samples: Sequence[Generation] = field(repr=False)


def arm_report(arm: Arm, facts: Facts | None) -> ArmReport:
    """Describe an arm; nothing in it carries a path."""
    return ArmReport(
        arm.name, ENGINES[arm.kind].framework, arm.device, arm.precision, arm.path.name, dict(arm.properties), facts
    )


def rows(
    sessions: Sequence[Measured],
    arms: Sequence[ArmReport],
    cases: Sequence[Case],
    configs: Mapping[str, Mapping[str, Any]],
    bandwidth: float | None,
) -> list[Row]:
    """Summarize every arm in every case that has samples.

    Args:
        sessions: What was measured; an arm in several of them is pooled.
        arms: The arms.
        cases: The settings.
        configs: Content of each arm's config.json, for the size of its KV cache.
        bandwidth: Bytes a second read from memory.

    Returns:
        The rows, by case and arm.
    """
    found = []
    for case in cases:
        for arm in arms:
            timings = [timing for session in sessions for timing in session.timings(arm.name, case)]
            if timings:
                found.append(_row(arm, case, timings, configs[arm.name], bandwidth))
    return found


def _row(arm: ArmReport, case: Case, timings: Sequence[Timing], config: Mapping[str, Any], bandwidth: float | None) -> Row:
    asked = work_of(case).titles
    summaries = {name: summarize([METRICS[name](timing) for timing in timings]) for name in asked}
    produced = (case.new_tokens or 1) * case.batch_size
    throughput = summarize([produced / timing.end_to_end for timing in timings])
    limit = share = None
    on_cpu = arm.device.lower() == "cpu"
    if case.new_tokens and bandwidth and on_cpu and arm.facts and arm.facts.weight_bytes_per_token:
        cache = case.batch_size * kv_bytes(config, case.prompt_len + case.new_tokens / 2, arm.facts.kv_precision)
        limit = 1e3 * (arm.facts.weight_bytes_per_token + cache) / bandwidth
        share = limit / summaries["tpot"].p50
    of_tokens = {"ttft": None, "tpot": None}
    times: dict[str, Any] = {**of_tokens, **summaries}
    return Row(arm.name, case, **times, throughput=throughput, decode_limit_ms=limit, decode_share_of_limit=share)


def comparisons(sessions: Sequence[Measured], arms: Sequence[str], cases: Sequence[Case]) -> list[Comparison]:
    """Speed-ups of the sub-network over the other arms, each from the session that both were in."""
    found = []
    for case in cases:
        for arm in arms:
            for metric in work_of(case).titles:
                for session in sessions:
                    subnet, other, starts = session.paired(SUBNET, arm, case, METRICS[metric])
                    if arm != SUBNET and other:
                        found.append(Comparison(arm, case, metric, speedup(other, subnet, starts)))
                        break
    return found


def warnings(found: Sequence[Comparison], load: Mapping[str, float], interrupted: bool, rounds: int, starts: int) -> list[str]:
    """What a reader must know before quoting a figure.

    Args:
        found: The speed-ups.
        load: Shares of the processor that others used and that the host took.
        interrupted: Whether Ctrl-C ended the run.
        rounds: Rounds that were asked for.
        starts: Starts that they were to be spread over.

    Returns:
        Sentences.
    """
    told = []
    if interrupted:
        told.append("Interrupted: the figures are of the rounds done until then.")
    busy = load.get("others", 0.0) + load.get("stolen", 0.0)
    if busy > NOISY_OTHERS:
        told.append(
            f"Too noisy: {load.get('others', 0.0):.0%} of the processor was used by other programs and "
            f"{load.get('stolen', 0.0):.0%} taken by the host (more than {NOISY_OTHERS:.0%} in all). "
            "Stop them, and measure again."
        )
    few = next((c.speedup.rounds for c in found if c.speedup.low is None), None)
    if few is not None:
        told.append(f"{few} rounds give no 95 % interval; {MIN_PAIRS} are the least.")
    over_rounds = [c for c in found if c.speedup.low is not None and c.speedup.starts < MIN_PAIRS]
    if over_rounds and starts < MIN_PAIRS:
        told.append(
            f"The intervals are over the rounds of {starts} {'start' if starts == 1 else 'starts'} of the arms: what a program "
            f"differs from one start to the next is not in them. With --starts {MIN_PAIRS} or more it is."
        )
    elif over_rounds:
        which = dict.fromkeys(f"{c.arm}, {c.case} ({c.speedup.starts} of {starts})" for c in over_rounds)
        told.append(
            f"Fewer than {MIN_PAIRS} starts were done with {'; '.join(which)}: those intervals are over rounds, and what a "
            "program differs from one start to the next is not in them."
        )
    for case in dict.fromkeys(c.case for c in found):
        wide = [
            f"{work_of(case).titles[c.metric]} against {c.arm} (±{c.speedup.half_width:.0%})"
            for c in found
            if c.case == case and c.speedup.half_width is not None and c.speedup.noisy
        ]
        if wide:
            told.append(
                f"Too noisy for a claim, {case}: the interval is wider than ±{NOISY_HALF_WIDTH:.0%} of the speed-up: "
                f"{', '.join(wide)}. Take more than {rounds} rounds and {starts} starts, or a quieter machine."
            )
    return told


def text_warnings(found: Sequence[Speculation]) -> list[str]:
    """What a reader must know of texts that are not those without a draft."""
    told = []
    for one in found:
        where = f"{one.arm}, {one.case}"
        if one.texts.equal < one.texts.compared:
            differing = one.texts.compared - one.texts.equal
            told.append(
                f"{where}: {differing} of {one.texts.compared} texts are not those without the draft: at the precision of this "
                "run, a pass over several tokens rounds otherwise than passes over one, and tokens that are nearly as likely "
                f"change places. {_in_fp32(one.exact)}"
            )
        elif one.exact and one.exact.equal < one.exact.compared:
            told.append(f"{where}: {_in_fp32(one.exact)}")
    return told


def _in_fp32(texts: Texts | None) -> str:
    return "It was not tried in fp32." if texts is None else f"In fp32 {texts.equal} of {texts.compared} are equal."


def failures(sessions: Sequence[Measured]) -> list[Failure]:
    """What could not be measured."""
    return [Failure(arm, **vars(case), reason=why) for s in sessions for (arm, case), why in s.failures.items()]


def samples(sessions: Sequence[Measured]) -> list[Generation]:
    """Every generation that counts, with its session."""
    return [
        _generation(number, s.arm, s.case, s.start, s.round, s.timing)
        for number, session in enumerate(sessions)
        for s in session.samples
    ]


def _generation(session: int, arm: str, case: Case, start: int, number: int, timing: Timing) -> Generation:
    ttft, tpot = (timing.ttft, timing.tpot) if timing.token_times else (None, None)
    lengths = (case.prompt_len, case.new_tokens, case.batch_size)
    return Generation(session, arm, *lengths, start, number, timing.token_times, timing.end_to_end, ttft, tpot)


def write(report: Report, folder: Path) -> None:
    """Write bench.json, bench.csv and bench.md.

    Args:
        report: The benchmark.
        folder: An existing directory.
    """
    report.write(folder / "bench.json")
    (folder / "bench.csv").write_text(to_csv(report), encoding="utf-8", newline="")
    (folder / "bench.md").write_text(to_markdown(report), encoding="utf-8")


def to_csv(report: Report) -> str:
    """One line for each arm and case. Columns are named as in openvino_genai (ttft, tpot, …) and llm_bench (input_size, …)."""
    output = io.StringIO()
    table = csv.writer(output, lineterminator="\n")
    figures = [f"{metric}_{part}" for metric in (*METRICS, "throughput") for part in Summary.__annotations__]
    known = ["load_seconds", "compile_seconds", "peak_memory_bytes", "disk_bytes", "parameters", "macs_per_token"]
    gains = [f"speedup_{metric}{end}" for metric in METRICS for end in ("", "_low", "_high")]
    head = ["arm", "framework", "device", "precision", "batch_size", "input_size", "output_size"]
    paired = ["speedup_rounds", "speedup_starts"]
    table.writerow([*head, *figures, "decode_limit_ms", "decode_share_of_limit", *known, *gains, *paired])
    arms = {arm.name: arm for arm in report.arms}
    for row in report.rows:
        arm, case = arms[row.arm], row.case
        facts = vars(arm.facts) if arm.facts else {}
        parts = [value for metric in (*METRICS, "throughput") for value in _cells(getattr(row, metric))]
        gain = {c.metric: c.speedup for c in report.comparisons if (c.arm, c.case) == (row.arm, case)}
        ends = [getattr(gain.get(metric), name, None) for metric in METRICS for name in ("ratio", "low", "high")]
        line = [arm.name, arm.framework, arm.device, arm.precision, case.batch_size, case.prompt_len, case.new_tokens]
        ends += [getattr(gain.get("generate_duration"), name, None) for name in ("rounds", "starts")]
        line += [*parts, row.decode_limit_ms, row.decode_share_of_limit, *(facts.get(name) for name in known), *ends]
        table.writerow(line)
    return output.getvalue()


def _cells(summary: Summary | None) -> list[float | int | None]:
    return list(asdict(summary).values()) if summary else [None] * len(Summary.__annotations__)


SPECULATION_HEADINGS = ("arm", "k", "accepted", "α", "per pass", "c", "v", "formula", "TPOT", "texts")
SPECULATION_EXPLAINED = (
    "Speculative decoding: k tokens proposed at a time; accepted of all proposed; α: the chance of a token where those before "
    "it were accepted; tokens per pass of the main model; c and v: the draft's time for a token, and that of a pass which "
    "checks, over the sub-network's TPOT; how many times as fast by the formula (1 − α^(k+1)) / ((1 − α)(kc + 1)), and in TPOT "
    "as measured; texts equal to those without the draft, at this precision and in fp32."
)


def speculation_table(report: Report) -> list[list[str]]:
    """What speculative decoding gave, as people read it, in the order of SPECULATION_HEADINGS."""
    return [
        [
            one.arm,
            f"{one.assistant_tokens}",
            "" if one.acceptance_rate is None else f"{one.acceptance_rate:.0%}",
            "" if one.acceptance is None else f"{one.acceptance:.2f}",
            f"{one.tokens_per_pass:.2f}",
            f"{one.draft_cost:.2f}",
            f"{one.pass_cost:.2f}",
            "" if one.predicted is None else f"{one.predicted:.2f} x",
            f"{one.measured.ratio:.2f} x",
            ", ".join(f"{texts.equal}/{texts.compared}" for texts in (one.texts, one.exact) if texts),
        ]
        for one in report.speculations
    ]


ARM_HEADINGS = ("arm", "runs in", "weights, KV", "params M", "disk MB", "peak MB", "load s (compile)")


def headings(case: Case) -> list[str]:
    """Of `latency_table`."""
    work = work_of(case)
    times = [heading for metric in _in_table(work) for heading in (f"{work.titles[metric]} ms", "p90")]
    return ["arm", *times, work.unit, *(["of limit"] if case.new_tokens else [])]


def _in_table(work: Work) -> list[str]:
    """Metrics with a column: the whole of a generation follows from its parts."""
    return list(work.titles)[:2] if len(work.titles) > 2 else list(work.titles)


def explained(report: Report) -> str:
    """What the tables of a report show."""
    works = dict.fromkeys(work_of(row.case).explained for row in report.rows)
    return (
        f"Medians and 90th percentiles of the rounds. {''.join(works)}Speed-up: how many times faster subnet is than the arm, "
        f"paired over rounds, with its 95 % interval (over the starts, where there are {MIN_PAIRS} or more)."
    )


def latency_table(report: Report, case: Case) -> list[list[str]]:
    """Medians and 90th percentiles of one case, as people read them, in the order of `headings`."""
    shown = []
    for row in report.rows:
        if row.case == case:
            summaries = [getattr(row, metric) for metric in _in_table(work_of(case))]
            latency = [f"{value:.1f}" for summary in summaries for value in (summary.p50, summary.p90)]
            share = "" if row.decode_share_of_limit is None else f"{row.decode_share_of_limit:.0%}"
            shown.append([row.arm, *latency, f"{row.throughput.p50:.1f}", *([share] if case.new_tokens else [])])
    return shown


def speedup_headings(case: Case) -> list[str]:
    """Of `speedup_table`."""
    return ["subnet over", *work_of(case).titles.values()]


def speedup_table(report: Report, case: Case) -> list[list[str]]:
    """Speed-ups of one case with their intervals, as people read them, in the order of `speedup_headings`."""
    found = {(c.arm, c.metric): c.speedup for c in report.comparisons if c.case == case}
    titles = work_of(case).titles
    return [[arm, *(show_speedup(found[arm, metric]) for metric in titles)] for arm in dict.fromkeys(arm for arm, _ in found)]


def show_speedup(gain: Speedup) -> str:
    """A speed-up with its interval, as people read it."""
    ends = "" if gain.low is None else f" [{gain.low:.2f}, {gain.high:.2f}]"
    return f"{gain.ratio:.2f} x{ends}"


def arm_table(report: Report) -> list[list[str]]:
    """The arms apart from latency, as people read them, in the order of ARM_HEADINGS."""
    shown = []
    for arm in report.arms:
        facts = arm.facts
        where = arm.framework.removesuffix("_genai") + ("" if arm.device.lower() == "cpu" else f" {arm.device}")
        cells = [arm.name, where, arm.precision]
        if facts is not None:
            cells[-1] += f", {facts.kv_precision}" if facts.kv_precision else ""
            sizes = (facts.parameters, facts.disk_bytes, facts.peak_memory_bytes)
            cells += ["" if size is None else f"{size / 1e6:,.0f}" for size in sizes]
            compiling = "" if facts.compile_seconds is None else f" ({facts.compile_seconds:.1f})"
            cells.append(f"{facts.load_seconds:.1f}{compiling}")
        shown.append(cells + [""] * (len(ARM_HEADINGS) - len(cells)))
    return shown


def describe_conditions(report: Report) -> list[str]:
    """The conditions in a few lines."""
    told = report.conditions
    machine, schedule = told["machine"], told["schedule"]
    bandwidth = "" if report.bandwidth is None else f", {report.bandwidth / 1e9:.1f} GB/s read from memory (measured)"
    used = ", ".join(f"{name} {version}" for name, version in told["versions"].items())
    able = f" ({', '.join(machine['instructions'])})" if machine.get("instructions") else ""
    pages = machine.get("transparent_huge_pages")
    pages = f"; huge pages: {pages}" if pages else ""
    pages += f", {tunables}" if (tunables := machine.get("glibc_tunables")) else ""
    shares = f"others {report.load.get('others', 0):.0%}, host {report.load.get('stolen', 0):.0%}"
    return [
        f"{machine['processor']}{able}, {told['threads']} threads on processors {told['cores']}, "
        f"{machine['memory_bytes'] / 1e9:.1f} GB{bandwidth}; IRs on {machine['device']} ({machine['device_name']}){pages}",
        f"{schedule['rounds']} rounds in {schedule['starts']} starts, {schedule['warmup']} warm-ups each, arms in an order "
        f"drawn for each round, each in its own process, {_prompts(told.get('prompts'))}, no prefix cache; "
        f"processor used by {shares}; {machine['date']}",
        used,
    ]


def _prompts(told: Mapping[str, Any] | None) -> str:
    if told is None:
        return "distinct random prompts"
    tokens = told["tokens"]
    lengths = f"{tokens['min']} to {tokens['max']} tokens, median {tokens['median']:g}"
    return f"{told['distinct']} prompts of {told['data']} ({lengths}; as {told['template']})"


def to_markdown(report: Report) -> str:
    """The report as Markdown."""
    base, chosen = report.model["base"]["name"], report.model["subnetwork"]["name"]
    lines = [f"# Latency of {base}, {chosen} sub-network", ""]
    lines += [f"> **{warning}**\n>" for warning in report.warnings]
    for case in dict.fromkeys(row.case for row in report.rows):
        lines += ["", f"## {case}", "", *_markdown(headings(case), latency_table(report, case)), ""]
        lines += _markdown(speedup_headings(case), speedup_table(report, case))
    if report.speculations:
        lines += ["", "## Speculative decoding", "", *_markdown(SPECULATION_HEADINGS, speculation_table(report))]
        lines += ["", SPECULATION_EXPLAINED]
    lines += ["", explained(report), ""]
    lines += ["## Arms", "", *_markdown(ARM_HEADINGS, arm_table(report)), ""]
    if report.failures:
        lines += ["## Not measured", "", *[f"- {failure.reason}" for failure in report.failures], ""]
    properties = [f"- {arm.name}: {_properties(arm.properties)}" for arm in report.arms if arm.properties]
    return "\n".join([*lines, "## Conditions", "", *[f"- {line}" for line in describe_conditions(report)], *properties, ""])


def _properties(properties: Mapping[str, str]) -> str:
    return ", ".join(f"{name}={value}" for name, value in properties.items())


def _markdown(headings: Sequence[str], cells: Sequence[Sequence[str]]) -> list[str]:
    lines = [list(headings), ["---"] * len(headings), *cells]
    return ["| " + " | ".join(line) + " |" for line in lines]
