"""Pictures of what the model finds in a few test images, drawn while it trains."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, cast

import numpy as np
import torch
from detectron2.evaluation.evaluator import inference_context
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage
from PIL import Image
from torch import nn

from vitadapter.data.image_files import read_image
from vitadapter.engine.hooks import AfterEvaluation, EvalHook
from vitadapter.engine.parallel import whole
from vitadapter.modeling.image_record import ImageRecord
from vitadapter.visualization.overlays import Palette, fitted
from vitadapter.visualization.predictions import Selection, draw_found

__all__ = ["PICTURES_NAME", "PicturesHook", "indexed_samples"]

logger = logging.getLogger(__name__)

PICTURES_NAME = "predictions"
"""Folder of the pictures in the output folder."""

# Enough to see what is wrong; trackers and TensorBoard keep every picture of every evaluation.
_LONGEST_SIDE = 1024


class Samples(Protocol):
    """A data set whose images can be asked for by their number."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> ImageRecord: ...


def indexed_samples(loader: object) -> Samples:
    """The data set of `dataloader.test`.

    Raises:
        ValueError: its images cannot be asked for by their number.
    """
    dataset = getattr(loader, "dataset", None)
    if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
        raise ValueError(
            "train.pictures needs a dataloader.test with a data set whose images have numbers, "
            f"got {type(loader).__name__}: set train.pictures.period=0"
        )
    return cast(Samples, dataset)


def _spread(number: int, total: int) -> Sequence[int]:
    """At most `number` of the numbers below `total`, evenly spread, from the first on."""
    return sorted({index * total // number for index in range(number)}) if total else ()


class PicturesHook(AfterEvaluation):
    """Draws predictions on test images, always the same ones, after every few evaluations
    and after training.

    They go to `predictions/{number}_{name}_{iterations}.jpg` in the output folder and, by the
    storage of the trainer, to the writers. Register it, in every process, between the hook that
    evaluates and the writers; only the main process draws.

    Args:
        evaluation: the hook that evaluates.
        period: in evaluations.
        eval_period: in iterations.
        number: how many images, spread evenly over the test set.
        selection: which of the predictions are drawn.
        samples: the test set.
        inference: the model as it is evaluated.
        palette: of the classes.
        output_dir: the output folder.
    """

    def __init__(
        self,
        evaluation: EvalHook,
        *,
        period: int,
        eval_period: int,
        number: int,
        selection: Selection,
        samples: Samples,
        inference: nn.Module,
        palette: Palette,
        output_dir: str,
    ) -> None:
        super().__init__(evaluation)
        # By the iterations, so that it does not depend on where a run was stopped.
        self._period = period * eval_period
        self._indices = _spread(number, len(samples))
        self._selection = selection
        self._samples = samples
        self._inference = inference
        self._palette = palette
        self._folder = Path(output_dir, PICTURES_NAME)
        self._drawn: int | None = None

    def after_evaluation(self, completed: int) -> None:
        """Draws, if it is time."""
        if self._period > 0 and completed % self._period == 0:
            self._draw_all(completed)

    def after_train(self) -> None:
        """Draws what the finished model finds."""
        super().after_train()
        completed = self.trainer.iter
        if completed >= self.trainer.max_iter and completed != self._drawn:
            self._draw_all(completed)

    def _draw_all(self, completed: int) -> None:
        self._drawn = completed
        with whole(self._inference):
            if comm.is_main_process():
                self._draw_each(completed)

    def _draw_each(self, completed: int) -> None:
        self._folder.mkdir(exist_ok=True)
        with (
            self.trainer.stop_signals.at_once(),
            inference_context(self._inference),
            torch.no_grad(),
        ):
            for place, index in enumerate(self._indices):
                self._draw(place, self._samples[index], completed)
        logger.info("%d pictures of predictions are in %s", len(self._indices), self._folder)

    def _draw(self, place: int, sample: ImageRecord, completed: int) -> None:
        found = self._selection(self._inference([sample])[0])
        file_name = str(sample["file_name"])
        image = np.ascontiguousarray(read_image(file_name, "RGB"))
        drawn = draw_found(image, found, self._palette)
        if max(drawn.shape) > _LONGEST_SIDE:
            drawn = fitted(drawn, _LONGEST_SIDE)
        name = f"{place}_{Path(file_name).stem}"
        Image.fromarray(drawn).save(self._folder / f"{name}_{completed:07d}.jpg", quality=90)
        get_event_storage().put_image(f"{PICTURES_NAME}/{name}", drawn.transpose(2, 0, 1))
