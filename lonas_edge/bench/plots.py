"""Plots of a benchmark, as PNG files."""

from pathlib import Path
from typing import Any

from lonas_edge.bench.arms import SUBNET, Case
from lonas_edge.bench.report import METRICS, Generation, Report, Row, work_of
from lonas_edge.bench.timing import Timing


def write_plots(report: Report, folder: Path) -> list[Path]:
    """Draw the distributions of latency, latency over the prompt length, and the speed-ups.

    Args:
        report: The benchmark.
        folder: An existing directory.

    Returns:
        The files; what there is no data for is not drawn.
    """
    import matplotlib

    matplotlib.use("Agg")
    drawn = []
    for name, draw in (("distributions", _distributions), ("prompt_length", _over_prompt_length), ("speedup", _speedups)):
        figure = draw(report)
        if figure is not None:
            path = folder / f"{name}.png"
            figure.savefig(path, dpi=120)
            drawn.append(path)
    return drawn


def _figure(columns: int, height: float) -> tuple[Any, list[Any]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.5 * columns, height), layout="constrained")
    return figure, list(figure.subplots(1, columns, squeeze=False)[0])


def _colors(report: Report) -> dict[str, Any]:
    import matplotlib

    palette = matplotlib.colormaps["tab10"]
    return {arm.name: palette(index % 10) for index, arm in enumerate(report.arms)}


def _last_case(report: Report) -> Case:
    """The case that is drawn where there is room for one: the longest at the smallest batch size."""
    return max((row.case for row in report.rows), key=lambda case: (-case.batch_size, case.prompt_len, case.new_tokens))


def _distributions(report: Report) -> Any:
    """Every round of every arm, for one case: a box of the quartiles and a point for each."""
    if not report.rows:
        return None
    case, colors = _last_case(report), _colors(report)
    names = [row.arm for row in report.rows if row.case == case]
    drawn = _drawn(case)
    figure, axes = _figure(len(drawn), 1.2 + 0.6 * len(names))
    for axis, (metric, title) in zip(axes, drawn.items(), strict=True):
        for position, name in enumerate(names):
            own = [sample for sample in report.samples if sample.arm == name and _is(sample, case)]
            values = [METRICS[metric](Timing(sample.token_times, sample.end_to_end)) for sample in own]
            axis.boxplot(values, positions=[position], orientation="horizontal", widths=0.6, showfliers=False)
            axis.plot(values, [position] * len(values), "o", color=colors[name], alpha=0.5, markersize=4)
        axis.set(xlabel=f"{title} in ms (log scale)", xscale="log", yticks=range(len(names)), yticklabels=names)
        _plain_log(axis.xaxis)
        axis.invert_yaxis()
        axis.grid(axis="x", which="both", alpha=0.3)
    figure.suptitle(f"Latency of every round: {case}")
    return figure


def _plain_log(axis: Any) -> None:
    """Numbers, not powers of ten, and few enough of them to read."""
    from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

    axis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=12))
    axis.set_major_formatter(ScalarFormatter())
    axis.set_minor_formatter(NullFormatter())


def _drawn(case: Case) -> dict[str, str]:
    """The metrics that are drawn, with their titles: of a generation its parts."""
    titles = work_of(case).titles
    return {metric: title for metric, title in titles.items() if len(titles) == 1 or metric != "generate_duration"}


def _is(sample: Generation, case: Case) -> bool:
    return all(getattr(sample, name) == value for name, value in vars(case).items())


def _over_prompt_length(report: Report) -> Any:
    """Latency over the prompt length, with the range from the 10th to the 90th percentile of the rounds."""
    if len({row.case.prompt_len for row in report.rows}) < 2:
        return None
    shown, colors = _last_case(report), _colors(report)
    drawn = _drawn(shown)
    figure, axes = _figure(len(drawn), 4.2)
    for axis, (metric, title) in zip(axes, drawn.items(), strict=True):
        for name, color in colors.items():
            own = [row for row in report.rows if row.arm == name and _alike(row, shown)]
            own.sort(key=lambda row: row.case.prompt_len)
            lengths = [row.case.prompt_len for row in own]
            summaries = [getattr(row, metric) for row in own]
            axis.plot(lengths, [s.p50 for s in summaries], "o-", color=color, label=name)
            axis.fill_between(lengths, [s.min for s in summaries], [s.p90 for s in summaries], color=color, alpha=0.15)
        axis.set(xlabel="prompt length in tokens", ylabel=f"{title} in ms (log scale)", yscale="log")
        _plain_log(axis.yaxis)
        axis.grid(which="both", alpha=0.3)
    axes[0].legend()
    figure.suptitle(f"Median of the rounds, minimum to 90th percentile shaded; batch size {shown.batch_size}")
    return figure


def _alike(row: Row, case: Case) -> bool:
    return (row.case.new_tokens, row.case.batch_size) == (case.new_tokens, case.batch_size)


def _speedups(report: Report) -> Any:
    """Speed-up of the sub-network over every other arm, with the 95 % interval."""
    if not report.comparisons:
        return None
    case = _last_case(report)
    names = list(dict.fromkeys(c.arm for c in report.comparisons if c.case == case and c.arm != SUBNET))
    drawn = _drawn(case)
    figure, axes = _figure(len(drawn), 1.2 + 0.6 * max(1, len(names)))
    for axis, (metric, title) in zip(axes, drawn.items(), strict=True):
        for position, name in enumerate(names):
            gain = next(c.speedup for c in report.comparisons if (c.arm, c.case, c.metric) == (name, case, metric))
            ends = None if gain.low is None or gain.high is None else [[gain.ratio - gain.low], [gain.high - gain.ratio]]
            axis.barh(position, gain.ratio, xerr=ends, color=_colors(report)[name], capsize=4, height=0.6)
            axis.annotate(f"{gain.ratio:.2f} x", (gain.ratio, position), (8, 8), textcoords="offset points", fontsize=9)
        axis.axvline(1, color="black", linewidth=1)
        axis.margins(x=0.2)
        axis.set(xlabel=f"{title}: speed-up of subnet", yticks=range(len(names)), yticklabels=names, xlim=(0, None))
        axis.invert_yaxis()
        axis.grid(axis="x", alpha=0.3)
    figure.suptitle(f"Speed-up of the sub-network, 95 % interval: {case}")
    return figure
