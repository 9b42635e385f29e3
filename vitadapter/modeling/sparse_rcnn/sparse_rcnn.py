"""Sparse R-CNN (arXiv 2011.12450), as in the official release."""

from collections.abc import Callable, Sequence

import torch
from detectron2.layers import move_device_like
from detectron2.modeling import Backbone
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Boxes, ImageList, Instances
from torch import Tensor, nn

from vitadapter.modeling.image_record import ImageRecord, asked_size

__all__ = ["SparseRCNN"]


class SparseRCNN(nn.Module):
    """Learned proposal boxes and features, which a sequence of heads refines.

    Every stage pools the regions of the boxes of the stage before, and is trained separately: no
    gradient flows through the boxes into the stage before. The detections are the best pairs of a
    proposal and a class of the last stage; overlapping ones are not suppressed.

    Args:
        backbone: the feature pyramid.
        head_in_features: names of the features that regions are pooled from.
        box_pooler: pools the regions of boxes.
        box_heads: one `DynamicHead` per stage.
        num_proposals: number of proposals.
        feature_dim: channels of a proposal.
        box2box_transform: maps boxes and deltas to refined boxes.
        criterion: computes the losses of a stage from logits, boxes and ground truth, like
            `SetCriterion`.
        max_detections_per_image: maximum number of detections.
        pixel_mean, pixel_std: mean and standard deviation of the input's channels.
        input_format: channel order of the input, for the code that reads the images.
    """

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(
        self,
        *,
        backbone: Backbone,
        head_in_features: Sequence[str],
        box_pooler: ROIPooler,
        box_heads: Sequence[nn.Module],
        num_proposals: int = 300,
        feature_dim: int = 256,
        box2box_transform: Box2BoxTransform,
        criterion: Callable[[Tensor, Tensor, Sequence[Instances]], dict[str, Tensor]],
        max_detections_per_image: int = 300,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        input_format: str | None = None,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.head_in_features = list(head_in_features)
        self.box_pooler = box_pooler
        # (x, y) of the centre, width and height, in [0, 1]: initially the whole image
        self.init_proposal_boxes = nn.Embedding(num_proposals, 4)
        self.init_proposal_features = nn.Embedding(num_proposals, feature_dim)
        nn.init.constant_(self.init_proposal_boxes.weight[:, :2], 0.5)
        nn.init.constant_(self.init_proposal_boxes.weight[:, 2:], 1.0)
        self.stages = nn.ModuleList(box_heads)
        self.box2box_transform = box2box_transform
        self.criterion = criterion
        self.max_detections_per_image = max_detections_per_image
        self.input_format = input_format
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), False)

    def forward(
        self, batched_inputs: Sequence[ImageRecord]
    ) -> dict[str, Tensor] | list[dict[str, Instances]]:
        """
        Args:
            batched_inputs: the images, in training with "instances".

        Returns:
            In training, the losses of all stages by name; otherwise {"instances": ...} for each
            image.
        """
        images = self._preprocess(batched_inputs)
        pyramid = self.backbone(images.tensor)
        features = [pyramid[name] for name in self.head_in_features]
        if self.training:
            gt_instances = [x["instances"].to(self.pixel_mean.device) for x in batched_inputs]
            return {
                f"{name}_stage{stage}": loss
                for stage, (logits, boxes) in enumerate(self._stages(features, images.image_sizes))
                for name, loss in self.criterion(logits, boxes, gt_instances).items()
            }
        *_, (logits, boxes) = self._stages(features, images.image_sizes)
        results = []
        for i, (record, image_size) in enumerate(
            zip(batched_inputs, images.image_sizes, strict=True)
        ):
            found = self._detections(logits[i], boxes[i], image_size)
            results.append({"instances": detector_postprocess(found, *asked_size(record))})
        return results

    def _preprocess(self, batched_inputs: Sequence[ImageRecord]) -> ImageList:
        images = [move_device_like(x["image"], self.pixel_mean) for x in batched_inputs]
        return ImageList.from_tensors(
            [(image - self.pixel_mean) / self.pixel_std for image in images],
            self.backbone.size_divisibility,
            padding_constraints=self.backbone.padding_constraints,
        )

    def _initial_boxes(self, image_sizes: Sequence[tuple[int, int]]) -> Tensor:
        """Returns the proposals (B, P, 4) in pixels of each image."""
        center, size = self.init_proposal_boxes.weight.split(2, dim=1)
        boxes = torch.cat([center - size / 2, center + size / 2], dim=1)  # (P, 4)
        scale = boxes.new_tensor([[width, height] * 2 for height, width in image_sizes])
        return boxes * scale[:, None]

    def _stages(
        self, features: list[Tensor], image_sizes: Sequence[tuple[int, int]]
    ) -> list[tuple[Tensor, Tensor]]:
        """Returns class logits (B, P, K) and boxes (B, P, 4) of each stage."""
        boxes = self._initial_boxes(image_sizes)
        proposals = self.init_proposal_features.weight.expand(len(boxes), -1, -1)
        outputs = []
        for stage in self.stages:
            regions = self.box_pooler(features, [Boxes(image) for image in boxes])
            logits, deltas, proposals = stage(proposals, regions)
            refined = self.box2box_transform.apply_deltas(
                deltas.flatten(0, 1), boxes.flatten(0, 1)
            ).view_as(boxes)
            outputs.append((logits, refined))
            boxes = refined.detach()
        return outputs

    def _detections(self, logits: Tensor, boxes: Tensor, image_size: tuple[int, int]) -> Instances:
        """Returns the best pairs of a proposal and a class of one image."""
        finite = boxes.isfinite().all(1) & logits.isfinite().all(1)
        boxes, scores = boxes[finite], logits[finite].sigmoid()
        number = min(self.max_detections_per_image, scores.numel())
        best, places = scores.flatten().topk(number)
        return Instances(
            image_size,
            pred_boxes=Boxes(boxes[places // scores.shape[1]]),
            scores=best,
            pred_classes=places % scores.shape[1],
        )
