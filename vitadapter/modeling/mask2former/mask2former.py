"""Mask2Former (arXiv 2112.01527) as a Detectron2 meta architecture."""

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from detectron2.modeling import Backbone
from detectron2.structures import Instances
from torch import Tensor, nn

from vitadapter.modeling.image_record import ImageRecord, asked_size
from vitadapter.modeling.semantic import SemanticSegmentor, WindowedInference
from vitadapter.modeling.semantic.segmentor import check_size, name_of

from .criterion import SetCriterion
from .inference import InstanceInference, PanopticInference, SegmentInfo, semantic_scores
from .pixel_decoder import MSDeformAttnPixelDecoder
from .targets import MaskTargets, pad_masks
from .transformer_decoder import MaskedTransformerDecoder, MaskPrediction

__all__ = ["Mask2Former", "Mask2FormerHead"]

Output = dict[str, Tensor | Instances | tuple[Tensor, list[SegmentInfo]]]


class Mask2FormerHead(nn.Module):
    """Maps the features of a backbone to a class and a mask for each query.

    Args:
        pixel_decoder: maps features to mask features and memories.
        predictor: maps these to predictions.

    Raises:
        ValueError: the two have different widths or numbers of levels.
    """

    def __init__(
        self, pixel_decoder: MSDeformAttnPixelDecoder, predictor: MaskedTransformerDecoder
    ) -> None:
        super().__init__()
        for name in ("embed_dim", "mask_dim", "num_levels"):
            values = getattr(pixel_decoder, name), getattr(predictor, name)
            if values[0] != values[1]:
                raise ValueError(
                    f"pixel decoder and predictor must have the same {name}, got {values}"
                )
        self.pixel_decoder = pixel_decoder
        self.predictor = predictor
        self.num_classes = predictor.num_classes
        self.common_stride = pixel_decoder.common_stride

    def forward(self, features: Mapping[str, Tensor]) -> list[MaskPrediction]:
        """
        Args:
            features: maps (B, C_l, h_l, w_l), by name.

        Returns:
            In training, a prediction of the initial queries and of every decoder layer, the final
            one last; otherwise only the final one.
        """
        return self.predictor(*self.pixel_decoder(features))


