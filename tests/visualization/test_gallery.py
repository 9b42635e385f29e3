import json
import runpy
from pathlib import Path

import numpy as np
import pytest
from coco_samples import make_content, polygon_of, rle_of, write_coco
from PIL import Image
from pycocotools.coco import COCO

from vitadapter.visualization import gallery
from vitadapter.visualization.gallery import choose_images, draw_gallery

SIZE = 64
SCALE = 512 // SIZE
# Where the image of a picture begins, by its layout: captions above, small gaps around.
LEFT, TOP, RIGHT_HALF = 6, 24, 6 + 512 + 6


def exact_results(content: dict, masks: bool = True, score: float = 0.9) -> list[dict]:
    results = []
    for annotation in content["annotations"]:
        result = {k: annotation[k] for k in ("image_id", "category_id", "bbox")}
        if masks:
            result["segmentation"] = rle_of(annotation["bbox"], SIZE)
        results.append({**result, "score": score})
    return results


def draw(folder: Path, content: dict, results: list[dict], **options) -> list[Path]:
    json_file, image_root = write_coco(folder, content)
    results_file = folder / "results.json"
    results_file.write_text(json.dumps(results))
    return draw_gallery(json_file, image_root, results_file, folder / "out", **options)


def one_box_content(box: tuple[int, int, int, int], segmentation: object = None) -> dict:
    content = make_content(images=1, classes=1, masks="none")
    content["annotations"][0]["bbox"] = list(box)
    if segmentation is not None:
        content["annotations"][0]["segmentation"] = segmentation
    return content


def halves(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """The drawn images `(512, 512, 3)` of a picture: ground truth and predictions."""
    pixels = np.asarray(Image.open(path).convert("RGB")).astype(int)
    rows = pixels[TOP : TOP + 512]
    return rows[:, LEFT : LEFT + 512], rows[:, RIGHT_HALF : RIGHT_HALF + 512]


def coloured(pixels: np.ndarray) -> np.ndarray:
    """Where something is drawn on the grey image."""
    return pixels.max(axis=-1) - pixels.min(axis=-1) > 30


def test_chosen_images_are_spread_and_seeded() -> None:
    ids = list(range(100, 200))
    chosen = choose_images(ids, 10, seed=0)
    assert [i // 10 for i in chosen] == list(range(10, 20))
    assert chosen == choose_images(ids, 10, seed=0)
    assert chosen != choose_images(ids, 10, seed=1)
    assert choose_images([5, 7], 10, seed=0) == [5, 7]


def test_bad_choices_are_refused() -> None:
    with pytest.raises(ValueError, match="number of images must be at least 1, got 0"):
        choose_images([1], 0, 0)
    with pytest.raises(ValueError, match="seed must not be negative, got -1"):
        choose_images([1], 1, -1)
    with pytest.raises(ValueError, match="images with annotations to choose from, got none"):
        choose_images([], 1, 0)


def test_only_annotated_images_are_drawn(tmp_path: Path) -> None:
    content = make_content(images=5, classes=1)
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] in (2, 5)]
    written = draw(tmp_path, content, exact_results(content), num_images=3)
    assert [path.name for path in written] == ["001.png", "004.png", "overview.png"]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [p.name for p in written]


def test_pictures_are_enlarged_and_the_sheet_is_small(tmp_path: Path) -> None:
    content = make_content(images=8)
    written = draw(tmp_path, content, exact_results(content))
    assert {Image.open(path).size for path in written[:-1]} == {(1042, 542)}
    sheet = Image.open(written[-1])
    # 3 x 3 would leave one place empty: 2 columns of pairs, 4 rows.
    assert sheet.size == (2 * (2 * 256 + 6 + 20) - 20 + 12, 4 * (24 + 256 + 6))
    assert written[-1].stat().st_size < 1_000_000


def test_large_and_oblong_images_keep_their_shape(tmp_path: Path) -> None:
    content = make_content(images=1, classes=1, masks="none")
    content["images"][0].update(width=700, height=350)
    [picture, sheet] = draw(tmp_path, content, [])
    assert Image.open(picture).size == (2 * 700 + 6 + 12, 24 + 350 + 6)
    assert Image.open(sheet).size == (2 * 256 + 6 + 12, 24 + 128 + 6)


