import numpy as np
import project_configs
import pytest
import torch
from detectron2.structures import BitMasks, Boxes, Instances
from omegaconf import OmegaConf

from vitadapter.data.object_sizes import ModelScales, ObjectSizes
from vitadapter.model_zoo import config_file


def instances_of(boxes: list[list[float]], classes: list[int]) -> Instances:
    found = Instances((100, 100))
    found.gt_boxes = Boxes(torch.tensor(boxes).reshape(-1, 4))
    found.gt_classes = torch.tensor(classes)
    return found


@pytest.mark.parametrize(
    ("name", "strides", "anchors", "ratios"),
    [
        ("mask_rcnn_vit_adapter_s_deit_3x", (4, 8, 16, 32, 64), (32, 64, 128, 256, 512), True),
        ("atss_vit_adapter_s_deit_3x", (8, 16, 32, 64, 128), (64, 128, 256, 512, 1024), False),
        ("sparse_rcnn_vit_adapter_s_deit_3x", (4, 8, 16, 32), (), False),
        ("mask2former_instance_vit_adapter_s_dinov3_frozen_lsj_50ep", (4, 8, 16, 32), (), False),
    ],
)
def test_scales_are_those_of_the_config(
    name: str, strides: tuple, anchors: tuple, ratios: bool
) -> None:
    cfg = project_configs.load(config_file(f"COCO/{name}"))
    scales = ModelScales.of_config(OmegaConf.to_container(cfg.model, resolve=True))
    assert scales.strides == strides
    assert scales.anchors == anchors
    if ratios:
        assert scales.ratios == (0.5, 1, 2)


def test_objects_are_measured() -> None:
    sizes = ObjectSizes()
    sizes.add({"instances": instances_of([[0, 0, 10, 40], [5, 5, 8, 8]], [0, 3])})
    sizes.add({"instances": instances_of([], [])})
    sizes.add({"instances": instances_of([[0, 0, 100, 100]], [3])})
    sizes.add({})  # of a test set without annotations
    assert sizes.per_image == [2, 0, 1]
    assert sizes.sides == [(10, 40), (3, 3), (100, 100)]
    assert sizes.classes == {0: 1, 3: 2}
    np.testing.assert_allclose(sizes.sizes, [20, 3, 100])
    assert sizes.summary() == (
        "3 images with 1.0 objects each (at most 2); sizes in pixels of the model's input: a tenth "
        "is below 6, half are below 20, a tenth is above 84"
    )


def test_stuff_has_no_size() -> None:
    masks = torch.zeros(3, 100, 100, dtype=torch.bool)
    masks[0, 10:20, 30:50] = masks[1, :50] = masks[2, 60:90, 60:90] = True
    segments = Instances((100, 100))
    segments.gt_masks, segments.gt_classes = BitMasks(masks), torch.tensor([1, 7, 0])
    sizes = ObjectSizes(num_things=2)
    sizes.add({"instances": segments})
    assert sizes.sides == [(20, 10), (30, 30)]
    assert sizes.per_image == [2]
    assert sizes.classes == {0: 1, 1: 1, 7: 1}


def test_pixels_of_label_maps_are_counted() -> None:
    labels = torch.zeros(10, 10, dtype=torch.int64)
    labels[:3], labels[3] = 2, 255
    sizes = ObjectSizes()
    sizes.add({"sem_seg": labels}, ignore_label=255)
    assert sizes.classes == {0: 60, 2: 30}
    assert sizes.per_image == [2]
    assert sizes.advice(ModelScales((4,))) is None
    assert "1 images with 2.0" in sizes.summary()


def test_advice_is_given_if_half_of_the_boxes_are_smaller_than_the_finest_stride() -> None:
    scales = ModelScales(strides=(8, 16))
    sizes = ObjectSizes(sides=[(4, 4), (4, 4), (40, 40), (8, 8)], per_image=[4])
    assert sizes.advice(scales) is None  # half, not more
    sizes.sides.append((2, 8))
    advice = sizes.advice(scales)
    assert advice.startswith("60% of the objects are smaller than 8 pixels")
    assert "at least 2 times as large" in advice
    assert sizes.advice(ModelScales()) is None
    assert ObjectSizes().summary() == "no annotated image"
