"""Encoded masks against pycocotools."""

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from detectron2.structures import Instances

from vitadapter.encoded_masks import EncodedMasks, MaskCrop, encode_union


def some_masks() -> np.ndarray:
    """(N, 30, 20), among them none, all, one pixel in a corner, and noise."""
    rng = np.random.default_rng(0)
    masks = np.zeros((8, 30, 20), bool)
    masks[1] = True
    masks[2, 0, 0] = masks[3, -1, -1] = masks[4, :, 7] = True
    masks[5, 3:17, 2:19] = rng.random((14, 17)) < 0.5
    masks[6] = rng.random((30, 20)) < 0.5
    masks[7, 11] = True
    return masks


def encoded(mask: np.ndarray) -> dict:
    return mask_util.encode(np.asfortranarray(mask, dtype=np.uint8))


def test_encoding_without_a_full_map_equals_that_of_pycocotools() -> None:
    for mask in some_masks():
        assert encode_union([MaskCrop.of(mask, 0, 0)], (30, 20)) == encoded(mask)


def test_union_of_shifted_masks() -> None:
    masks = some_masks()
    whole = np.zeros((50, 40), bool)
    whole[4:34, 3:23] |= masks[5]
    whole[20:50, 20:40] |= masks[6]
    crops = [MaskCrop.of(masks[5], 3, 4), MaskCrop.of(masks[6], 20, 20)]
    assert encode_union(crops, (50, 40)) == encoded(whole)


def test_pixels_in_a_part_of_the_image() -> None:
    mask = some_masks()[5]
    crop = MaskCrop.of(mask, 10, 20)
    assert np.array_equal(crop.pixels((12, 25, 23, 45)), mask[5:25, 2:13])
    assert not crop.pixels((100, 0, 120, 30)).any()
    around = crop.pixels((0, 0, 40, 60))
    assert np.array_equal(around[20:50, 10:30], mask)
    assert around.sum() == mask.sum()


def test_they_serve_as_masks_of_instances() -> None:
    masks = some_masks()
    instances = Instances((30, 20), scores=torch.arange(8.0))
    instances.pred_masks = EncodedMasks([encoded(mask) for mask in masks], (30, 20))
    assert instances.pred_masks.shape == (8, 30, 20)
    assert np.array_equal(instances.pred_masks.tensor(), masks)
    best_first = instances[instances.scores.argsort(descending=True)].to("cpu")
    pairs = zip(best_first.pred_masks, masks[::-1], strict=True)
    assert all(np.array_equal(decoded, mask) for decoded, mask in pairs)
    assert np.array_equal(instances[instances.scores > 5].pred_masks.tensor(), masks[6:])
    assert np.array_equal(instances[3].pred_masks[0], masks[3])
    assert np.array_equal(instances.pred_masks[np.int64(-1)], masks[-1])
    with pytest.raises(IndexError):
        instances.pred_masks[8]
    assert len(instances[instances.scores > 9].pred_masks.tensor()) == 0