@pytest.mark.parametrize("kind", ["rle", "uncompressed", "polygon"])
def test_masks_are_filled_on_both_sides(tmp_path: Path, kind: str) -> None:
    box = (8, 16, 40, 24)
    segmentation = {
        "rle": rle_of(box, SIZE),
        "polygon": polygon_of(box),
        "uncompressed": {
            "size": [SIZE, SIZE],
            "counts": [8 * SIZE + 16, *[24, 40] * 39, 24, 16 * SIZE + 24],
        },
    }[kind]
    content = one_box_content(box, segmentation)
    [picture, _] = draw(tmp_path, content, exact_results(content))
    x, y, w, h = (SCALE * v for v in box)
    for half in halves(picture):
        drawn = coloured(half)
        label = np.zeros_like(drawn)
        label[y - 24 : y, x : x + 160] = True
        inside, around = np.zeros_like(drawn), np.zeros_like(drawn)
        inside[y + 4 : y + h - 4, x + 4 : x + w - 4] = True  # corners are smooth
        around[y - 4 : y + h + 4, x - 4 : x + w + 4] = True
        assert drawn[inside & ~label].all()
        assert not drawn[~around & ~label].any()


def test_holes_of_masks_stay_open(tmp_path: Path) -> None:
    content = one_box_content((8, 8, 48, 48))
    mask = np.zeros((SIZE, SIZE), dtype=np.uint8, order="F")
    mask[8:56, 8:56] = 1
    mask[24:40, 24:40] = 0
    content["annotations"][0]["segmentation"] = {
        "size": [SIZE, SIZE],
        "counts": np.diff(
            np.flatnonzero(np.diff(mask.ravel(order="F"))) + 1, prepend=0, append=SIZE * SIZE
        ).tolist(),
    }
    truth, _ = halves(draw(tmp_path, content, [])[0])
    drawn = coloured(truth)
    assert not drawn[26 * SCALE : 38 * SCALE, 26 * SCALE : 38 * SCALE].any()
    assert drawn[42 * SCALE : 54 * SCALE, 10 * SCALE : 54 * SCALE].all()


def test_boxes_without_masks_are_outlined(tmp_path: Path) -> None:
    box = (8, 16, 40, 24)
    content = one_box_content(box)
    [picture, _] = draw(tmp_path, content, exact_results(content, masks=False))
    x, y, w, h = (SCALE * v for v in box)
    for half in halves(picture):
        drawn = coloured(half)
        assert drawn[y + h, x : x + w].all()
        assert drawn[y + 40 : y + h, [x, x + w]].all()
        assert not drawn[y + 40 : y + h - 5, x + 5 : x + w - 5].any()


@pytest.mark.parametrize(("threshold", "is_drawn"), [(0.59, True), (0.6, True), (0.61, False)])
def test_threshold_decides_what_is_drawn(tmp_path: Path, threshold: float, is_drawn: bool) -> None:
    content = make_content(images=1, classes=1, masks="rle")
    results = exact_results(content, score=0.6)
    written = draw(tmp_path, content, results, score_threshold=threshold)
    truth, predictions = halves(written[0])
    assert coloured(truth).any()
    assert coloured(predictions).any() == is_drawn
    sheet = np.asarray(Image.open(written[-1])).astype(int)[24:]
    assert coloured(sheet[:, 6 + 256 + 6 :]).any() == is_drawn


def test_colour_tells_the_class(tmp_path: Path) -> None:
    content = make_content(images=1, classes=2, masks="none")
    content["annotations"] = content["annotations"][:1]
    content["annotations"][0].update(bbox=[8, 8, 48, 48], segmentation=polygon_of((8, 8, 48, 48)))
    right = exact_results(content)
    wrong = [{**right[0], "category_id": 2}]
    for results, same in ((right, True), (wrong, False)):
        truth, predictions = halves(draw(tmp_path, content, results)[0])
        below_label = np.s_[300:400, 200:400]
        assert np.array_equal(truth[below_label], predictions[below_label]) == same


def test_labels_name_class_and_score() -> None:
    api = COCO()
    api.cats = {3: {"name": "cat"}}
    assert gallery._label({"category_id": 3}, api) == "cat"
    assert gallery._label({"category_id": 3, "iscrowd": 1}, api) == "cat (crowd)"
    assert gallery._label({"category_id": 3, "score": 0.876}, api) == "cat 88%"


