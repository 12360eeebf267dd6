"""The report of a benchmark: tables and Markdown."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from lonas_edge.bench.record import BenchRecord, Comparison, metric_titles
from lonas_edge.bench.statistics import MIN_PAIRS, Ratio
from lonas_edge.bench.variants import SUBNET, Case
from lonas_edge.tables import Table


def case_tables(report: BenchRecord, case: Case) -> list[Table]:
    """Return the tables of one case: latencies, ratios, and ratios for equal texts where these differ."""
    tables = [latency_table(report, case)]
    if report.comparisons:
        texts = text_table(report, case)
        tables += [ratio_table(report, case), *([texts] if texts else [])]
    return tables


def latency_table(report: BenchRecord, case: Case) -> Table:
    """Return medians and 90th percentiles of one case."""
    titles = metric_titles(case)
    metrics = list(titles)[:2]  # end to end follows from TTFT and TPOT
    headings = ["variant", *(heading for metric in metrics for heading in (f"{titles[metric]} ms", "p90"))]
    headings.append("tokens/s" if case.new_tokens else "sequences/s")
    rows = []
    for row in report.rows:
        if row.case == case:
            summaries = [getattr(row, metric) for metric in metrics]
            cells = [f"{value:.1f}" for summary in summaries for value in (summary.p50, summary.p90)]
            rows.append([row.variant, *cells, f"{row.throughput.p50:.1f}"])
    return Table(headings, rows, str(case))


def ratio_table(report: BenchRecord, case: Case) -> Table:
    """Return the ratios of one case with their intervals."""
    titles = metric_titles(case)
    ratios = {(c.baseline, c.metric): c.ratio for c in report.comparisons if c.case == case}
    baselines = dict.fromkeys(baseline for baseline, _ in ratios)
    rows = [[name, *(show_ratio(ratios[name, metric]) for metric in titles)] for name in baselines]
    return Table([f"{SUBNET} vs", *titles.values()], rows)


def text_table(report: BenchRecord, case: Case) -> Table | None:
    """Return the ratios of one case for equal texts, where vocabularies differ in tokens per text; None where none does."""
    tokens = {variant.name: variant.tokens_per_text for variant in report.variants}
    if len(set(tokens.values())) == 1:
        return None

    def scaled(comparison: Comparison) -> Comparison:
        ratio, factor = comparison.ratio, tokens[comparison.variant] / tokens[comparison.baseline]
        low, high = (None if end is None else end * factor for end in (ratio.low, ratio.high))
        return replace(comparison, ratio=replace(ratio, value=ratio.value * factor, low=low, high=high))

    table = ratio_table(replace(report, comparisons=[scaled(each) for each in report.comparisons]), case)
    return replace(table, headings=[f"{SUBNET} vs, for equal texts", *table.headings[1:]])


def show_ratio(ratio: Ratio) -> str:
    """Format a ratio with its interval."""
    interval = "" if ratio.low is None else f" [{ratio.low:.2f}, {ratio.high:.2f}]"
    return f"{ratio.value:.2f}x{interval}"


def variant_table(report: BenchRecord) -> Table:
    """Return the facts of the variants."""
    rows = []
    for variant in report.variants:
        facts = variant.facts
        framework = variant.framework.removesuffix("_genai")
        cells = [variant.name, framework + ("" if variant.device.lower() == "cpu" else f" {variant.device}"), variant.precision]
        if facts is None:
            rows.append([*cells, "", "", "", ""])
            continue
        cells[-1] += f", {facts.kv_precision}" if facts.kv_precision else ""
        sizes = (facts.parameters, facts.disk_bytes, facts.peak_memory_bytes)
        cells += ["" if size is None else f"{size / 1e6:,.0f}" for size in sizes]
        rows.append([*cells, f"{facts.load_seconds:.1f}"])
    return Table(["variant", "runs in", "weights, KV", "params M", "disk MB", "peak MB", "load s"], rows, "Variants")


def explain(report: BenchRecord) -> str:
    """Explain the tables."""
    texts = next((table for row in report.rows if (table := text_table(report, row.case))), None)
    return (
        f"Medians and 90th percentiles of the rounds. Ratio: latency of {SUBNET} over that of the baseline, paired by round, "
        f"with its 95 % interval (over starts, with {MIN_PAIRS} or more); below 1 {SUBNET} is faster."
        + ("" if texts is None else " For equal texts: times tokens per text, which a trimmed vocabulary raises.")
    )


def describe_conditions(report: BenchRecord) -> list[str]:
    """Describe the conditions in a few lines."""
    conditions = report.conditions
    machine, schedule = conditions["machine"], conditions["schedule"]
    files = {row.case.data for row in report.rows if row.case.data}
    prompts = f"prompts of {', '.join(files)}" if files else "distinct random prompts"
    instructions = f" ({', '.join(machine['instructions'])})" if machine.get("instructions") else ""
    return [
        f"{machine['processor']}{instructions}, {conditions['threads']} threads on processors {conditions['cores']}, "
        f"{machine['memory_bytes'] / 1e9:.1f} GB; IRs on {machine['device']} ({machine['device_name']})",
        f"{schedule['rounds']} interleaved rounds in {schedule['starts']} starts, {schedule['warmup']} warm-ups each, one "
        f"process per variant, {prompts}, no prefix cache; processor used by "
        f"others {report.load.get('others', 0):.0%}, host {report.load.get('stolen', 0):.0%}; {machine['date']}",
        ", ".join(f"{name} {version}" for name, version in conditions["versions"].items()),
    ]


def to_markdown(report: BenchRecord) -> str:
    """Format the report as Markdown."""
    lines = [f"# Latency of {report.model['base']['name']}, {report.model['subnetwork']['name']} sub-network", ""]
    lines += [f"> **{warning}**\n>" for warning in report.warnings]
    for case in dict.fromkeys(row.case for row in report.rows):
        lines += ["", f"## {case}", ""]
        for table in case_tables(report, case):
            lines += [*table.to_markdown(), ""]
    lines += [explain(report), "", "## Variants", "", *variant_table(report).to_markdown(), ""]
    if report.failures:
        lines += ["## Not measured", "", *[f"- {failure.reason}" for failure in report.failures], ""]
    properties = [f"- {v.name}: {_properties(v.properties)}" for v in report.variants if v.properties]
    return "\n".join([*lines, "## Conditions", "", *[f"- {line}" for line in describe_conditions(report)], *properties, ""])


def _properties(properties: Mapping[str, str]) -> str:
    return ", ".join(f"{name}={value}" for name, value in properties.items())


def write(report: BenchRecord, folder: Path) -> None:
    """Write bench.json and bench.md into an existing directory."""
    report.write(folder / "bench.json")
    (folder / "bench.md").write_text(to_markdown(report), encoding="utf-8")