class Mask2Former(SemanticSegmentor):
    """A backbone and a head, which predict each image separately, in up to three ways at once.

    Args:
        backbone: maps images to features.
        sem_seg_head: maps features to a class and a mask for each query.
        criterion: computes the losses.
        targets: makes the ground truth, on a device, from a record; see `targets.py`.
        pixel_mean, pixel_std: see `SemanticSegmentor`.
        semantic_on: whether "sem_seg" is predicted.
        instance_inference: predicts "instances"; None for none.
        panoptic_inference: predicts "panoptic_seg"; None for none.
        inference: how "sem_seg" is predicted, such as `SlidingWindow`; None predicts whole images.
            Instances and panoptic segments are always predicted on whole images.

    Raises:
        ValueError: nothing is predicted, head and criterion have different numbers of classes, or
            `inference` is given without `semantic_on`.
    """

    def __init__(
        self,
        *,
        backbone: Backbone,
        sem_seg_head: Mask2FormerHead,
        criterion: SetCriterion,
        targets: Callable[[ImageRecord, torch.device], MaskTargets],
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        semantic_on: bool = True,
        instance_inference: InstanceInference | None = None,
        panoptic_inference: PanopticInference | None = None,
        inference: WindowedInference | None = None,
    ) -> None:
        super().__init__(
            backbone=backbone,
            sem_seg_head=sem_seg_head,
            pixel_mean=pixel_mean,
            pixel_std=pixel_std,
            inference=inference,
        )
        if not semantic_on and instance_inference is None and panoptic_inference is None:
            raise ValueError(
                "one of semantic_on, instance_inference and panoptic_inference is needed"
            )
        if inference is not None and not semantic_on:
            raise ValueError(f"inference={inference} serves only semantic_on, which is off")
        if criterion.num_classes != sem_seg_head.num_classes:
            raise ValueError(
                "head and criterion must have the same num_classes, got "
                f"{sem_seg_head.num_classes} and {criterion.num_classes}"
            )
        self.criterion = criterion
        self.targets = targets
        self.semantic_on = semantic_on
        self.instance_inference = instance_inference
        self.panoptic_inference = panoptic_inference

    def forward(self, batched_inputs: Sequence[ImageRecord]) -> dict[str, Tensor] | list[Output]:
        """
        Args:
            batched_inputs: the images, in training with what `targets` reads.

        Returns:
            In training, the losses; otherwise for each image a dict with those of these that are
            switched on: "sem_seg", scores (K, height, width), "instances" (`InstanceInference`)
            and "panoptic_seg" (`PanopticInference`).

        Raises:
            ValueError: in training, an image has no ground truth, or it has the wrong size or a
                class that the model does not have.
            FloatingPointError: the training has diverged.
        """
        if not self.training:
            return [self._predict(record) for record in batched_inputs]
        targets = [self._checked_targets(record) for record in batched_inputs]
        images = self._padded([self._normalised(record) for record in batched_inputs])
        predictions = self.sem_seg_head(self.backbone(images))
        size = (images.shape[-2], images.shape[-1])
        return self.criterion(predictions, [pad_masks(x, size) for x in targets])

    def _checked_targets(self, record: ImageRecord) -> MaskTargets:
        targets = self.targets(record, self.device)
        check_size(record, targets.masks)
        if len(targets.classes) > 0:
            lowest, highest = (int(x) for x in targets.classes.aminmax())
            if lowest < 0 or highest >= self.sem_seg_head.num_classes:
                raise ValueError(
                    f"classes must lie in [0, {self.sem_seg_head.num_classes}), got "
                    f"{lowest} to {highest} in {name_of(record)}"
                )
        return targets

    def _predict(self, record: ImageRecord) -> Output:
        images = self._normalised(record)[None]
        output: Output = {}
        if self.inference is not None:
            output["sem_seg"] = self._resized(self._windowed(images), record)
            if self.instance_inference is None and self.panoptic_inference is None:
                return output
        prediction = self._queries(images)
        if self.semantic_on and self.inference is None:
            scores = self._upsampled(semantic_scores(prediction), images)
            output["sem_seg"] = self._resized(scores, record)

        def resize(mask_logits: Tensor) -> Tensor:
            if len(mask_logits) == 0:
                return mask_logits.new_zeros(0, *asked_size(record))
            return self._resized(self._upsampled(mask_logits[None], images), record)

        class_logits, mask_logits = prediction.class_logits[0], prediction.mask_logits[0]
        if self.instance_inference is not None:
            output["instances"] = self.instance_inference(class_logits, mask_logits, resize)
        if self.panoptic_inference is not None:
            output["panoptic_seg"] = self.panoptic_inference(class_logits, mask_logits, resize)
        return output

    def _queries(self, images: Tensor) -> MaskPrediction:
        """Maps images (B, 3, h, w) of any size to the final prediction, in float32 at least."""
        (prediction,) = self.sem_seg_head(self.backbone(self._padded(images)))
        return MaskPrediction(
            *(x.to(torch.promote_types(x.dtype, torch.float32)) for x in prediction)
        )

    def _logits(self, images: Tensor) -> Tensor:
        """Maps images (B, 3, h, w) of any size to class scores (B, K, h, w)."""
        return self._upsampled(semantic_scores(self._queries(images)), images)

    def _upsampled(self, maps: Tensor, images: Tensor) -> Tensor:
        """Resizes maps (B, n, h, w) at the stride of masks to (B, n, H, W) of the images."""
        scale = self.sem_seg_head.common_stride
        maps = F.interpolate(maps, scale_factor=scale, mode="bilinear", align_corners=False)
        return maps[..., : images.shape[-2], : images.shape[-1]]
