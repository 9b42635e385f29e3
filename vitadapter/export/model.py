"""An exported file as a model of Detectron2."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch.nn.functional as F
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn

from vitadapter.engine.predictor import Prediction
from vitadapter.modeling.image_record import ImageRecord, asked_size
from vitadapter.modeling.inference import SlidingWindow
from vitadapter.modeling.mask2former.inference import (
    InstanceInference,
    PanopticInference,
    SegmentInfo,
    semantic_scores,
)
from vitadapter.modeling.mask2former.transformer_decoder import MaskPrediction

from .formats import open_file

__all__ = ["ExportedModel"]


class ExportedModel(nn.Module):
    """Runs an exported file, and takes and returns what the model does that was exported.

    It has no parameters, and predicts one image after the other.

    Args:
        file: what `export` has written.

    Attributes:
        description: what the file says of itself.

    Raises:
        ValueError: it is another file, damaged, of a newer version, or only a backbone; or its
            runtime is missing.
        FileNotFoundError: there is no such file.
    """

    def __init__(self, file: str | Path) -> None:
        super().__init__()
        self._compute, self.description = open_file(file)
        if not self.description.answers:
            outputs = ", ".join(self.description.outputs)
            raise ValueError(f"{file} holds only a backbone, whose outputs are {outputs}")
        window = self.description.sliding_window
        self._window = None if window is None else SlidingWindow(**window)

    def forward(self, batched_inputs: Sequence[ImageRecord]) -> list[Prediction]:
        """Returns the outputs for any number of images of any sizes, in their order."""
        return [self._predict(record) for record in batched_inputs]

    def _predict(self, record: ImageRecord) -> Prediction:
        pixels, size = record["image"][None], asked_size(record)
        if self.description.full_size:
            return self._in_full_size(pixels, size)
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

    def _in_full_size(self, pixels: Tensor, size: tuple[int, int]) -> Prediction:
        """Names what the file answers in the size that is asked for."""
        found = dict(zip(self.description.outputs, self._compute(pixels, size), strict=True))
        output: Prediction = {}
        if "sem_seg" in found:
            output["sem_seg"] = found["sem_seg"]
        if "boxes" in found:
            output["instances"] = Instances(
                size,
                pred_boxes=Boxes(found["boxes"]),
                scores=found["scores"],
                pred_classes=found["classes"],
                pred_masks=found["masks"],
            )
        if "panoptic_seg" in found:
            queries = cast(dict[str, Any], self.description.queries)
            things = queries["panoptic"]["thing_classes"]
            segments = [
                SegmentInfo(id=id_, isthing=number in things, category_id=number, score=score)
                for id_, (number, score) in enumerate(
                    zip(
                        found["segment_classes"].tolist(),
                        found["segment_scores"].tolist(),
                        strict=True,
                    ),
                    start=1,
                )
            ]
            output["panoptic_seg"] = cast(Any, (found["panoptic_seg"], segments))
        return output

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
