"""Writes a report: a page, its data, and its pictures, in one folder."""

import json
import shutil
from collections.abc import Callable, Sequence
from importlib.resources import files
from pathlib import Path

from vitadapter.evaluation.coco import coco_evaluator
from vitadapter.evaluation.panoptic import panoptic_evaluator
from vitadapter.evaluation.sem_seg import sem_seg_evaluator
from vitadapter.report.label_maps import describe_label_maps
from vitadapter.report.objects import describe_objects
from vitadapter.report.pictures import Pictures
from vitadapter.report.run import Json, Run, curves, open_run, summary
from vitadapter.report.segments import describe_segments
from vitadapter.visualization.metrics_file import RunMetrics
from vitadapter.visualization.style import COLORS

__all__ = ["write_report"]

_PAGE = ("index.html", "report.css", "charts.js", "gallery.js", "report.js")
_DATA = "data.js"

Description = Callable[[Run, Json, RunMetrics | None, Pictures], tuple[Json, Path]]

_DESCRIPTIONS: dict[object, Description] = {
    coco_evaluator: describe_objects,
    sem_seg_evaluator: describe_label_maps,
    panoptic_evaluator: describe_segments,
}


def _check_folder(folder: Path) -> None:
    """Refuses to mix a report with other files."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--output {folder} must be a folder, but it is a file")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / _DATA).is_file():
        raise ValueError(
            f"--output {folder} must be an empty folder, a new one, or one with an earlier report, "
            "but it has other files"
        )


def write_report(
    run: str | Path, output: str | Path | None = None, overrides: Sequence[str] = ()
) -> tuple[Path, list[str]]:
    """Writes what a run has learned and what it gets wrong, as a page that opens without a server.

    Args:
        run: output folder of `vitadapter train` or `vitadapter eval`.
        output: folder to write; None for `report` in the run's folder. An earlier report there is
            replaced.
        overrides: of the run's config, such as `dataset.test.image_root=...` for data that has
            moved.

    Returns:
        The page, and notes on what its reader must know, such as renamed classes.

    Raises:
        ValueError: the run has not been evaluated, or its results and its data do not belong
            together.
    """
    opened = open_run(run, overrides)
    folder = opened.folder / "report" if output is None else Path(output).expanduser()
    _check_folder(folder)
    target, arguments = opened.evaluator()
    describe = _DESCRIPTIONS.get(target)
    if describe is None:
        known = ", ".join(sorted(each.__name__ for each in _DESCRIPTIONS))  # type: ignore
        name = getattr(target, "__name__", target)
        raise ValueError(f"dataloader.evaluator must be one of {known} for a report, got {name}")
    metrics = opened.metrics()
    # Beside its place, so that a failure leaves an earlier report as it was.
    unfinished = folder.with_name(f".{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    try:
        content, results = describe(opened, arguments, metrics, Pictures(unfinished))
        content["title"] = "/".join(opened.folder.resolve().parts[-2:])
        content["summary"] = summary(opened, metrics, results)
        content["curves"] = None if metrics is None else curves(metrics)
        content["lineColors"] = COLORS
        content["notes"] = opened.notes
        text = json.dumps(content, separators=(",", ":"), allow_nan=False)
        (unfinished / _DATA).write_text(f"const REPORT = {text};\n", encoding="utf-8")
        for name in _PAGE:
            text = files("vitadapter.report").joinpath(name).read_text(encoding="utf-8")
            (unfinished / name).write_text(text, encoding="utf-8")
        if folder.exists():
            shutil.rmtree(folder)
        unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return folder / "index.html", opened.notes
