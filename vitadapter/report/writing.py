"""Writes a report: a page, its data, and its pictures, in one folder."""

import json
import shutil
from collections.abc import Callable, Sequence
from importlib.resources import files
from pathlib import Path

from detectron2.utils.registry import locate
from omegaconf import DictConfig, OmegaConf

from vitadapter.data.dataset_source import first_few
from vitadapter.evaluation.coco import coco_evaluator
from vitadapter.evaluation.panoptic import panoptic_evaluator
from vitadapter.evaluation.sem_seg import sem_seg_evaluator
from vitadapter.report.label_maps import describe_label_maps
from vitadapter.report.objects import describe_objects
from vitadapter.report.pictures import PICTURE_FOLDERS, Pictures
from vitadapter.report.run import Json, Run, curves, open_run, summary
from vitadapter.report.segments import describe_segments
from vitadapter.visualization.metrics_file import RunMetrics
from vitadapter.visualization.style import COLORS

__all__ = ["check_reportable", "write_report"]

_PAGE = ("index.html", "report.css", "charts.js", "items.js", "gallery.js", "report.js")
_DATA = "data.js"
_DATA_START = "const REPORT = "
_NAME = "report"  # of the folder in that of the run

Description = Callable[[Run, Json, RunMetrics | None, Pictures], tuple[Json, Path]]

_DESCRIPTIONS: dict[object, Description] = {
    coco_evaluator: describe_objects,
    sem_seg_evaluator: describe_label_maps,
    panoptic_evaluator: describe_segments,
}


def _description(cfg: DictConfig) -> Description:
    """What describes the results of a config's evaluator.

    Raises:
        ValueError: as `check_reportable`.
    """
    evaluator = OmegaConf.select(cfg, "dataloader.evaluator")
    names = ", ".join(sorted(each.__name__ for each in _DESCRIPTIONS))  # type: ignore[attr-defined]
    rule = f"dataloader.evaluator must be one of {names} for a report"
    if evaluator is None:
        raise ValueError(f"{rule}, got none: without one, a run is never evaluated")
    target = evaluator["_target_"]
    try:
        target = locate(target) if isinstance(target, str) else target
    except ImportError as error:
        raise ValueError(f"{rule}, got {target} ({error})") from error
    if target not in _DESCRIPTIONS:
        raise ValueError(f"{rule}, got {getattr(target, '__name__', target)}")
    if not evaluator.get("output_dir"):
        raise ValueError(
            "dataloader.evaluator.output_dir must be a folder for a report, which is made of the "
            f"results there, got {evaluator.get('output_dir')}"
        )
    return _DESCRIPTIONS[target]


def _is_report(folder: Path) -> bool:
    try:
        with (folder / _DATA).open(encoding="utf-8") as file:
            return file.read(len(_DATA_START)) == _DATA_START
    except (OSError, ValueError):
        return False


def _check_folder(folder: Path) -> None:
    """Refuses a folder whose files would be lost."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"a report must go to a folder, but {folder} is a file")
    there = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    own = {*_PAGE, _DATA, *PICTURE_FOLDERS} if _is_report(folder) else set()
    if others := [name for name in there if name not in own]:
        raise ValueError(
            "a report must go to a new folder, an empty one, or one with an earlier report, which "
            f"it replaces, but {folder} has other files ({first_few(others)})"
        )


def _replace(folder: Path, new: Path) -> None:
    """Moves the contents of `new` to a folder, which stays: it may be where the user is."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.iterdir():
        shutil.rmtree(old) if old.is_dir() else old.unlink()
    for path in new.iterdir():
        path.rename(folder / path.name)


def check_reportable(cfg: DictConfig) -> None:
    """Refuses a config whose evaluation a report could not show, or whose report has no place.

    Args:
        cfg: the whole config.

    Raises:
        ValueError: it has no evaluator, another one than ours, or one that writes no results; or
            `report` in its output folder has files that are not of a report.
    """
    _description(cfg)
    _check_folder(Path(str(cfg.train.output_dir), _NAME))


def write_report(
    run: str | Path,
    output: str | Path | None = None,
    overrides: Sequence[str] = (),
    *,
    cfg: DictConfig | None = None,
) -> tuple[Path, list[str]]:
    """Writes what a run has learned and what it gets wrong, as a page that opens without a server.

    Args:
        run: output folder of `vitadapter train` or `vitadapter eval`.
        output: folder to write; None for `report` in the run's folder. An earlier report there is
            replaced.
        overrides: of the run's config, such as `dataset.test.image_root=...` for data that has
            moved.
        cfg: of the evaluation, where it is at hand; None for `config.yaml` in the run's folder.

    Returns:
        The page, and notes on what its reader must know, such as renamed classes.

    Raises:
        ValueError: the run has not been evaluated, or its results and its data do not belong
            together.
    """
    opened = open_run(run, overrides, cfg)
    describe = _description(opened.cfg)
    folder = opened.folder / _NAME if output is None else Path(output).expanduser()
    _check_folder(folder)
    metrics = opened.metrics()
    # Beside its place, so that a failure leaves an earlier report as it was.
    place = folder.resolve()
    unfinished = place.with_name(f".{place.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    try:
        content, results = describe(opened, opened.arguments(), metrics, Pictures(unfinished))
        content["title"] = "/".join(opened.folder.resolve().parts[-2:])
        images = content["images"]
        assert isinstance(images, list)
        content["summary"] = summary(opened, metrics, results, len(images))
        content["config"] = opened.config_text()
        content["curves"] = None if metrics is None else curves(metrics)
        content["lineColors"] = COLORS
        content["notes"] = opened.notes
        text = json.dumps(content, separators=(",", ":"), allow_nan=False)
        (unfinished / _DATA).write_text(f"{_DATA_START}{text};\n", encoding="utf-8")
        for name in _PAGE:
            text = files("vitadapter.report").joinpath(name).read_text(encoding="utf-8")
            (unfinished / name).write_text(text, encoding="utf-8")
        _replace(place, unfinished)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return folder / "index.html", opened.notes
