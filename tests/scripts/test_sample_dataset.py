"""The sample data set: exact annotations, honest provenance, repeatable bytes."""

import json
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetMapper
from detectron2.data.datasets import load_coco_json, load_sem_seg
from file_digests import digest
from PIL import Image, ImageFilter
from pycocotools.coco import COCO
from sklearn.datasets import load_digits

from vitadapter.sample_data import scene as sample_scene
from vitadapter.sample_data.dataset import MAX_SIZE, MIN_SIZE, make_sample_dataset
from vitadapter.sample_data.scene import MIN_VISIBLE_SHARE, crop_photo, draw_scene
from vitadapter.sample_data.sources import load_digit_pools, load_photos

SPLITS = {"train": 40, "val": 20}
SIZE = 128


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("sample") / "new" / "folder"
    assert make_sample_dataset(out, SPLITS["train"], SPLITS["val"], SIZE, 0)
    return out


@pytest.fixture(scope="module", params=sorted(SPLITS))
def split(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def coco(dataset: Path, split: str) -> COCO:
    return COCO(str(dataset / "annotations" / f"instances_{split}.json"))


def masks_of(coco: COCO, image_id: int) -> dict[int, np.ndarray]:
    """Masks of an image's annotations by annotation id, as pycocotools decodes them."""
    return {ann["id"]: coco.annToMask(ann).astype(bool) for ann in coco.imgToAnns[image_id]}


def test_files_and_counts(dataset: Path, coco: COCO, split: str) -> None:
    stems = [f"{index:06d}" for index in range(1, SPLITS[split] + 1)]
    assert sorted(p.name for p in (dataset / split).iterdir()) == [f"{s}.jpg" for s in stems]
    labels = dataset / "sem_seg" / split
    assert sorted(p.name for p in labels.iterdir()) == [f"{s}.png" for s in stems]
    assert [image["file_name"] for image in coco.imgs.values()] == [f"{s}.jpg" for s in stems]
    assert [(c["id"], c["name"]) for c in coco.cats.values()] == [
        (digit + 1, str(digit)) for digit in range(10)
    ]
    for image in coco.imgs.values():
        with Image.open(dataset / split / image["file_name"]) as file:
            assert (file.format, file.mode) == ("JPEG", "RGB")
            assert file.size == (image["width"], image["height"]) == (SIZE, SIZE)
        assert 1 <= len(coco.imgToAnns[image["id"]]) <= 6


def test_area_and_bbox_follow_from_the_visible_mask(coco: COCO) -> None:
    for annotation in coco.anns.values():
        mask = coco.annToMask(annotation)
        assert annotation["area"] == mask.sum() > 0
        ys, xs = np.nonzero(mask)
        tight = [xs.min(), ys.min(), np.ptp(xs) + 1, np.ptp(ys) + 1]
        assert annotation["bbox"] == tight
        assert annotation["iscrowd"] == 0


def test_masks_are_disjoint_and_make_up_the_label_map(
    dataset: Path, coco: COCO, split: str
) -> None:
    for image in coco.imgs.values():
        masks = masks_of(coco, image["id"])
        assert np.sum(list(masks.values()), axis=0).max() == 1
        expected = np.zeros((SIZE, SIZE), dtype=np.uint8)
        for annotation_id, mask in masks.items():
            expected[mask] = coco.anns[annotation_id]["category_id"]
        with Image.open(dataset / "sem_seg" / split / f"{image['id']:06d}.png") as file:
            assert file.mode == "L"
            np.testing.assert_array_equal(np.asarray(file), expected)
        with Image.open(dataset / "foreground" / split / f"{image['id']:06d}.png") as file:
            np.testing.assert_array_equal(np.asarray(file), expected > 0)


def test_category_is_the_label_of_the_digit_sample(coco: COCO) -> None:
    target = load_digits().target
    for annotation in coco.anns.values():
        assert annotation["category_id"] == target[annotation["digit_index"]] + 1


def test_background_is_the_stated_crop_and_digits_stand_out(
    dataset: Path, coco: COCO, split: str
) -> None:
    photos = load_photos()
    inside, outside, elsewhere = [], [], []
    for image in coco.imgs.values():
        with Image.open(dataset / split / image["file_name"]) as file:
            pixels = np.asarray(file).astype(float)
        digits = np.any(list(masks_of(coco, image["id"]).values()), axis=0)
        # The anti-aliased edge reaches one pixel beyond the mask, JPEG's 8 x 8 blocks seven more.
        near = np.asarray(Image.fromarray(digits).convert("L").filter(ImageFilter.MaxFilter(19)))
        background = near == 0
        x, y, w, h = image["crop"]
        photo = Image.fromarray(photos[image["photo"]])
        cut = photo.crop((x, y, x + w, y + h)).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
        difference = np.abs(pixels - np.asarray(cut)).mean(axis=2)
        inside += difference[digits].tolist()
        outside += difference[background].tolist()
        mirrored = np.asarray(cut)[::-1, ::-1]
        elsewhere += np.abs(pixels - mirrored).mean(axis=2)[background].tolist()
    assert np.mean(outside) < 3  # JPEG at quality 92
    assert np.percentile(outside, 99.9) < 20
    assert np.mean(elsewhere) > 20  # so the bound above tells crops apart
    assert np.percentile(inside, 10) > 40  # digits are visible


def test_train_and_val_share_neither_digits_nor_photo_regions(dataset: Path) -> None:
    shapes = {name: photo.shape[:2] for name, photo in load_photos().items()}
    used: dict[str, dict[str, np.ndarray]] = {}
    samples: dict[str, set[int]] = {}
    for name in SPLITS:
        content = json.loads((dataset / "annotations" / f"instances_{name}.json").read_text())
        used[name] = {photo: np.zeros(shape, dtype=bool) for photo, shape in shapes.items()}
        for image in content["images"]:
            x, y, w, h = image["crop"]
            height, width = shapes[image["photo"]]
            assert 0 <= x < x + w <= width
            assert 0 <= y < y + h <= height
            used[name][image["photo"]][y : y + h, x : x + w] = True
        samples[name] = {annotation["digit_index"] for annotation in content["annotations"]}
        assert {image["photo"] for image in content["images"]} == set(shapes)
    assert samples["train"].isdisjoint(samples["val"])
    for photo in shapes:
        assert not (used["train"][photo] & used["val"][photo]).any()


def test_digit_pools_are_a_stratified_partition() -> None:
    pools = load_digit_pools(seed=3)
    everything = np.concatenate([pool.samples for pool in pools.values()])
    assert sorted(everything) == list(range(1797))
    for pool in pools.values():
        assert set(pool.labels[pool.samples]) == set(range(10))
    held_out = np.bincount(pools["val"].labels[pools["val"].samples])
    np.testing.assert_allclose(held_out / np.bincount(load_digits().target), 0.2, atol=0.005)
    assert not np.array_equal(pools["val"].samples, load_digit_pools(seed=4)["val"].samples)


def test_every_photo_and_the_digits_state_licence_and_source(coco: COCO) -> None:
    licenses = {entry["id"]: entry for entry in coco.dataset["licenses"]}
    assert len(licenses) == 6
    for entry in licenses.values():
        assert all(entry[key] for key in ("name", "author", "work", "package"))
        assert all(entry[key].startswith("https://") for key in ("url", "source"))
    names = {image["photo"]: licenses[image["license"]]["name"] for image in coco.imgs.values()}
    assert names["china"] == names["flower"] == "CC BY 2.0"
    assert names["coffee"] == names["chelsea"] == "CC0 1.0"
    assert "ublic domain" in names["astronaut"]
    assert "Handwritten Digits" in licenses[6]["work"]


def test_sizes_classes_and_occlusion_are_spread(dataset: Path) -> None:
    coco = COCO(str(dataset / "annotations" / "instances_train.json"))
    sides = np.array([max(annotation["bbox"][2:]) for annotation in coco.anns.values()])
    assert sides.min() < 0.2 * SIZE
    assert sides.max() > 0.6 * SIZE
    assert 0.2 < np.mean(sides > 0.35 * SIZE) < 0.8
    assert {annotation["category_id"] for annotation in coco.anns.values()} == set(range(1, 11))
    touching = 0
    for image_id in coco.imgs:
        masks = np.stack(list(masks_of(coco, image_id).values()))
        grown = [
            np.asarray(Image.fromarray(mask).convert("L").filter(ImageFilter.MaxFilter(3))) > 0
            for mask in masks
        ]
        touching += np.sum(grown, axis=0).max() > 1
    assert 0.2 * len(coco.imgs) < touching < len(coco.imgs)


@pytest.mark.parametrize("size", [MIN_SIZE, MAX_SIZE])
@pytest.mark.parametrize("split", sorted(SPLITS))
def test_every_photo_allows_every_size(size: int, split: str) -> None:
    photos, pool = load_photos(), load_digit_pools(0)[split]
    for index, (name, photo) in enumerate(photos.items()):
        scene = draw_scene(np.random.default_rng(index), split, {name: photo}, pool, size)
        assert scene.image.shape == (size, size, 3)
        assert scene.digits
        assert scene.crop[2] >= size // 2


def test_every_digit_keeps_the_stated_share_visible(monkeypatch: pytest.MonkeyPatch) -> None:
    whole: list[int] = []
    draw_window = sample_scene._draw_window

    def record(rng, mask, owner, areas):
        window = draw_window(rng, mask, owner, areas)
        if window is not None:
            whole.append(mask.sum())
        return window

    monkeypatch.setattr(sample_scene, "_draw_window", record)
    photos, pool = load_photos(), load_digit_pools(0)["train"]
    visible: list[int] = []
    for seed in range(60):
        scene = draw_scene(np.random.default_rng(seed), "train", photos, pool, SIZE)
        visible += [digit.mask.sum() for digit in scene.digits]
    shares = np.array(visible) / np.array(whole)
    assert shares.min() >= MIN_VISIBLE_SHARE
    assert shares.max() == 1
    assert 0.1 < np.mean(shares < 0.95) < 0.5  # occlusion happens, and not everywhere


def test_same_seed_same_bytes_other_seed_other_images(dataset: Path, tmp_path: Path) -> None:
    again, other = tmp_path / "again", tmp_path / "other"
    make_sample_dataset(again, SPLITS["train"], SPLITS["val"], SIZE, 0)
    assert digest(again) == digest(dataset)
    make_sample_dataset(other, 3, 2, SIZE, 1)
    for name in digest(other):
        if name.endswith(".jpg"):
            assert digest(other)[name] != digest(dataset)[name]


def test_images_do_not_depend_on_the_count(dataset: Path, tmp_path: Path) -> None:
    make_sample_dataset(tmp_path, 2, 1, SIZE, 0)
    pictures = {k: v for k, v in digest(tmp_path).items() if k.endswith((".jpg", ".png"))}
    assert len(pictures) == 9
    assert pictures.items() <= digest(dataset).items()


def test_crop_reads_no_pixel_outside_the_crop() -> None:
    photo = np.zeros((60, 80, 3), dtype=np.uint8)
    photo[10:40, 20:50] = 200
    assert (crop_photo(photo, (20, 10, 30, 30), 70) == 200).all()


def test_a_finished_set_is_left_alone(dataset: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in dataset.rglob("*")}
    assert not make_sample_dataset(dataset, SPLITS["train"], SPLITS["val"], SIZE, 0)
    assert {path: path.stat().st_mtime_ns for path in dataset.rglob("*")} == before


def test_detectron2_loads_it_as_bitmasks(dataset: Path, coco: COCO, split: str) -> None:
    json_file = dataset / "annotations" / f"instances_{split}.json"
    records = load_coco_json(str(json_file), str(dataset / split))
    assert len(records) == SPLITS[split]
    mapper = DatasetMapper(
        is_train=True,
        augmentations=[],
        image_format="RGB",
        use_instance_mask=True,
        instance_mask_format="bitmask",
    )
    for record in records[:3]:
        instances = mapper(record)["instances"]
        expected = np.stack(list(masks_of(coco, record["image_id"]).values()))
        np.testing.assert_array_equal(instances.gt_masks.tensor.numpy(), expected)
    semantic = load_sem_seg(str(dataset / "sem_seg" / split), str(dataset / split))
    assert len(semantic) == SPLITS[split]
