import copy
import gc
import logging
import re
from pathlib import Path

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from coco_samples import make_content, polygon_of, rle_of, write_coco
from detectron2.data import DatasetMapper as Detectron2Mapper
from detectron2.data import transforms as T
from detectron2.structures import BitMasks, BoxMode, PolygonMasks
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools.coco import COCO

from vitadapter.data import dataset_mapper
from vitadapter.data.coco import load_coco_dataset
from vitadapter.data.dataset_mapper import DatasetMapper, build_train_loader


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
    warnings = [r.message for r in caplog.records if "skipped image" in r.message]
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
    batches = iter(
        build_train_loader(records, mapper=make_mapper(), total_batch_size=2, num_workers=workers)
    )
    names = {Path(s["file_name"]).name for _ in range(12) for s in next(batches)}
    assert names == {"000.png", "002.png", "003.png"}


@pytest.mark.parametrize("workers", [0, 2])
def test_images_that_all_break_are_an_error(
    tmp_path: Path, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Detectron2's loader, which draws another image, would not say what happened."""
    # PyTorch waits 5 seconds for each worker of a loader that has raised an error.
    monkeypatch.setattr("torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL", 0.1)
    paths = write_coco(tmp_path, make_content())
    records = load_coco_dataset("x", *paths, num_classes=2)
    for record in records:
        Path(record["file_name"]).write_bytes(b"broken")
    loader = build_train_loader(
        records, mapper=make_mapper(), total_batch_size=2, num_workers=workers
    )
    with pytest.raises(ValueError, match=r"4 of 4 training images cannot be used .*00\d\.png"):
        next(iter(loader))
    gc.collect()


def test_an_image_counts_as_unusable_while_it_is(tmp_path: Path) -> None:
    record = make_record(tmp_path, [polygon_of(BOX)])
    whole = Path(record["file_name"]).read_bytes()
    mapper = make_mapper(max_skipped=2)
    Path(record["file_name"]).write_bytes(b"broken")
    assert mapper(record) is None
    Path(record["file_name"]).write_bytes(whole)
    assert mapper(record) is not None
    assert mapper({"file_name": str(tmp_path / "none.png")}) is None


class Fails(T.Augmentation):
    """An augmentation with a programming error."""

    def get_transform(self, image: np.ndarray) -> T.Transform:
        return self.strength


@pytest.mark.parametrize("options", [{"augmentations": [Fails()]}, {"instance_augmentation": len}])
def test_whatever_fails_in_the_mapper_names_the_image(
    tmp_path: Path, options: dict[str, object], caplog: pytest.LogCaptureFixture
) -> None:
    record = make_record(tmp_path, [polygon_of(BOX)])
    assert make_mapper(**options)(record) is None
    assert re.search(r"skipped image .*image\.png .*: (AttributeError|TypeError): ", caplog.text)
    with pytest.raises(ValueError, match=r"1 training images .*image\.png.*(Attribute|Type)Error"):
        make_mapper(**options, max_skipped=1)(record)
    if "augmentations" in options:
        with pytest.raises(ValueError, match=r"test image .*image\.png: AttributeError"):
            make_mapper(is_train=False, **options)(record)


odd_values = st.one_of(
    st.sampled_from([None, True, "", "3", [], {}, [[]], [[1, 2]], [[1, 2, 3]], {"size": [32, 32]}]),
    st.sampled_from([-1, 10**30, np.nan, [np.inf] * 4, [9, 9, -3, 4], [1, 2, 3], ["a"] * 4]),
    st.lists(st.floats(width=16), min_size=4, max_size=6),
)
fields = ["bbox", "bbox_mode", "category_id", "segmentation", "iscrowd", "keypoints", "own"]


@pytest.fixture(scope="module")
def whole_record(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    return make_record(tmp_path_factory.mktemp("images"), [polygon_of((4, 6, 10, 12))])


@settings(max_examples=150, deadline=None)
@given(
    changes=st.dictionaries(st.sampled_from(fields), odd_values, max_size=3),
    dropped=st.sets(st.sampled_from(fields), max_size=1),
    size=st.none() | st.tuples(odd_values, odd_values),
    masks=st.booleans(),
)
def test_broken_records_are_used_or_named(
    whole_record: dict[str, object], changes: dict, dropped: set, size: tuple | None, masks: bool
) -> None:
    record = copy.deepcopy(whole_record)
    annotation = {**record["annotations"][0], **changes}
    record["annotations"].append({k: v for k, v in annotation.items() if k not in dropped})
    if size is not None:
        record["height"], record["width"] = size
    flip = T.RandomFlip(1.0)
    try:
        sample = make_mapper(augmentations=[flip], use_instance_mask=masks, max_skipped=1)(record)
    except ValueError as error:
        named = str(error)
    else:
        assert len(sample["instances"]) <= 2
        return
    assert record["file_name"] in named


@pytest.mark.parametrize("size", [(1, 600), (600, 1), (1, 5000), (5000, 1), (1, 1)])
@pytest.mark.parametrize("is_train", [True, False])
@pytest.mark.parametrize(
    "augmentations",
    [
        [T.ResizeShortestEdge(800, 1333)],
        [T.ResizeScale(0.1, 0.1, 1024, 1024), T.RandomCrop("absolute", (1024, 1024))],
    ],
    ids=["shortest edge", "scale"],
)
def test_thin_images(
    tmp_path: Path, size: tuple[int, int], is_train: bool, augmentations: list
) -> None:
    height, width = size
    record = make_record(tmp_path, [polygon_of((0, 0, width, height))])
    record.update(height=height, width=width)
    record["annotations"][0]["bbox"] = [0, 0, width, height]
    Image.fromarray(np.zeros((*size, 3), np.uint8)).save(record["file_name"])
    sample = make_mapper(is_train, augmentations=augmentations)(record)
    assert min(sample["image"].shape[1:]) >= 1
    assert (sample["height"], sample["width"]) == size
    if is_train:
        (box,) = sample["instances"].gt_boxes.tensor.tolist()
        assert box == [0, 0, *reversed(sample["image"].shape[1:])]


def test_augmentations_that_leave_nothing(tmp_path: Path) -> None:
    record = make_record(tmp_path, [polygon_of(BOX)])
    mapper = make_mapper(augmentations=[T.CropTransform(40, 40, 5, 5)], max_skipped=1)
    with pytest.raises(ValueError, match=r"image\.png\. .*leave no pixel .*\(32, 32\)"):
        mapper(record)


def test_keypoints_are_left_out_as_by_detectron2(tmp_path: Path) -> None:
    record = make_record(tmp_path, [polygon_of(BOX), polygon_of(BOX)])
    for annotation in record["annotations"]:
        annotation.update(keypoints=[20, 20, 2] * 17, num_keypoints=17, own={"any": "thing"})
    options = dict(augmentations=[T.RandomFlip(1.0)], image_format="RGB", use_instance_mask=True)
    ours = DatasetMapper(True, **options)(record)["instances"]
    theirs = Detectron2Mapper(True, **options)(record)["instances"]
    assert set(ours.get_fields()) == set(theirs.get_fields())
    torch.testing.assert_close(ours.gt_boxes.tensor, theirs.gt_boxes.tensor)


def test_rotated_boxes_become_the_boxes_around_them(tmp_path: Path) -> None:
    record = make_record(tmp_path, [None])
    box = {"bbox": [12.0, 16.0, 10.0, 6.0, 90.0], "bbox_mode": BoxMode.XYWHA_ABS}
    record["annotations"][0].update(box)
    mapper = make_mapper(use_instance_mask=False, augmentations=[T.HFlipTransform(32)])
    boxes = mapper(record)["instances"].gt_boxes.tensor
    torch.testing.assert_close(boxes, torch.tensor([[17.0, 11.0, 23.0, 21.0]]))


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


def test_masks_are_left_out_on_request(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    record = make_record(tmp_path, [polygon_of(BOX), None])
    instances = make_mapper(use_instance_mask=False)(record)["instances"]
    assert len(instances) == 2
    assert not instances.has("gt_masks")
    assert make_mapper()(record) is None
    assert re.search(r"skipped image .*image\.png .*an annotation has no mask", caplog.text)


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


def test_workers_keep_the_memory_that_they_free(tmp_path: Path, monkeypatch) -> None:
    record = make_record(tmp_path, [polygon_of(BOX)])
    calls: list[str] = []
    monkeypatch.setattr(dataset_mapper, "keep_freed_memory", lambda: calls.append("kept"))
    make_mapper()(record)
    assert calls == []
    monkeypatch.setattr(dataset_mapper, "get_worker_info", lambda: "a worker")
    make_mapper()(record)
    assert calls == ["kept"]
