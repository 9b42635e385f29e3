import logging
from pathlib import Path

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from coco_samples import make_content, polygon_of, rle_of, write_coco
from detectron2.data import build_detection_train_loader, detection_utils
from detectron2.data import transforms as T
from detectron2.structures import BitMasks, BoxMode, PolygonMasks
from PIL import Image
from pycocotools.coco import COCO

from vitadapter.data.coco import load_coco_dataset
from vitadapter.data.dataset_mapper import DatasetMapper, read_image


def make_mapper(is_train: bool = True, **options) -> DatasetMapper:
    options = {"augmentations": [], "image_format": "RGB", "use_instance_mask": True, **options}
    return DatasetMapper(is_train, **options)


def make_record(folder: Path, segmentations: list, size: int = 32) -> dict:
    path = folder / "image.png"
    Image.fromarray(np.zeros((size, size, 3), dtype=np.uint8)).save(path)
    annotations = [
        {"bbox": [4, 6, 10, 12], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0}
        | ({"segmentation": s} if s is not None else {})
        for s in segmentations
    ]
    size_of_image = {"height": size, "width": size}
    return {"file_name": str(path), "image_id": 1, "annotations": annotations, **size_of_image}


BOX = (4, 6, 10, 12)


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "CMYK", "1", "LA", "I;16"])
@pytest.mark.parametrize("image_format", ["RGB", "BGR"])
def test_every_colour_mode(tmp_path: Path, mode: str, image_format: str) -> None:
    colour = (255, 255, 255) if mode == "1" else (200, 100, 50)
    if mode in ("L", "LA", "I;16"):
        colour = (200, 200, 200)
    rgb = Image.new("RGB", (6, 4), colour)
    path = tmp_path / ("image.tif" if mode in ("CMYK", "I;16") else "image.png")
    if mode == "I;16":
        Image.fromarray(np.full((4, 6), 200 * 257, dtype=np.uint16)).save(path)
    elif mode == "LA":
        rgb.convert("L").convert("LA").save(path)
    elif mode == "P":
        rgb.quantize().save(path)
    else:
        rgb.convert(mode).save(path)
    with Image.open(path) as stored:
        assert stored.mode == mode
    expected = np.array(colour if image_format == "RGB" else colour[::-1])
    image = read_image(str(path), image_format)
    assert image.shape == (4, 6, 3)
    assert image.dtype == np.uint8
    np.testing.assert_allclose(image, np.broadcast_to(expected, (4, 6, 3)), atol=1)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int) -> None:
    pixels = np.arange(6 * 4, dtype=np.uint8).reshape(4, 6)
    image = Image.fromarray(pixels)
    exif = image.getexif()
    exif[274] = orientation
    path = str(tmp_path / "turned.png")
    image.save(path, exif=exif)
    turned = read_image(path, "RGB")
    np.testing.assert_array_equal(turned, detection_utils.read_image(path, "RGB"))
    assert turned.shape == ((4, 6, 3) if orientation < 5 else (6, 4, 3))


