"""InstaBoost (arXiv 1908.07801): moves instances a little within their image."""

from collections.abc import Sequence

import cv2
import numpy as np
from detectron2.structures import BoxMode, polygons_to_bitmask
from PIL import Image, ImageEnhance
from pycocotools import mask as mask_util
from scipy.sparse.csgraph import connected_components

from vitadapter.data.dataset_source import Annotation

__all__ = ["InstaBoost"]

_INPAINT_RADIUS = 5
# An instance that is nearer to a border, in pixels, counts as cut off by it.
_BORDER = 10
# Pillow's enhancements, in this order, with their lowest and highest factor in tenths.
_ENHANCEMENTS = (
    (ImageEnhance.Color, 0, 30),
    (ImageEnhance.Brightness, 10, 20),
    (ImageEnhance.Contrast, 10, 20),
    (ImageEnhance.Sharpness, 0, 30),
)


def _bitmask(annotation: Annotation, size: tuple[int, int]) -> np.ndarray:
    """The mask (H, W) bool of an annotation."""
    segmentation = annotation.get("segmentation")
    if not segmentation:
        raise ValueError("InstaBoost needs a mask of every instance, got an annotation without")
    if isinstance(segmentation, list):
        polygons = [np.asarray(p, dtype=np.float64).reshape(-1) for p in segmentation]
        return polygons_to_bitmask(polygons, *size)
    if isinstance(segmentation["counts"], list):  # not compressed
        segmentation = mask_util.frPyObjects(segmentation, *size)
    return mask_util.decode(segmentation).astype(bool)


def _groups(boxes: np.ndarray) -> list[np.ndarray]:
    """Indices of boxes (N, 4) that overlap, directly or through others."""
    low = np.maximum(boxes[:, None, :2], boxes[None, :, :2])  # (N, N, 2)
    high = np.minimum(boxes[:, None, 2:], boxes[None, :, 2:])
    count, labels = connected_components((low < high).all(axis=2), directed=False)
    return [np.flatnonzero(labels == label) for label in range(count)]


def _move_polygons(
    polygons: Sequence[Sequence[float]], affine: np.ndarray
) -> list[Sequence[float]]:
    points = (np.asarray(polygon, dtype=np.float64).reshape(-1, 2) for polygon in polygons)
    return [(p @ affine[:, :2].T + affine[:, 2]).reshape(-1).tolist() for p in points]


def _warp(
    image: np.ndarray, affine: np.ndarray, flags: int, border: int = cv2.BORDER_CONSTANT
) -> np.ndarray:
    """Moves pixels as `affine` moves points, where (0.5, 0.5) is the centre of the first pixel."""
    centred = affine.copy()
    centred[:, 2] += affine[:, :2].sum(axis=1) * 0.5 - 0.5
    size = (image.shape[1], image.shape[0])
    return cv2.warpAffine(image, centred, size, flags=flags, borderMode=border)


