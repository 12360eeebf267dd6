"""Plot a benchmark as PNG files."""

from pathlib import Path
from typing import Any

from lonas_edge.bench.record import METRICS, BenchRecord, metric_titles
from lonas_edge.bench.variants import SUBNET


def write_plots(report: BenchRecord, folder: Path) -> list[Path]:
    """Draw the distributions of latency and the ratios, in the longest case at the smallest batch size."""
    import matplotlib

    matplotlib.use("Agg")
    files = []
    for name, draw, known in (
        ("distributions", _distributions, report.rows),
        ("ratio", _ratios, report.comparisons),
    ):
        if known:
            files.append(folder / f"{name}.png")
            draw(report).savefig(files[-1], dpi=120)
    return files


def _distributions(report: BenchRecord) -> Any:
    """Draw every round of every variant: quartiles as a box, each round as a point."""
    case = _main_case(report)
    names = [row.variant for row in report.rows if row.case == case]
    figure, panels = _panels(report, f"Latency in each round: {case}", names)
    for metric, title, axis in panels:
        for position, name in enumerate(names):
            own = [sample.timing for sample in report.samples if (sample.variant, sample.case) == (name, case)]
            values = [METRICS[metric](timing) for timing in own]
            axis.boxplot(values, positions=[position], orientation="horizontal", widths=0.6, showfliers=False)
            axis.plot(values, [position] * len(values), "o", alpha=0.5, markersize=4)
        axis.set(xlabel=f"{title} in ms (log scale)", xscale="log", yticks=range(len(names)), yticklabels=names)
        _label_plainly(axis.xaxis)
    return figure


def _ratios(report: BenchRecord) -> Any:
    """Draw the latency of the sub-network over that of each baseline, with 95 % intervals."""
    case = _main_case(report)
    ratios = {(c.baseline, c.metric): c.ratio for c in report.comparisons if c.case == case}
    names = list(dict.fromkeys(baseline for baseline, _ in ratios))
    figure, panels = _panels(report, f"Latency of {SUBNET} vs baselines, 95 % interval (below 1: faster): {case}", names)
    for metric, title, axis in panels:
        for position, name in enumerate(names):
            ratio = ratios[name, metric]
            known = ratio.low is not None and ratio.high is not None
            interval = [[ratio.value - ratio.low], [ratio.high - ratio.value]] if known else None  # type: ignore[operator]
            axis.barh(position, ratio.value, xerr=interval, capsize=4, height=0.6)
            axis.annotate(f"{ratio.value:.2f}x", (ratio.value, position), (8, 8), textcoords="offset points", fontsize=9)
        axis.axvline(1, color="black", linewidth=1)
        axis.margins(x=0.2)
        axis.set(xlabel=f"{title}: {SUBNET} / baseline", yticks=range(len(names)), yticklabels=names, xlim=(0, None))
    return figure


def _main_case(report: BenchRecord) -> Any:
    return max((row.case for row in report.rows), key=lambda case: (-case.batch_size, case.prompt_len, case.new_tokens))


def _panels(report: BenchRecord, title: str, names: list[str]) -> tuple[Any, list[tuple[str, str, Any]]]:
    """Make a figure with a panel for TTFT and TPOT, or a classifier's latency: metric, title and axis of each."""
    from matplotlib.figure import Figure

    metrics = list(metric_titles(_main_case(report)).items())[:2]
    figure = Figure(figsize=(5.5 * len(metrics), 1.2 + 0.6 * len(names)), layout="constrained")
    figure.suptitle(title)
    axes = figure.subplots(1, len(metrics), squeeze=False)[0]
    for axis in axes:
        axis.invert_yaxis()
        axis.grid(axis="x", which="both", alpha=0.3)
    return figure, [(metric, name, axis) for (metric, name), axis in zip(metrics, axes, strict=True)]


def _label_plainly(axis: Any) -> None:
    """Label a log axis with a few plain numbers instead of powers of ten."""
    from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

    axis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=12))
    axis.set_major_formatter(ScalarFormatter())
    axis.set_minor_formatter(NullFormatter())
