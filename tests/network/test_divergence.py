"""Divergence of generated texts, against hand-computed values."""

import pytest

from lonas_edge.network.divergence import TextDivergence, compare_texts

A, B, C, D, X, Y, END = range(1, 8)


@pytest.mark.parametrize(
    ("reference", "text", "fdt", "sdt"),
    [
        ([A, B, C, D], [A, B, C, D], 4, 0),  # equal
        ([A, B, C, D], [A, B, X, D], 2, 1),  # one token is another
        ([A, B, C, D], [X, B, C, D], 0, 1),  # the first one is
        ([A, B, C, D], [A, X, B, C], 1, 1),  # one is inserted: B and C are found again
        ([A, B, C, D], [B, C, D, X], 0, 1),  # shifted
        ([A, B, C, D], [X, Y, X, Y], 0, 4),  # nothing in common
        ([A, B, C, END], [A, END], 1, 0),  # ends earlier: what is there is right, in order
        ([A, END], [A, B, C, END], 1, 2),  # ends later
        ([A, B], [A, B, C], 2, 1),  # the reference is its beginning
        ([A, A, A, A, A, A], [A, X, A, A, A, A], 1, 2),  # SequenceMatcher gives the first A to the longest block
    ],
)
def test_one_text(reference: list[int], text: list[int], fdt: int, sdt: int) -> None:
    found = compare_texts([reference], [text], 9)
    equal = int(reference == text)
    assert found == TextDivergence(fdt, fdt / len(reference), sdt, sdt / len(text), equal, 1, 9)


def test_several_texts() -> None:
    """FDT norm is a ratio of means, SDT norm a mean of ratios, as who_what_benchmark has them."""
    reference, texts = [[A, B, C, D], [A, B], [C, D, X]], [[A, B, X, Y, X], [A, B], [D]]
    found = compare_texts(reference, texts, 5)
    assert found.fdt == pytest.approx((2 + 2 + 0) / 3)
    assert found.fdt_norm == pytest.approx(((2 + 2 + 0) / 3) / ((4 + 2 + 3) / 3))
    assert found.sdt == pytest.approx((3 + 0 + 0) / 3)
    assert found.sdt_norm == pytest.approx((3 / 5 + 0 / 2 + 0 / 1) / 3)
    assert (found.equal, found.prompts, found.new_tokens) == (1, 3, 5)