@pytest.mark.parametrize("exif", [b"Exif\0\0broken", b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12"])
def test_broken_exif_data_is_ignored(tmp_path: Path, exif: bytes) -> None:
    path = str(tmp_path / "broken.jpg")
    Image.new("RGB", (6, 4), (200, 100, 50)).save(path, exif=exif)
    assert read_image(path, "RGB").shape == (4, 6, 3)


@pytest.mark.parametrize("kind", ["empty", "text", "truncated", "missing", "broken png", "size"])
def test_unusable_images(tmp_path: Path, kind: str, caplog) -> None:
    record = make_record(tmp_path, [polygon_of(BOX)])
    path = Path(record["file_name"])
    whole = path.read_bytes()
    if kind == "missing":
        path.unlink()
    elif kind == "size":
        Image.new("RGB", (9, 9)).save(path)
    else:
        noise = np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(noise).save(path)
        damaged = path.read_bytes()
        whole = {"empty": b"", "text": b"hello", "truncated": damaged[:600]}.get(
            kind, damaged[:100] + bytes(200) + damaged[300:]
        )
        path.write_bytes(whole)
    with caplog.at_level(logging.WARNING, "vitadapter"):
        mapper = make_mapper()
        assert mapper(record) is None
        assert mapper(record) is None
    warnings = [r.message for r in caplog.records if "image.png" in r.message]
    assert len(warnings) == 1  # named once, not in every epoch
    with pytest.raises(ValueError, match=r"test image .*image\.png"):
        make_mapper(is_train=False)(record)


def test_too_many_unusable_images_stop_training(tmp_path: Path) -> None:
    mapper = make_mapper(max_skipped=3)
    records = [{"file_name": str(tmp_path / f"{i}.png"), "annotations": []} for i in range(3)]
    assert [mapper(r) for r in (*records[:2], *records[:2])] == [None] * 4
    with pytest.raises(ValueError, match=r"3 training images.*max_skipped=3.*0\.png.*2\.png"):
        mapper(records[2])


def test_max_skipped_is_checked() -> None:
    with pytest.raises(ValueError, match="max_skipped"):
        make_mapper(max_skipped=0)


@pytest.mark.parametrize("workers", [0, 2])
def test_the_loader_draws_another_image(tmp_path: Path, workers: int) -> None:
    paths = write_coco(tmp_path, make_content())
    Path(paths[1], "001.png").write_bytes(b"broken")
    records = load_coco_dataset("x", *paths, num_classes=2)
    loader = build_detection_train_loader(
        records, mapper=make_mapper(), total_batch_size=2, num_workers=workers
    )
    batches = iter(loader)
    names = {Path(s["file_name"]).name for _ in range(12) for s in next(batches)}
    assert names == {"000.png", "002.png", "003.png"}


@pytest.mark.parametrize(
    ("segmentations", "kind"),
    [
        ([polygon_of(BOX)] * 2, PolygonMasks),
        ([rle_of(BOX, 32)] * 2, BitMasks),
        ([polygon_of(BOX), rle_of(BOX, 32)], BitMasks),
        ([rle_of(BOX, 32), polygon_of(BOX)], BitMasks),
    ],
)
def test_polygons_and_rle_give_the_same_masks(
    tmp_path: Path, segmentations: list, kind: type
) -> None:
    record = make_record(tmp_path, segmentations)
    resize = T.Resize((64, 64))
    crop = T.CropTransform(6, 0, 50, 60)
    instances = make_mapper(augmentations=[resize, crop])(record)["instances"]
    assert type(instances.gt_masks) is kind
    assert instances.image_size == (60, 50)
    expected_box = torch.tensor([2.0, 12.0, 22.0, 36.0])  # (4, 6, 14, 18) doubled, 6 cut off
    torch.testing.assert_close(instances.gt_boxes.tensor, expected_box.expand(2, 4))
    filled = instances.gt_masks.crop_and_resize(instances.gt_boxes.tensor, 8)
    assert filled.all()
    whole = instances.gt_masks.crop_and_resize(torch.tensor([[0.0, 0.0, 50.0, 60.0]] * 2), 60)
    assert whole.float().mean().item() == pytest.approx(20 * 24 / (50 * 60), rel=0.1)


def test_masks_are_left_out_on_request(tmp_path: Path) -> None:
    record = make_record(tmp_path, [polygon_of(BOX), None])
    instances = make_mapper(use_instance_mask=False)(record)["instances"]
    assert len(instances) == 2
    assert not instances.has("gt_masks")
    with pytest.raises(ValueError, match=r"image\.png has no mask"):
        make_mapper()(record)


def test_boxes_are_cut_by_a_crop_and_not_drawn_anew(tmp_path: Path) -> None:
    triangle = [[4, 6, 14, 6, 4, 18]]
    record = make_record(tmp_path, [triangle])
    instances = make_mapper(augmentations=[T.CropTransform(9, 0, 20, 32)])(record)["instances"]
    torch.testing.assert_close(instances.gt_boxes.tensor[0], torch.tensor([0.0, 6.0, 5.0, 18.0]))
    # Of the triangle, only its tip of 5 by 6 pixels is inside.
    mask = instances.gt_masks.crop_and_resize(torch.tensor([[0.0, 0.0, 20.0, 32.0]]), 64)[0]
    assert mask.float().mean().item() * 20 * 32 == pytest.approx(5 * 6 / 2, abs=3)


def test_a_flip_moves_polygons(tmp_path: Path) -> None:
    record = make_record(tmp_path, [polygon_of(BOX)])
    instances = make_mapper(augmentations=[T.HFlipTransform(32)])(record)["instances"]
    polygon = instances.gt_masks.polygons[0][0].reshape(-1, 2)
    assert polygon.min(axis=0).tolist() == [32 - 14, 6]
    assert polygon.max(axis=0).tolist() == [32 - 4, 18]


def test_images_without_instances(tmp_path: Path) -> None:
    record = make_record(tmp_path, [rle_of(BOX, 32)])
    record["annotations"][0]["iscrowd"] = 1
    sample = make_mapper()(record)
    assert len(sample["instances"]) == 0
    cut_away = make_mapper(augmentations=[T.CropTransform(20, 20, 10, 10)])
    del record["annotations"][0]["iscrowd"]
    assert len(cut_away(record)["instances"]) == 0


def test_the_record_is_not_changed_and_test_samples_carry_no_annotations(tmp_path: Path) -> None:
    record = make_record(tmp_path, [polygon_of(BOX)])
    before = {**record, "annotations": [dict(a) for a in record["annotations"]]}
    sample = make_mapper(is_train=False)(record)
    make_mapper()(record)
    assert record == before
    assert sample["image"].shape == (3, 32, 32)
    assert "annotations" not in sample
    assert "instances" not in sample
    assert (sample["height"], sample["width"], sample["image_id"]) == (32, 32, 1)


@pytest.mark.parametrize("form", ["polygon", "rle"])
def test_boxes_drawn_anew_fit_what_a_crop_leaves(tmp_path: Path, form: str) -> None:
    """An L: the crop cuts off the limb that makes its box wide."""
    corners = [[4, 4], [28, 4], [28, 8], [8, 8], [8, 28], [4, 28]]
    mask = np.zeros((32, 32), dtype=np.uint8)
    mask[4:8, 4:28] = mask[4:28, 4:8] = 1
    polygon = [[float(value) for corner in corners for value in corner]]
    segmentation = polygon if form == "polygon" else mask_util.encode(np.asfortranarray(mask))
    record = make_record(tmp_path, [segmentation])
    record["annotations"][0]["bbox"] = [4, 4, 24, 24]
    crop = T.CropTransform(0, 12, 32, 20)
    (kept,) = make_mapper(augmentations=[crop])(record)["instances"].gt_boxes.tensor.tolist()
    assert kept == [4, 0, 28, 16]
    mapper = make_mapper(augmentations=[crop], recompute_boxes=True)
    instances = mapper(record)["instances"]
    (redrawn,) = instances.gt_boxes.tensor.tolist()
    assert redrawn == [4, 0, 8, 16]
    assert torch.equal(instances.gt_masks.tensor[0], torch.from_numpy(mask[12:]).bool())


def test_an_instance_outside_the_crop_is_dropped(tmp_path: Path) -> None:
    record = make_record(tmp_path, [polygon_of(BOX)])
    mapper = make_mapper(augmentations=[T.CropTransform(20, 20, 12, 12)], recompute_boxes=True)
    assert len(mapper(record)["instances"]) == 0


def test_boxes_without_masks_cannot_be_drawn_anew() -> None:
    with pytest.raises(ValueError, match="use_instance_mask=True"):
        make_mapper(use_instance_mask=False, recompute_boxes=True)


@pytest.mark.parametrize("kind", ["polygon", "rle", "mixed"])
def test_bit_masks_of_cropped_instances_are_those_of_pycocotools(tmp_path: Path, kind: str) -> None:
    """As Mask2Former is trained: a crop, with bit masks of what is left."""
    content = make_content(images=2, masks=kind)
    json_file, image_root = write_coco(tmp_path, content)
    records = load_coco_dataset("", json_file, image_root, num_classes=2)
    crop = T.CropTransform(20, 10, 40, 50)
    mapper = make_mapper(augmentations=[crop], recompute_boxes=True)
    coco = COCO(json_file)
    for record in records:
        instances = mapper(record)["instances"]
        assert isinstance(instances.gt_masks, BitMasks)
        expected = {}
        for annotation in coco.imgToAnns[record["image_id"]]:
            mask = coco.annToMask(annotation)[10:60, 20:60].astype(bool)
            if mask.any():
                expected[annotation["category_id"] - 1] = mask
        found = dict(zip(instances.gt_classes.tolist(), instances.gt_masks.tensor, strict=True))
        assert found.keys() == expected.keys()
        for category, mask in found.items():
            np.testing.assert_array_equal(mask.numpy(), expected[category])
