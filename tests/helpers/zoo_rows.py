"""The rows of the model zoo's page that start with a link to a config."""

import re
from pathlib import Path

from project_configs import PROJECT, ROW_OVERRIDES

__all__ = ["LINK", "PAGE", "ROWS", "Row"]

PAGE = PROJECT / "README.md"
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_OVERRIDES = re.compile(r",? `([^`]+)`$")

Row = dict[str, str]


def _test_of(row: Row) -> str:
    """The key of `ROW_OVERRIDES` that a row names, which is taken out of its cell; or ""."""
    for column in {"schedule", "settings"} & set(row):
        if found := _OVERRIDES.search(row[column]):
            row[column] = row[column].removesuffix(found[0])
            return {overrides: test for test, overrides in ROW_OVERRIDES.items()}[found[1]]
    return ""


def _rows() -> list[tuple[Path, str, Row]]:
    rows = []
    header: list[str] = []
    for line in PAGE.read_text().splitlines():
        if not line.startswith("|"):
            header = []
            continue
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if not header:
            header = cells
        elif set(line) > set("|-"):
            (target,) = LINK.findall(cells[0])
            row = dict(zip(header, cells, strict=True))
            rows.append((PROJECT / target, _test_of(row), row))
    return rows


# Config, key of `ROW_OVERRIDES` or "", and cells by column.
ROWS = _rows()
