"""Figures of an evaluation beside those that were published for the same weights."""

import logging
from collections.abc import Mapping

from vitadapter.model_zoo.trained_models import SCHEME, find_trained_model
from vitadapter.visualization.markdown import markdown_table

__all__ = ["log_published"]

logger = logging.getLogger(__name__)


def log_published(source: str, found: Mapping[str, float]) -> None:
    """Logs a table of both, where the weights are of the model zoo and have published figures.

    Args:
        source: what the weights were loaded from.
        found: metrics of this evaluation in percent, such as {"bbox/AP": 48.2}; none in all
            processes but the first.
    """
    if not found or not source.startswith(SCHEME):
        return
    published = find_trained_model(source.removeprefix(SCHEME)).published
    if not published:
        return
    names = dict.fromkeys(name for figures in published.values() for name in figures)
    columns = {"here": found}
    columns |= {f"published {overrides}".strip(): f for overrides, f in published.items()}
    rows = [["metric", *columns]]
    for name in names:
        figures = [column.get(name) for column in columns.values()]
        rows.append([name, *("-" if figure is None else f"{figure:.1f}" for figure in figures)])
    logger.info("%s, published for its own test set:\n%s", source, markdown_table(rows))