def test_equal_file_names_do_not_overwrite(tmp_path: Path) -> None:
    content = make_content(images=3, classes=1)
    for image, name in zip(content["images"], ("a/1.png", "b/1.png", "overview.png"), strict=True):
        image["file_name"] = name
    for folder in ("a", "b"):
        (tmp_path / "images" / folder).mkdir(parents=True)
    written = draw(tmp_path, content, [])
    assert [p.name for p in written] == ["1.png", "1_2.png", "overview_3.png", "overview.png"]


def test_sheet_shrinks_to_its_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gallery, "_MAX_OVERVIEW_BYTES", 30_000)
    noise = np.random.default_rng(0).integers(0, 256, (200, 300, 3), dtype=np.uint8)
    gallery._save_small(Image.fromarray(noise), tmp_path / "x.png")
    assert (tmp_path / "x.png").stat().st_size < 30_000
    width, height = Image.open(tmp_path / "x.png").size
    assert width < 300
    assert width / height == pytest.approx(1.5, rel=0.05)


@pytest.mark.parametrize(
    ("pairs", "columns"),
    [(1, 1), (2, 1), (3, 3), (4, 2), (8, 2), (9, 3), (12, 4), (16, 4), (30, 6)],
)
def test_columns_fill_rows(pairs: int, columns: int) -> None:
    assert gallery._count_columns(pairs) == columns


@pytest.mark.parametrize("threshold", [-0.1, 1.1, float("nan")])
def test_bad_threshold_is_refused(tmp_path: Path, threshold: float) -> None:
    content = make_content(images=1)
    with pytest.raises(ValueError, match=rf"threshold must be in \[0, 1\], got {threshold}"):
        draw(tmp_path, content, [], score_threshold=threshold)


def test_unusable_images_and_masks_are_refused(tmp_path: Path) -> None:
    content = make_content(images=1, masks="none")
    json_file, image_root = write_coco(tmp_path, content)
    results_file = tmp_path / "results.json"
    results_file.write_text("[]")
    with pytest.raises(ValueError, match=r"elsewhere/000\.png cannot be read"):
        draw_gallery(json_file, tmp_path / "elsewhere", results_file, tmp_path / "out")
    Path(image_root, "000.png").write_text("no image")
    with pytest.raises(ValueError, match=r"images/000\.png cannot be read"):
        draw_gallery(json_file, image_root, results_file, tmp_path / "out")
    results = exact_results(content)
    results[0]["segmentation"] = rle_of((0, 0, 4, 4), 32)
    with pytest.raises(ValueError, match=r"mask of the size \[32, 32\], but .* \[64, 64\]"):
        draw(tmp_path, content, results)


@pytest.mark.parametrize("segmentation", [{"counts": "11"}, {"size": [64, 64]}, [7]])
def test_masks_that_cannot_be_decoded_are_refused(tmp_path: Path, segmentation: object) -> None:
    content = make_content(images=1, masks="none")
    results = [{**exact_results(content)[0], "segmentation": segmentation}]
    message = r"result 0 of .*results\.json (has|must have) .*(size|RLE|polygons)"
    with pytest.raises(ValueError, match=message):
        draw(tmp_path, content, results)


def test_script(tmp_path: Path, repository: Path, capsys: pytest.CaptureFixture) -> None:
    main = runpy.run_path(str(repository / "scripts" / "visualize_results.py"))["main"]
    content = make_content(images=4)
    draw(tmp_path, content, exact_results(content))
    arguments = ["--json-file", str(tmp_path / "instances.json"), "--output", str(tmp_path / "two")]
    arguments += ["--image-root", str(tmp_path / "images")]
    arguments += ["--results", str(tmp_path / "results.json"), "--num-images", "2"]
    main(arguments)
    assert f"2 images drawn; all of them: {tmp_path / 'two' / 'overview.png'}" in (
        capsys.readouterr().out
    )
    assert len(list((tmp_path / "two").iterdir())) == 3
    with pytest.raises(SystemExit, match=r"error: .*threshold must be in \[0, 1\], got 2"):
        main([*arguments, "--score-threshold", "2"])
