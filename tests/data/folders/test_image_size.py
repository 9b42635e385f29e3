"""The image size that a check proposes, and that the experiments take it."""

import shlex

import pytest

from vitadapter.data.folders.image_size import propose_crop, propose_resize
from vitadapter.engine.overrides import load_config


def overrides_of(proposal: str) -> list[str]:
    words = shlex.split(proposal.removeprefix("image size: ").split(", ")[0])
    assert all("=" in word for word in words)
    return words


def sizes_of(proposal: str) -> dict[str, str]:
    return dict(word.removeprefix("dataset.").split("=") for word in overrides_of(proposal))


def test_three_quarters_of_the_objects_become_large_enough() -> None:
    # At a short edge of 400 pixels, they have sides of 16 and 8.
    objects = [(400, 800, 16.0**2)] * 3 + [(400, 800, 8.0**2)]
    proposal = propose_resize(objects)
    assert sizes_of(proposal) == {
        "resize.short": "416",
        "resize.long": "832",
        "resize.train_short": "[384,416,480]",
    }
    assert "75% of the objects are at least 16 pixels" in proposal


def test_larger_than_the_images_is_not_proposed() -> None:
    proposal = propose_resize([(256, 256, 4.0**2)] * 4)
    assert sizes_of(proposal)["resize.short"] == "256"
    assert "0% of the objects" in proposal
    assert "cut the images into smaller ones" in proposal


def test_large_objects_need_no_large_images() -> None:
    assert sizes_of(propose_resize([(3000, 4000, 2000.0**2)]))["resize.short"] == "128"


def test_sizes_of_training_are_not_repeated() -> None:
    assert sizes_of(propose_resize([(300, 400, 200.0**2)]))["resize.train_short"] == "[128,160]"


def test_tiny_objects_of_huge_images_do_not_need_endless_memory() -> None:
    proposal = propose_resize([(8000, 8000, 10.0**2)])
    assert sizes_of(proposal)["resize.short"] == "1024"


def test_crops_are_as_large_as_the_images_up_to_a_limit() -> None:
    assert sizes_of(propose_crop([(360, 480), (360, 480), (900, 700)])) == {
        "resize.short": "384",
        "resize.long": "1536",
        "crop.size": "384",
        "crop.stride": "256",
    }
    assert sizes_of(propose_crop([(2000, 3000)]))["crop.size"] == "512"


def test_no_object_no_proposal() -> None:
    assert (propose_resize([]), propose_crop([])) == ("", "")


@pytest.mark.parametrize("head", ["COCO/faster_rcnn", "COCO/mask_rcnn", "COCOPanoptic/mask2former"])
def test_the_experiments_take_the_size(head: str) -> None:
    words = overrides_of(propose_resize([(400, 800, 16.0**2)]))
    cfg = load_config(f"{head}_vit_adapter_s_dinov3_finetune", words)
    (_, train), (test,) = (cfg.dataloader[role].mapper.augmentations for role in ("train", "test"))
    assert (list(train.short_edge_length), train.max_size) == ([384, 416, 480], 832)
    assert (test.short_edge_length, test.max_size) == (416, 832)


def test_a_segmenter_takes_the_crop() -> None:
    words = overrides_of(propose_crop([(360, 480)]))
    cfg = load_config("ADE20K/upernet_vit_adapter_b_eva02_finetune", words)
    assert list(cfg.model.inference.crop_size) == [384, 384]
