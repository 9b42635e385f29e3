"""The report at the end of a run, which `train.report` asks for."""

import logging
from pathlib import Path

from detectron2.utils import comm
from omegaconf import DictConfig

__all__ = ["check_report", "final_report"]

logger = logging.getLogger(__name__)

# `vitadapter.report` reads configs as this package does, and is imported only when it is called.


def check_report(cfg: DictConfig) -> None:
    """Refuses a report that could not be made of the evaluation.

    Args:
        cfg: the whole config.

    Raises:
        ValueError: says what the report needs.
    """
    if not cfg.train.report:
        return
    from vitadapter.report import check_reportable

    try:
        check_reportable(cfg)
    except ValueError as error:
        raise ValueError(f"train.report=True: {error}") from error


def final_report(cfg: DictConfig) -> Path | None:
    """Writes the report of a run that has been evaluated, in the main process.

    What prevents it is logged, since all other results are complete without a report.

    Args:
        cfg: the whole config, as it was evaluated.

    Returns:
        The page; None if none was asked for or it cannot be written.
    """
    if not cfg.train.report or not comm.is_main_process():
        return None
    from vitadapter.report import write_report

    try:
        page, notes = write_report(cfg.train.output_dir, cfg=cfg)
    except (OSError, ValueError) as error:
        logger.warning("No report is written: %s", error)
        return None
    for note in notes:
        logger.warning("Report: %s", note)
    return page
