"""Tables in Markdown, read again by a parser of Markdown."""

from markdown_it import MarkdownIt

from lonas_edge.tables import Table


def test_names_with_special_characters() -> None:
    """A directory's name may hold a vertical bar or an emphasis; figures are to the right."""
    rows = [["a|b", "1 %"], ["*c*_d_", "2 %"], ["plain", ""]]
    html = MarkdownIt().enable("table").render("\n".join(Table(("name", "Δ"), rows).to_markdown()))
    for cell in ("<td>a|b</td>", "<td>*c*_d_</td>", "<td>plain</td>", 'align:right">1 %</td>'):
        assert cell in html
    assert html.count("<tr>") == 4 and html.count("<td") == 6
