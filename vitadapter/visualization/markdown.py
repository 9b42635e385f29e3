"""Markdown tables that are aligned, so that they can be read in a terminal as well."""

import math
from collections.abc import Sequence

__all__ = ["figure_cell", "markdown_table"]


def figure_cell(value: float | None, digits: int) -> str:
    """A figure as a text; "-" if it is None or NaN."""
    return "-" if value is None or math.isnan(value) else f"{value:.{digits}f}"


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """Formats an aligned table.

    Args:
        rows: of equal length; the first one is the header. The first column is aligned to the left,
            and the others, which have numbers, to the right.
    """
    rows = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    lines = []
    for first, *others in (rows[0], rule, *rows[1:]):
        cells = [first.ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
