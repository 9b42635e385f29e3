"""How large the objects of a data set are when a model sees them, and whether it can find them."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from vitadapter.data.dataset_mapper import Sample

__all__ = ["ModelScales", "ObjectSizes"]

_LEVELS = (("a tenth is below", 10), ("half are below", 50), ("a tenth is above", 90))


def _parts(node: object) -> Iterator[Mapping]:
    """All groups of keys of a plain container."""
    if isinstance(node, Mapping):
        yield node
    if isinstance(node, Mapping | list | tuple):
        for below in node.values() if isinstance(node, Mapping) else node:
            yield from _parts(below)


def _numbers(values: object) -> Iterator[float]:
    if isinstance(values, list | tuple):
        for value in values:
            yield from _numbers(value)
    elif isinstance(values, int | float):
        yield float(values)


def _ascending(values: Iterator[float]) -> tuple[float, ...]:
    return tuple(sorted({value for value in values if value > 0}))


@dataclass(frozen=True)
class ModelScales:
    """At which sizes a model looks for objects, in pixels of its input.

    Args:
        strides: of the features that objects are found in.
        anchors: sides of square anchors.
        ratios: height / width of anchors.
    """

    strides: Sequence[float] = ()
    anchors: Sequence[float] = ()
    ratios: Sequence[float] = ()

    @classmethod
    def of_config(cls, model: object) -> "ModelScales":
        """What a config says of a model.

        Args:
            model: as a plain container. Its anchor generators are looked at or, if it has none,
                the poolers of its boxes or the shapes of its features.
        """
        parts = [*_parts(model)]
        generators = [p for p in parts if {"sizes", "aspect_ratios", "strides"} <= set(p)]
        strides = _ascending(n for part in generators for n in _numbers(part["strides"]))
        pooled = _ascending(
            1 / scale
            for part in parts
            if "pooler_type" in part
            for scale in _numbers(part.get("scales"))
            if scale > 0
        )
        shaped = _ascending(
            n for part in parts if "channels" in part for n in _numbers(part.get("stride"))
        )
        return cls(
            strides or pooled or shaped,
            _ascending(n for part in generators for n in _numbers(part["sizes"])),
            _ascending(n for part in generators for n in _numbers(part["aspect_ratios"])),
        )


@dataclass
class ObjectSizes:
    """Objects of a number of mapped images.

    Args:
        num_things: the first so many classes are objects, the others have no box; None if all are.

    Attributes:
        per_image: of each image the number of its objects, or of the classes of its label map.
        sides: (width, height) of the box of each object, in pixels of the model's input.
        classes: number of objects of each class, or of its pixels.
    """

    num_things: int | None = None
    per_image: list[int] = field(default_factory=list)
    sides: list[tuple[float, float]] = field(default_factory=list)
    classes: Counter[int] = field(default_factory=Counter)

    def add(self, sample: Sample, ignore_label: int | None = None) -> None:
        """Counts the objects of an image.

        Args:
            sample: of a mapper.
            ignore_label: of its label map.
        """
        instances = sample.get("instances")
        if instances is not None:
            boxes = (
                instances.gt_boxes
                if instances.has("gt_boxes")
                else instances.gt_masks.get_bounding_boxes()
            ).tensor.tolist()
            kinds = instances.gt_classes.tolist()
            self.classes.update(kinds)
            limit = math.inf if self.num_things is None else self.num_things
            things = [box for box, kind in zip(boxes, kinds, strict=True) if kind < limit]
            self.sides += [(x1 - x0, y1 - y0) for x0, y0, x1, y1 in things]
            self.per_image.append(len(things))
        elif "sem_seg" in sample:
            labels, counts = np.unique(sample["sem_seg"].numpy(), return_counts=True)
            found = dict(zip(labels.tolist(), counts.tolist(), strict=True))
            found.pop(ignore_label, None)
            self.classes.update(found)
            self.per_image.append(len(found))

    @property
    def sizes(self) -> np.ndarray:
        """The square roots (N,) of the areas of the boxes, in pixels."""
        return np.sqrt(np.prod(np.asarray(self.sides, dtype=float).reshape(-1, 2), axis=1))

    def summary(self) -> str:
        """In one line: objects per image, and their sizes."""
        if not self.per_image:
            return "no annotated image"
        what = "objects" if self.sides else "objects or classes"
        counts = np.asarray(self.per_image)
        text = f"{len(counts)} images with {counts.mean():.1f} {what} each (at most {counts.max()})"
        if not self.sides:
            return text
        levels = [f"{words} {np.percentile(self.sizes, at):.0f}" for words, at in _LEVELS]
        return f"{text}; sizes in pixels of the model's input: {', '.join(levels)}"

    def advice(self, scales: ModelScales) -> str | None:
        """What to change if most objects are too small for the model; None if they are not."""
        if not scales.strides or not self.sides:
            return None
        finest, sizes = scales.strides[0], self.sizes
        small = float((sizes < finest).mean())
        if small <= 0.5:
            return None
        factor = finest / max(float(np.median(sizes)), 1e-3)
        return (
            f"{small:.0%} of the objects are smaller than {finest:g} pixels, the finest stride of "
            f"the model's features, where it can hardly tell them apart: train with images at "
            f"least {math.ceil(10 * factor) / 10:g} times as large "
            "(dataloader.train.mapper.augmentations, and those of dataloader.test), cut the images "
            "into smaller ones, or take a model with a finer stride"
        )
