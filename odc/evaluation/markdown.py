"""Tables of results as Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from odc.errors import printable


def escaped(text: str) -> str:
    """Return text, from anybody, on one line and without markup."""
    return printable(text).replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|")


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """Return rows of cells, the first the heading, as a Markdown table whose columns are aligned."""
    rows = [[escaped(cell) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["| " + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "|".join("-" * (w + 2) for w in widths) + "|", *lines[1:]])
