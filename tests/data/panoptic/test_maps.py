import logging
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import build_detection_train_loader
from detectron2.data import transforms as T
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from panoptic_samples import (
    CLASSES,
    grey_of,
    make_content,
    some_ids,
    write_map,
    write_panoptic,
)
from PIL import Image

from vitadapter.data.panoptic import PanopticDatasetMapper, load_panoptic_dataset
from vitadapter.data.panoptic.maps import (
    check_segment_ids,
    id_to_rgb,
    read_panoptic_png,
    rgb_to_id,
)
from vitadapter.data.transforms import PadToSize


def test_ids_are_colours() -> None:
    """The format's own examples: red counts one, green 256, blue 65536."""
    colours = np.array([[[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1], [255, 255, 255]]], np.uint8)
    ids = rgb_to_id(colours)
    assert ids.tolist() == [[0, 1, 256, 65536, 2**24 - 1]]
    np.testing.assert_array_equal(id_to_rgb(ids), colours)


@pytest.mark.parametrize("bad", [-1, 2**24])
def test_ids_out_of_range(bad: int) -> None:
    with pytest.raises(ValueError, match=r"lie in \[0, 2\^24\)"):
        id_to_rgb(np.array([[0, bad]]))


def test_reads_what_is_stored(tmp_path: Path) -> None:
    ids = some_ids()
    write_map(tmp_path / "a.png", ids)
    np.testing.assert_array_equal(rgb_to_id(read_panoptic_png(str(tmp_path / "a.png"))), ids)
    with pytest.raises(ValueError, match=r"a\.png must have .* \(48, 63\), got \(48, 64\)"):
        read_panoptic_png(str(tmp_path / "a.png"), (48, 63))


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "I;16", "1"])
def test_other_kinds_of_images_are_refused(tmp_path: Path, mode: str) -> None:
    """A palette or 16 bits could hold ids, too, but no two programs would agree how."""
    path = tmp_path / "a.png"
    if mode == "I;16":
        Image.fromarray(np.full((4, 6), 300, np.uint16)).save(path)
    else:
        Image.new("RGB", (6, 4), (9, 0, 0)).convert(mode).save(path)
    with pytest.raises(ValueError, match=rf"a\.png must be an RGB image .* got the mode {mode}"):
        read_panoptic_png(str(path))


@pytest.mark.parametrize("kind", ["missing", "text", "truncated"])
def test_unreadable_files_are_named(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.png"
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    if kind == "missing":
        path.unlink()
    else:
        path.write_bytes(b"no image" if kind == "text" else path.read_bytes()[:900])
    with pytest.raises(ValueError, match=r"panoptic map .*a\.png cannot be read"):
        read_panoptic_png(str(path))


def test_segments_that_nobody_annotated() -> None:
    record = {"pan_seg_file_name": "maps/a.png", "segments_info": [{"id": 5}, {"id": 8}]}
    check_segment_ids(np.array([[0, 5], [5, 5]]), record)
    with pytest.raises(ValueError, match=r"maps/a\.png has segments .*: 4, 6$"):
        check_segment_ids(np.array([[6, 5], [4, 8]]), record)


IDS = {"a": some_ids(2), "b": some_ids(3)}
# Class of each segment that is no crowd, as models number it.
KEPT = {5: 0, 66000: 1, 70000: 2, 300: 3}


def make_mapper(augmentations: list, **options: object) -> PanopticDatasetMapper:
    options = {"is_train": True, "image_format": "RGB", **options}
    return PanopticDatasetMapper(augmentations=augmentations, **options)


def large_scale_jitter(side: int) -> list[T.Augmentation]:
    return [
        T.ResizeScale(0.1, 2.0, side, side),
        T.RandomCrop("absolute", (side, side)),
        PadToSize((side, side), (0, 0, 0)),
        T.RandomFlip(),
    ]


@pytest.fixture
def records(tmp_path: Path) -> list[dict[str, object]]:
    files = write_panoptic(tmp_path, IDS, make_content(IDS, suffix=".png"))
    return load_panoptic_dataset("own", *files, **CLASSES)


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    changes=st.dictionaries(
        st.sampled_from(["segments_info", "pan_seg_file_name", "file_name", "height"]),
        st.sampled_from([None, [], [{}], [{"id": 5}], [None], "none.png", 3, {}]),
        min_size=1,
        max_size=2,
    )
)
def test_broken_records_are_used_or_named(
    records: list[dict[str, object]], changes: dict[str, object]
) -> None:
    record = {**records[0], **changes}
    try:
        mapped = make_mapper([], max_skipped=1)(record)
    except ValueError as error:
        named = str(error)
    else:
        assert "instances" in mapped
        return
    assert str(record["file_name"]) in named


def test_segments_are_those_of_the_map(records: list[dict[str, object]]) -> None:
    """Things and stuff, without crowds and void."""
    mapped = make_mapper([])(records[0])
    assert mapped["image"].shape == (3, 48, 64)
    instances = mapped["instances"]
    masks = instances.gt_masks.tensor
    assert masks.dtype == torch.bool
    assert instances.gt_classes.dtype == torch.int64
    found = dict(zip(instances.gt_classes.tolist(), masks, strict=True))
    assert set(found) == set(KEPT.values())
    for id_, category in KEPT.items():
        np.testing.assert_array_equal(found[category].numpy(), IDS["a"] == id_)


