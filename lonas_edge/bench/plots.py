"""Plot a benchmark as PNG files."""

from pathlib import Path
from typing import Any

from lonas_edge.bench.record import METRICS, BenchRecord, metric_titles
from lonas_edge.bench.variants import SUBNET, Case


def write_plots(report: BenchRecord, folder: Path) -> list[Path]:
    """Draw the distributions of latency, latency over the prompt length, and the ratios; skip plots without data."""
    import matplotlib

    matplotlib.use("Agg")
    files = []
    for name, draw in (("distributions", _distributions), ("prompt_length", _over_prompt_length), ("ratio", _ratios)):
        figure = draw(report)
        if figure is not None:
            files.append(folder / f"{name}.png")
            figure.savefig(files[-1], dpi=120)
    return files


def _figure(columns: int, height: float) -> tuple[Any, list[Any]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.5 * columns, height), layout="constrained")
    return figure, list(figure.subplots(1, columns, squeeze=False)[0])


def _colors(report: BenchRecord) -> dict[str, Any]:
    import matplotlib

    palette = matplotlib.colormaps["tab10"]
    return {variant.name: palette(index % 10) for index, variant in enumerate(report.variants)}


def _main_case(report: BenchRecord) -> Case:
    """Return the case of plots that show one: the longest at the smallest batch size."""
    return max((row.case for row in report.rows), key=lambda case: (-case.batch_size, case.prompt_len, case.new_tokens))


def _panels(case: Case) -> dict[str, str]:
    """Return the metrics with a panel and their titles: TTFT and TPOT, or a classifier's latency."""
    return dict(list(metric_titles(case).items())[:2])


def _distributions(report: BenchRecord) -> Any:
    """Draw every round of every variant in the main case: quartiles as a box, each round as a point."""
    if not report.rows:
        return None
    case, colors = _main_case(report), _colors(report)
    names = [row.variant for row in report.rows if row.case == case]
    panels = _panels(case)
    figure, axes = _figure(len(panels), 1.2 + 0.6 * len(names))
    for axis, (metric, title) in zip(axes, panels.items(), strict=True):
        for position, name in enumerate(names):
            own = [sample.timing for sample in report.samples if (sample.variant, sample.case) == (name, case)]
            values = [METRICS[metric](timing) for timing in own]
            axis.boxplot(values, positions=[position], orientation="horizontal", widths=0.6, showfliers=False)
            axis.plot(values, [position] * len(values), "o", color=colors[name], alpha=0.5, markersize=4)
        axis.set(xlabel=f"{title} in ms (log scale)", xscale="log", yticks=range(len(names)), yticklabels=names)
        _plain_log(axis.xaxis)
        axis.invert_yaxis()
        axis.grid(axis="x", which="both", alpha=0.3)
    figure.suptitle(f"Latency in each round: {case}")
    return figure


def _plain_log(axis: Any) -> None:
    """Label a log axis with a few plain numbers instead of powers of ten."""
    from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

    axis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=12))
    axis.set_major_formatter(ScalarFormatter())
    axis.set_minor_formatter(NullFormatter())


def _over_prompt_length(report: BenchRecord) -> Any:
    """Draw the median latency over the prompt length, with the range from the minimum to the 90th percentile."""
    if len({row.case.prompt_len for row in report.rows}) < 2:
        return None
    main, panels = _main_case(report), _panels(_main_case(report))
    figure, axes = _figure(len(panels), 4.2)
    for axis, (metric, title) in zip(axes, panels.items(), strict=True):
        for name, color in _colors(report).items():
            own = [
                row
                for row in report.rows
                if (row.variant, row.case.new_tokens, row.case.batch_size) == (name, main.new_tokens, main.batch_size)
            ]
            own.sort(key=lambda row: row.case.prompt_len)
            lengths = [row.case.prompt_len for row in own]
            summaries = [getattr(row, metric) for row in own]
            axis.plot(lengths, [s.p50 for s in summaries], "o-", color=color, label=name)
            axis.fill_between(lengths, [s.min for s in summaries], [s.p90 for s in summaries], color=color, alpha=0.15)
        axis.set(xlabel="prompt length in tokens", ylabel=f"{title} in ms (log scale)", yscale="log")
        _plain_log(axis.yaxis)
        axis.grid(which="both", alpha=0.3)
    axes[0].legend()
    figure.suptitle(f"Median of the rounds; shaded: minimum to 90th percentile; batch size {main.batch_size}")
    return figure


def _ratios(report: BenchRecord) -> Any:
    """Draw the latency of the sub-network over that of each baseline, with 95 % intervals."""
    if not report.comparisons:
        return None
    case, colors = _main_case(report), _colors(report)
    names = list(dict.fromkeys(c.baseline for c in report.comparisons if c.case == case))
    panels = _panels(case)
    figure, axes = _figure(len(panels), 1.2 + 0.6 * max(1, len(names)))
    for axis, (metric, title) in zip(axes, panels.items(), strict=True):
        for position, name in enumerate(names):
            ratio = next(c.ratio for c in report.comparisons if (c.baseline, c.case, c.metric) == (name, case, metric))
            has_interval = ratio.low is not None and ratio.high is not None
            interval = [[ratio.value - ratio.low], [ratio.high - ratio.value]] if has_interval else None  # type: ignore[operator]
            axis.barh(position, ratio.value, xerr=interval, color=colors[name], capsize=4, height=0.6)
            axis.annotate(f"{ratio.value:.2f}x", (ratio.value, position), (8, 8), textcoords="offset points", fontsize=9)
        axis.axvline(1, color="black", linewidth=1)
        axis.margins(x=0.2)
        axis.set(xlabel=f"{title}: {SUBNET} / baseline", yticks=range(len(names)), yticklabels=names, xlim=(0, None))
        axis.invert_yaxis()
        axis.grid(axis="x", alpha=0.3)
    figure.suptitle(f"Latency of {SUBNET} vs baselines, 95 % interval (below 1: faster): {case}")
    return figure