class InstaBoost:
    """Cuts instances out, fills the gaps, and pastes them nearby, slightly scaled and rotated.

    Instances whose boxes overlap move together, and crowds do not move. An instance at a border
    does not move away from it, nor does one that spans the image. This is the paper's random
    InstaBoost without its heatmap, which the official HTC++ recipes use. They call
    `instaboostfast`, which has no wheels. Unlike there, masks are feathered instead of matted, and
    polygons stay polygons.

    Args:
        prob: probability that an image is changed.
        scale: lowest and highest factor of the size.
        max_shift: largest shift, as shares of the width and the height of what moves.
        angle: lowest and highest rotation in degrees.
        color_prob: probability that the colours of a changed image are changed, too.
        image_format: "RGB" or "BGR".

    Raises:
        ValueError: a probability is outside [0, 1], a range is empty, a scale is not positive,
            a shift is negative, or the image format is unknown.
    """

    def __init__(
        self,
        *,
        prob: float = 0.5,
        scale: tuple[float, float] = (0.8, 1.2),
        max_shift: tuple[float, float] = (1 / 15, 1 / 15),
        angle: tuple[float, float] = (-1.0, 1.0),
        color_prob: float = 0.5,
        image_format: str = "RGB",
    ) -> None:
        if not (0 <= prob <= 1 and 0 <= color_prob <= 1):
            raise ValueError(f"prob and color_prob must lie in [0, 1], got {prob=}, {color_prob=}")
        if not 0 < scale[0] <= scale[1] or not angle[0] <= angle[1] or min(max_shift) < 0:
            raise ValueError(
                "scale must be (low, high) above 0, angle (low, high) and max_shift not negative, "
                f"got {scale=}, {angle=}, {max_shift=}"
            )
        if image_format not in ("RGB", "BGR"):
            raise ValueError(f"image_format must be RGB or BGR, got {image_format!r}")
        self.prob = prob
        self.scale = (scale[0], scale[1])
        self.max_shift = np.asarray(max_shift, dtype=np.float64)
        self.angle = (angle[0], angle[1])
        self.color_prob = color_prob
        self.image_format = image_format

    def __call__(
        self, image: np.ndarray, annotations: Sequence[Annotation]
    ) -> tuple[np.ndarray, list[Annotation]]:
        """Moves the instances of one image.

        Args:
            image: (H, W, 3) uint8.
            annotations: in Detectron2's format, with polygons or RLE masks.

        Returns:
            The new image and annotations, without instances that left the image. The
            arguments are not changed.

        Raises:
            ValueError: an instance has no mask.
        """
        # The global generator is the one that Detectron2 seeds in each worker.
        if np.random.random() >= self.prob:  # noqa: NPY002
            return image, list(annotations)
        still = [a for a in annotations if a.get("iscrowd", 0)]
        moving = [a for a in annotations if not a.get("iscrowd", 0)]
        if moving:
            image, moving = self._move(image, moving)
        if np.random.random() < self.color_prob:  # noqa: NPY002
            image = self._enhance(image)
        return image, moving + still

    def _move(
        self, image: np.ndarray, annotations: list[Annotation]
    ) -> tuple[np.ndarray, list[Annotation]]:
        size = image.shape[:2]
        masks = np.stack([_bitmask(a, size) for a in annotations])  # (N, H, W)
        boxes = np.array(
            [BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS) for a in annotations]
        )
        gaps = np.asarray(masks.any(axis=0), dtype=np.uint8)
        result = cv2.inpaint(np.ascontiguousarray(image), gaps, _INPAINT_RADIUS, cv2.INPAINT_NS)
        moved = []
        for group in _groups(boxes):
            low, high = boxes[group, :2].min(axis=0), boxes[group, 2:].max(axis=0)
            affine = self._draw(low, high, size)
            opacity = _warp(masks[group].any(axis=0).astype(np.float32), affine, cv2.INTER_LINEAR)
            opacity = cv2.GaussianBlur(opacity, (5, 5), 0)[:, :, None]
            pasted = _warp(image, affine, cv2.INTER_LINEAR, cv2.BORDER_REPLICATE)
            result = result + opacity * (pasted.astype(np.float32) - result)
            moved += [_move_annotation(annotations[i], masks[i], affine) for i in group]
        return result.round().astype(np.uint8), [a for a in moved if a is not None]

    def _draw(self, low: np.ndarray, high: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        """Draws a similarity transform (2, 3) of points (x, y) for the area between two corners."""
        scale = np.random.uniform(*self.scale)  # noqa: NPY002
        angle = np.deg2rad(np.random.uniform(*self.angle))  # noqa: NPY002
        reach = self.max_shift * (high - low)
        shift = np.random.uniform(  # noqa: NPY002
            np.where(np.asarray(size[::-1]) - high < _BORDER, 0, -reach),
            np.where(low < _BORDER, 0, reach),
        )
        cos, sin = scale * np.cos(angle), scale * np.sin(angle)
        linear = np.array([[cos, -sin], [sin, cos]])
        centre = (low + high) / 2
        return np.column_stack([linear, centre + shift - linear @ centre])

    def _enhance(self, image: np.ndarray) -> np.ndarray:
        order = slice(None, None, 1 if self.image_format == "RGB" else -1)
        picture = Image.fromarray(np.ascontiguousarray(image[:, :, order]))
        for enhancement, low, high in _ENHANCEMENTS:
            factor = np.random.randint(low, high + 1) / 10  # noqa: NPY002
            picture = enhancement(picture).enhance(factor)
        return np.asarray(picture)[:, :, order]


def _move_annotation(
    annotation: Annotation, mask: np.ndarray, affine: np.ndarray
) -> Annotation | None:
    """The annotation after the move; None if it has left the image."""
    height, width = mask.shape
    segmentation = annotation["segmentation"]
    if isinstance(segmentation, list):
        segmentation = _move_polygons(segmentation, affine)
        points = np.concatenate([np.reshape(p, (-1, 2)) for p in segmentation])
        points = points.clip(0, (width, height))
        box = np.concatenate([points.min(axis=0), points.max(axis=0)])
    else:
        moved = _warp(mask.astype(np.uint8), affine, cv2.INTER_NEAREST)
        segmentation = mask_util.encode(np.asfortranarray(moved))
        x, y, w, h = mask_util.toBbox(segmentation)
        box = np.array([x, y, x + w, y + h])
    if (box[2:] <= box[:2]).any():
        return None
    mode = annotation["bbox_mode"]
    bbox = BoxMode.convert(box.tolist(), BoxMode.XYXY_ABS, mode)
    return {**annotation, "bbox": bbox, "segmentation": segmentation}
