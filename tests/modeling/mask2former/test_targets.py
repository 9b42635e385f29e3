"""Truth from label maps and from instances of every kind that Detectron2 has."""

import numpy as np
import pytest
import torch
from detectron2.structures import BitMasks, Instances, PolygonMasks

from vitadapter.modeling.mask2former import SegmentTargets, SemanticTargets
from vitadapter.modeling.mask2former.targets import pad_masks

CPU = torch.device("cpu")


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
def test_a_label_map_becomes_a_mask_per_class(dtype: torch.dtype) -> None:
    labels = torch.tensor([[7, 7, 255], [3, 255, 7]], dtype=dtype)
    targets = SemanticTargets(ignore_value=255)({"sem_seg": labels}, CPU)
    assert targets.classes.tolist() == [3, 7]
    assert targets.classes.dtype == torch.int64
    assert targets.masks.tolist() == [
        [[False, False, False], [True, False, False]],
        [[True, True, False], [False, False, True]],
    ]


def test_ignored_labels_only() -> None:
    targets = SemanticTargets()({"sem_seg": torch.full((4, 5), 255)}, CPU)
    assert targets.classes.shape == (0,)
    assert targets.masks.shape == (0, 4, 5)


def _instances(masks: object) -> dict[str, object]:
    instances = Instances((8, 10))
    instances.gt_classes = torch.tensor([2, 0])
    instances.gt_masks = masks
    return {"instances": instances}


@pytest.mark.parametrize("kind", ["bits", "polygons", "tensor"])
def test_instances_with_masks_of_every_kind(kind: str) -> None:
    bits = torch.zeros(2, 8, 10)
    bits[0, 2:5, 3:7] = 1
    bits[1, :, :1] = 1
    boxes = [[3, 2, 7, 2, 7, 5, 3, 5], [0, 0, 1, 0, 1, 8, 0, 8]]
    masks = {
        "bits": BitMasks(bits),
        "polygons": PolygonMasks([[np.array(box, dtype=float)] for box in boxes]),
        "tensor": bits,
    }[kind]
    targets = SegmentTargets()(_instances(masks), CPU)
    assert targets.classes.tolist() == [2, 0]
    assert torch.equal(targets.masks, bits.bool())


def test_segments_without_a_pixel_are_dropped() -> None:
    bits = torch.zeros(2, 8, 10)
    bits[1, 0, 0] = 1
    assert SegmentTargets()(_instances(BitMasks(bits)), CPU).classes.tolist() == [0]


def test_masks_of_another_kind() -> None:
    instances = Instances((8, 10))
    instances.gt_classes = torch.tensor([2])
    instances.gt_masks = ["1 1"]
    with pytest.raises(TypeError, match=r"gt_masks must be BitMasks, PolygonMasks or a tensor"):
        SegmentTargets()({"instances": instances}, CPU)


def test_padding_belongs_to_no_segment() -> None:
    targets = SemanticTargets()({"sem_seg": torch.zeros(4, 5)}, CPU)
    padded = pad_masks(targets, (6, 8)).masks
    assert padded.shape == (1, 6, 8)
    assert padded[:, :4, :5].all()
    assert padded.sum() == 20
