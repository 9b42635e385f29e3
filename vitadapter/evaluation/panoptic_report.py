"""What an evaluation of panoptic segmentation writes: a table."""

from collections.abc import Sequence

import numpy as np

from vitadapter.evaluation.markdown import markdown_table
from vitadapter.evaluation.panoptic_quality import average_quality, quality_of

__all__ = ["format_table"]


def _percent(values: Sequence[float]) -> list[str]:
    return ["-" if np.isnan(value) else f"{100 * value:.2f}" for value in values]


def format_table(class_names: Sequence[str], num_things: int, counts: np.ndarray) -> str:
    """Averages and the figures of each class as Markdown tables.

    Args:
        class_names: K names, things first.
        num_things: how many are things.
        counts: (K, 4), as `quality_of` takes them.
    """
    qualities = quality_of(counts)
    summary = [["", "PQ", "SQ", "RQ", "classes"]]
    for title, group in (
        ("all", qualities),
        ("things", qualities[:num_things]),
        ("stuff", qualities[num_things:]),
    ):
        average = average_quality(group)
        cells = ["-", "-", "-", "0"]
        if average is not None:
            cells = [*_percent(average[:3]), str(average.num_classes)]
        summary.append([title, *cells])
    rows = [["class", "PQ", "SQ", "RQ", "matched", "false", "missed"]]
    for name, quality, count in zip(class_names, qualities, counts, strict=True):
        numbers = [str(int(number)) for number in count[:3]]
        rows.append([name, *_percent(quality), *numbers])
    return f"{markdown_table(summary)}\n\n{markdown_table(rows)}"
