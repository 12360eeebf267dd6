"""Latencies of the report, from samples of `bench`."""

from lonas_edge.bench.measure import Sample
from lonas_edge.bench.variants import Case, Timing
from lonas_edge.pipeline.measure import _latency

CASE = Case(8, 0)


def samples(name: str, rounds: range, milliseconds: float) -> list[Sample]:
    """Of one variant, each round 1 % slower than the one before."""
    return [Sample(name, CASE, number, Timing((), milliseconds * 1.01**number), 0) for number in rounds]


def test_pairs_of_networks_where_memory_is_short() -> None:
    """Ours takes turns with each baseline: it has a ratio to the first, and the second baseline has none."""
    first, second = samples("int8", range(8), 20), samples("int4", range(8, 16), 30)
    ours = [*samples("subnet", range(8), 10), *samples("subnet", range(8, 16), 10)]
    found = [_latency(each, first, lambda timing: timing.end_to_end) for each in (first, second, ours)]
    assert [each.ratio is None for each in found] == [True, True, False]
    assert found[2].ratio and abs(found[2].ratio.value - 0.5) < 1e-9
    assert len(found[2].samples) == 16 and found[1].median.value > 30
