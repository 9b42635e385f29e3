"""Predictions of exported files."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Boxes, Instances
from torch import Tensor

from vitadapter.data.transforms import augment
from vitadapter.engine.predictor import Prediction, check_image
from vitadapter.modeling.image_record import ImageRecord, asked_size
from vitadapter.modeling.inference import SlidingWindow, TiledInference, Tiles
from vitadapter.modeling.mask2former.inference import (
    InstanceInference,
    PanopticInference,
    semantic_scores,
)
from vitadapter.modeling.mask2former.transformer_decoder import MaskPrediction

from .formats import open_file

__all__ = ["ExportedPredictor"]


class ExportedPredictor:
    """Runs an exported file on images, and answers as `LazyPredictor` does.

    Example::

        predictor = ExportedPredictor("detector.onnx")
        instances = predictor(read_image("image.jpg", "BGR"))["instances"]

    Args:
        file: what `export` has written.
        tiles: how large images are cut, as in `LazyPredictor`; None predicts whole images.

    Attributes:
        description: what the file says of itself.
        metadata: of the classes: their names and ids, if they are known.
        array_format: "BGR", the order of the channels of images.

    Raises:
        ValueError: it is another file, damaged or of a newer version, or its runtime is missing.
        FileNotFoundError: there is no such file.
    """

    def __init__(self, file: str | Path, *, tiles: Tiles | None = None) -> None:
        self._compute, self.description = open_file(file)
        described = self.description
        if not {"boxes", "sem_seg", "mask_logits"} & set(described.outputs):
            raise ValueError(
                f"{file} holds only a backbone, whose outputs are {', '.join(described.outputs)}"
            )
        self.metadata = described.metadata()
        self.array_format = "BGR"
        self._augmentations = described.augmentations()
        window = described.sliding_window
        self._window = None if window is None else SlidingWindow(**window)
        self._tiled = None
        if tiles is not None:
            self._tiled = TiledInference(
                lambda records: [self._predict(record) for record in records],
                tiles,
                self._prepare,
            )

    def __call__(self, image: np.ndarray) -> Prediction:
        """See `LazyPredictor.__call__`."""
        return self.predict([image])[0]

    def predict(self, images: Sequence[np.ndarray]) -> list[Prediction]:
        """Predicts several images, one after the other; see `LazyPredictor.predict`."""
        for image in images:
            check_image(image)
        return [self._predict_image(image) for image in images]

    def _prepare(self, image: np.ndarray) -> Tensor:
        return augment(self._augmentations, image).image

    def _predict_image(self, image: np.ndarray) -> Prediction:
        if self.description.image_format == "RGB":
            image = image[:, :, ::-1]
        image = np.ascontiguousarray(image)
        if self._tiled is not None:
            whole = torch.from_numpy(image).permute(2, 0, 1)
            return cast(Prediction, self._tiled([{"image": whole}])[0])
        height, width = image.shape[:2]
        return self._predict({"image": self._prepare(image), "height": height, "width": width})

    def _predict(self, record: ImageRecord) -> Prediction:
        size, pixels = asked_size(record), record["image"][None]
        if self.description.queries is not None:
            return self._segment_by_queries(pixels, size)
        if "sem_seg" in self.description.outputs:
            return {"sem_seg": _resized(self._scores(pixels), size)[0]}
        found = dict(zip(self.description.outputs, self._compute(pixels), strict=True))
        instances = Instances(
            tuple(pixels.shape[-2:]),
            pred_boxes=Boxes(found["boxes"]),
            scores=found["scores"],
            pred_classes=found["classes"],
        )
        if "masks" in found:
            instances.pred_masks = found["masks"][:, None]
        return {"instances": detector_postprocess(instances, *size)}

    def _scores(self, pixels: Tensor) -> Tensor:
        """Maps pixels (1, 3, H, W) to class scores (1, K, H, W)."""
        if self._window is None:
            return self._scores_of_batch(pixels)
        # Pixels are not normalised yet, so that a black pixel is 0.
        return self._window(self._scores_of_batch, pixels, 0)

    def _scores_of_batch(self, pixels: Tensor) -> Tensor:
        outputs = self._compute(pixels)
        if self.description.queries is None:
            return outputs[0]
        return self._upsampled(semantic_scores(MaskPrediction(*outputs)), pixels)

    def _upsampled(self, maps: Tensor, pixels: Tensor) -> Tensor:
        """Resizes maps (B, n, h, w) at the stride of masks to (B, n, H, W) of the pixels."""
        scale = cast(dict[str, Any], self.description.queries)["stride"]
        maps = F.interpolate(maps, scale_factor=scale, mode="bilinear", align_corners=False)
        return maps[..., : pixels.shape[-2], : pixels.shape[-1]]

    def _segment_by_queries(self, pixels: Tensor, size: tuple[int, int]) -> Prediction:
        """Does what `Mask2Former` does after its head."""
        queries = cast(dict[str, Any], self.description.queries)
        output: Prediction = {}
        if queries["semantic"]:
            output["sem_seg"] = _resized(self._scores(pixels), size)[0]
        if queries["instances"] is None and queries["panoptic"] is None:
            return output
        classes, masks = (output[0] for output in self._compute(pixels))

        def resize(mask_logits: Tensor) -> Tensor:
            if len(mask_logits) == 0:
                return mask_logits.new_zeros(0, *size)
            return _resized(self._upsampled(mask_logits[None], pixels), size)[0]

        if queries["instances"] is not None:
            infer = InstanceInference(**queries["instances"])
            output["instances"] = infer(classes, masks, resize)
        if queries["panoptic"] is not None:
            infer_segments = PanopticInference(**queries["panoptic"])
            output["panoptic_seg"] = cast(Any, infer_segments(classes, masks, resize))
        return output


def _resized(maps: Tensor, size: tuple[int, int]) -> Tensor:
    if tuple(maps.shape[-2:]) == size:
        return maps
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=False)