@pytest.mark.parametrize(
    "augmentations",
    [
        [T.RandomFlip(prob=1.0), T.RandomCrop("absolute", (30, 40))],
        [T.Resize((96, 128)), T.RandomCrop("absolute", (64, 64))],
        [PadToSize((60, 70), (0, 0, 0)), T.RandomFlip(prob=1.0)],
        large_scale_jitter(64),
    ],
    ids=["crop", "resize", "pad", "jitter"],
)
def test_segments_stay_on_their_pixels(
    records: list[dict[str, object]], augmentations: list
) -> None:
    """The images show each segment in a grey value of its own."""
    np.random.seed(3)  # noqa: NPY002
    mapped = make_mapper(augmentations)(records[1])
    grey, instances = mapped["image"][0], mapped["instances"]
    assert instances.image_size == tuple(grey.shape)
    assert len(instances) >= 2
    values = {KEPT[id_]: int(grey_of(np.array([id_]))[0]) for id_ in KEPT}
    for category, mask in zip(
        instances.gt_classes.tolist(), instances.gt_masks.tensor, strict=True
    ):
        shown = grey == values[category]
        # Resized images are smooth at the borders of segments, where masks are not.
        assert (shown & mask).sum() > 0.7 * mask.sum() > 0
        assert (shown & mask).sum() > 0.95 * shown.sum()


def test_padding_is_no_segment(records: list[dict[str, object]]) -> None:
    masks = make_mapper([PadToSize((60, 70), (0, 0, 0))])(records[0])["instances"].gt_masks
    assert masks.tensor.shape[1:] == (60, 70)
    assert not masks.tensor[:, 48:].any()
    assert not masks.tensor[:, :, 64:].any()


def test_more_segments_than_8_bits(tmp_path: Path) -> None:
    """Resizing must not mix the bytes of ids."""
    ids = np.arange(1, 301).reshape(15, 20).repeat(8, 0).repeat(8, 1)
    content = make_content({"a": ids})
    content["annotations"][0]["segments_info"] = [
        {"id": id_, "category_id": 7, "area": 64, "iscrowd": 0} for id_ in range(1, 301)
    ]
    files = write_panoptic(tmp_path, {"a": ids}, content)
    (record,) = load_panoptic_dataset("own", *files, **CLASSES)
    masks = make_mapper([T.Resize((60, 80))])(record)["instances"].gt_masks.tensor
    assert masks.shape == (300, 60, 80)
    assert (masks.flatten(1).sum(1) == 16).all()
    assert (masks.sum(0) == 1).all()


def test_a_crop_without_a_segment(records: list[dict[str, object]]) -> None:
    corner = T.CropTransform(60, 46, 4, 2)
    instances = make_mapper([corner])(records[0])["instances"]
    assert len(instances) == 0
    assert instances.gt_masks.tensor.shape == (0, 2, 4)
    assert instances.gt_classes.dtype == torch.int64


def test_test_images_come_without_their_map(records: list[dict[str, object]]) -> None:
    Path(str(records[0]["pan_seg_file_name"])).unlink()
    mapped = make_mapper([T.Resize((24, 32))], is_train=False)(records[0])
    assert mapped["image"].shape == (3, 24, 32)
    assert (mapped["height"], mapped["width"], mapped["image_id"]) == (48, 64, 1)
    assert "instances" not in mapped


@pytest.mark.parametrize(
    ("kind", "fault"),
    [
        ("size", r"a\.png must have its image's \(height, width\) \(48, 64\), got \(40, 64\)"),
        ("segment", r"a\.png has segments that its annotation does not list: 77"),
        ("16 bit", r"a\.png must be an RGB image .* mode I;16"),
        ("unreadable", r"a\.png cannot be read"),
        ("image", r"images/a\.png"),
    ],
)
def test_unusable_images_are_skipped_and_named(
    records: list[dict[str, object]], kind: str, fault: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = Path(str(records[0]["pan_seg_file_name"]))
    if kind == "size":
        write_map(path, some_ids(0, (40, 64)))
    elif kind == "segment":
        write_map(path, np.where(IDS["a"] == 300, 77, IDS["a"]))
    elif kind == "16 bit":
        Image.fromarray(IDS["a"].clip(max=65535).astype(np.uint16)).save(path)
    elif kind == "unreadable":
        path.write_bytes(path.read_bytes()[:100])
    else:
        Path(str(records[0]["file_name"])).write_bytes(b"")
    mapper = make_mapper([])
    with caplog.at_level(logging.WARNING, "vitadapter"):
        assert mapper(records[0]) is None
        assert mapper(records[0]) is None
    (warning,) = caplog.records
    assert re.search(fault, warning.getMessage())
    with pytest.raises(ValueError, match=r"1 training images cannot be used .*images/a\.png"):
        make_mapper([], max_skipped=1)(records[0])


def test_unreadable_test_image(records: list[dict[str, object]]) -> None:
    Path(str(records[0]["file_name"])).write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"cannot use the test image .*a\.png"):
        make_mapper([], is_train=False)(records[0])


def test_training_loader(records: list[dict[str, object]]) -> None:
    loader = build_detection_train_loader(
        dataset=records, mapper=make_mapper(large_scale_jitter(32)), total_batch_size=2
    )
    batch = next(iter(loader))
    assert [x["image"].shape for x in batch] == [(3, 32, 32)] * 2
