"""The last part of a model inside its graph: answers at the size that the caller asks for."""

import torch
import torch.nn.functional as F
from detectron2.modeling.meta_arch import GeneralizedRCNN
from torch import Tensor, nn

from vitadapter.modeling.mask2former import Mask2Former
from vitadapter.modeling.mask2former.inference import (
    InstanceInference,
    PanopticInference,
    semantic_scores,
)
from vitadapter.modeling.mask2former.transformer_decoder import MaskPrediction

from .rcnn import RCNNGraph
from .regions import clip, select
from .segmenters import Mask2FormerGraph

__all__ = ["FullSizeMask2FormerGraph", "FullSizeRCNNGraph"]

_NO_MASK = -100.0  # a logit without any probability
_MASK_THRESHOLD = 0.5  # of Detectron2's `detector_postprocess` and of our Mask2Former


class MaskPasting(nn.Module):
    """Pastes masks into their boxes; see Detectron2's `paste_masks_in_image`.

    Interpolation along each axis is a matrix product, so that no grid of all masks is needed. By
    this class, formats know these products, which are not the model's: they stay in float32.
    """

    def forward(self, masks: Tensor, boxes: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        """
        Args:
            masks: probabilities (N, M, M).
            boxes: (N, 4), in pixels.
            rows, columns: centres of the pixels, (height,) and (width,).

        Returns:
            Masks (N, height, width), bool.
        """
        cells = torch.arange(masks.shape[-1], device=masks.device)
        weights = []
        for axis, pixels in ((1, rows), (0, columns)):
            # With one pixel too many, since Inductor branches on whether a side is 1.
            pixels = F.pad(pixels, (0, 1))
            first, last = boxes[:, axis, None], boxes[:, axis + 2, None]
            places = (pixels - first) / (last - first) * masks.shape[-1] - 0.5
            weights.append((1 - (places[:, :, None] - cells).abs()).clamp(min=0))  # (N, side, M)
        pasted = weights[0] @ masks @ weights[1].transpose(1, 2) >= _MASK_THRESHOLD
        return pasted[:, : rows.shape[0], : columns.shape[0]]


class FullSizeRCNNGraph(RCNNGraph):
    """An `RCNNGraph` that does the work of Detectron2's `detector_postprocess` too."""

    full_size = True

    def __init__(self, model: GeneralizedRCNN) -> None:
        super().__init__(model)
        if "masks" not in self.outputs:
            raise ValueError(
                "only masks are pasted at the size of the image, the model has none: leave out "
                "full_size (--full-size)"
            )
        self.paste = MaskPasting()

    def forward(  # type: ignore[override]  # it has one more input, as `full_size` says
        self, images: Tensor, size: Tensor, output_size: Tensor
    ) -> tuple[Tensor, ...]:
        """Detects objects.

        Args:
            images, size: see `Graph.normalised`; B is 1.
            output_size: the (height, width) of the answers in pixels, (2,) int64.

        Returns:
            Boxes (N, 4), scores (N,) and classes (N,) as those of `RCNNGraph`, but in pixels of the
            output, and masks (N, height, width), bool.
        """
        boxes, scores, classes, masks = super().forward(images, size)
        scale = (output_size.to(boxes.dtype) / size).flip(0).repeat(2)
        boxes = clip(boxes * scale, output_size)
        usable = ((boxes[:, 2:] - boxes[:, :2]) > 0).all(dim=1)
        boxes, scores, classes, masks = select(usable, boxes, scores, classes, masks)
        return boxes, scores, classes, self.paste(masks, boxes, *_pixels_of(output_size))


class FullSizeMask2FormerGraph(Mask2FormerGraph):
    """A `Mask2FormerGraph` that makes answers of the queries too, of one image."""

    full_size = True
    takes_batches = False

    def __init__(self, model: Mask2Former) -> None:
        super().__init__(model)
        if model.inference is not None:
            raise ValueError(
                "sliding windows are outside of the graph, so that the size of what it returns is "
                "that of a window: leave out full_size (--full-size), or set model.inference=null"
            )
        self.outputs = (
            *(("sem_seg",) if model.semantic_on else ()),
            *(("boxes", "scores", "classes", "masks") if model.instance_inference else ()),
            *(
                ("panoptic_seg", "segment_classes", "segment_scores")
                if model.panoptic_inference
                else ()
            ),
        )

    def forward(  # type: ignore[override]  # it has one more input, as `full_size` says
        self, images: Tensor, size: Tensor, output_size: Tensor
    ) -> tuple[Tensor, ...]:
        """Segments an image.

        Args:
            images, size: see `Graph.normalised`; B is 1.
            output_size: the (height, width) of the answers in pixels, (2,) int64.

        Returns:
            What `Mask2Former` is switched on for: class scores (K, height, width); instances, as
            those of `FullSizeRCNNGraph`; a map of segments (height, width), int32, 0 where there is
            none, with the classes (S,) and scores (S,) of segments 1 to S.
        """
        class_logits, mask_logits = super().forward(images, size)
        stride, model = self.model.sem_seg_head.common_stride, self.model
        pixels = _pixels_of(output_size)

        def resize(maps: Tensor) -> Tensor:
            # As images of one channel: there may be no image, but not no channel.
            maps = F.interpolate(
                maps[:, None], scale_factor=stride, mode="bilinear", align_corners=False
            )
            return _resized(maps[:, 0], size, pixels)

        outputs: list[Tensor] = []
        if model.semantic_on:
            maps = semantic_scores(MaskPrediction(class_logits, mask_logits))
            outputs.append(resize(maps[0]))
        if model.instance_inference is not None:
            infer = model.instance_inference
            chosen = _instances(infer, class_logits[0], mask_logits[0])
            outputs += _measured(*chosen[:2], resize(chosen[2]))
        if model.panoptic_inference is not None:
            merge = model.panoptic_inference
            scores, classes, kept = merge.confident(class_logits[0])
            # Before the queries comes one that wins where no other claims the pixel. It is added
            # before some are selected: code of Inductor that pads nothing reads what is not there.
            scores, classes = F.pad(scores, (1, 0)), F.pad(classes, (1, 0), value=-1)
            logits = F.pad(mask_logits[0], (0, 0, 0, 0, 1, 0), value=_NO_MASK)
            kept = F.pad(kept.int(), (1, 0), value=1) > 0
            scores, classes, logits = select(kept, scores, classes, logits)
            outputs += _segments(merge, scores, classes, resize(logits))
        return tuple(outputs)


def _pixels_of(size: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the centres of pixels along the height and the width of an image, float32.

    Called once in a graph, because each number that is read of a tensor is a size of its own, which
    `torch.export` cannot compare with others.
    """
    sides = [side.item() for side in size.unbind()]
    for side in sides:
        torch._check(side > 0)
    height, width = (torch.arange(side, device=size.device) + 0.5 for side in sides)
    return height, width


def _resized(maps: Tensor, size: Tensor, pixels: tuple[Tensor, Tensor]) -> Tensor:
    """Crops maps (n, H, W) to `size` and resizes them, as `F.interpolate` does.

    Args:
        maps: at the stride of pixels.
        size: (height, width) without padding.
        pixels: those of the output, see `_pixels_of`.
    """
    for axis, centres in enumerate(pixels, start=1):
        old = size[axis - 1]
        places = centres * (old.float() / centres.shape[0]) - 0.5
        places = torch.minimum(places.clamp(min=0), (old - 1).float())
        before = places.long()
        after = torch.minimum(before + 1, old - 1)
        share = (places - before).view(-1, *[1] * (2 - axis))
        lower, upper = maps.index_select(axis, before), maps.index_select(axis, after)
        maps = lower * (1 - share) + upper * share
    return maps


def _instances(
    infer: InstanceInference, class_logits: Tensor, mask_logits: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the best pairs of query and class: scores (N,), classes (N,), logits (N, h, w)."""
    probabilities = class_logits.softmax(-1)[:, :-1]
    num_classes = probabilities.shape[1]
    scores, pairs = probabilities.flatten().topk(min(infer.max_per_image, probabilities.numel()))
    queries, classes = pairs // num_classes, pairs % num_classes
    if infer.thing_classes is not None:
        is_thing = torch.zeros(num_classes, dtype=torch.bool, device=classes.device)
        is_thing[infer.thing_classes] = True
        scores, queries, classes = select(is_thing[classes], scores, queries, classes)
    return scores, classes, mask_logits[queries]


def _measured(scores: Tensor, classes: Tensor, logits: Tensor) -> list[Tensor]:
    """Returns boxes, scores, classes and masks; see `InstanceInference`."""
    masks = logits > 0
    inside = (logits.sigmoid() * masks).sum(dim=(1, 2)) / (masks.sum(dim=(1, 2)) + 1e-6)
    starts, ends = [], []
    for axis in (1, 2):  # of (N, height, width) to reduce: the columns, then the rows
        occupied = masks.any(dim=axis)
        places = torch.arange(occupied.shape[1], device=masks.device)
        first = places.where(occupied, occupied.shape[1]).amin(dim=1)
        last = (places + 1).where(occupied, 0).amax(dim=1)
        starts.append(torch.minimum(first, last))  # 0 of an empty mask
        ends.append(last)
    return [torch.stack(starts + ends, dim=1).float(), scores * inside, classes, masks]


def _segments(
    merge: PanopticInference, scores: Tensor, classes: Tensor, logits: Tensor
) -> list[Tensor]:
    """Merges queries to segments; see `PanopticInference`.

    Args:
        merge: says how.
        scores, classes: of the queries (Q,), the first of which is none.
        logits: of their masks (Q, height, width).

    Returns:
        A map of numbers of segments (height, width), int32, and the classes (S,) and scores (S,) of
        the segments.
    """
    probabilities = logits.sigmoid()
    claims = probabilities * scores[:, None, None]
    winners = claims.argmax(dim=0)
    own = probabilities >= _MASK_THRESHOLD
    numbers = torch.arange(own.shape[0], device=own.device)
    won = winners == numbers[:, None, None]
    areas = [mask.sum(dim=(1, 2), dtype=torch.int32) for mask in (own, won, own & won)]
    kept = areas[1] / areas[0] >= merge.overlap_threshold
    kept = kept & (areas[0] > 0) & (areas[2] > 0) & (numbers > 0)

    things = classes.new_tensor(sorted(merge.thing_classes))
    is_thing = (classes[:, None] == things).any(dim=1)
    # A segment has the number of its first query; a thing has only one.
    first = ((classes[:, None] == classes) & kept).int().argmax(dim=1)
    first = torch.where(is_thing, numbers, first)
    begins = kept & (first == numbers)
    segments = torch.where(kept, begins.int().cumsum(0)[first], 0).int()
    segment_map = torch.where(own.gather(0, winners[None])[0], segments[winners], 0)
    classes, scores = select(begins, classes, scores)
    return [segment_map, classes, scores]
