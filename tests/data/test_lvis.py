"""LVIS's format, by Detectron2's conventions."""

import json
import math
from pathlib import Path

import pytest
import torch
from detectron2.config import instantiate
from detectron2.data import MetadataCatalog
from detectron2.data.detection_utils import get_fed_loss_cls_weights
from detectron2.structures import BoxMode
from lvis_samples import CATEGORIES, make_lvis, write_lvis
from omegaconf import OmegaConf
from project_configs import CONFIGS, load

from vitadapter.data.lvis import FederatedClassWeights, load_lvis_dataset
from vitadapter.model_zoo import get_config

Content = dict[str, list[dict[str, object]]]


@pytest.fixture
def content() -> Content:
    return make_lvis(images=6)


@pytest.fixture
def files(content: Content, tmp_path: Path) -> tuple[str, str]:
    return write_lvis(tmp_path, content)


def test_records(content: Content, files: tuple[str, str]) -> None:
    records = load_lvis_dataset("x", *files, num_classes=5)
    assert [record["image_id"] for record in records] == [i["id"] for i in content["images"]]
    for record, image in zip(records, content["images"], strict=True):
        assert record["file_name"].endswith("val2017/" + image["coco_url"].rpartition("/")[2])
        assert Path(record["file_name"]).is_file()
        for key in ("height", "width", "neg_category_ids", "not_exhaustive_category_ids"):
            assert record[key] == image[key]
        expected = [a for a in content["annotations"] if a["image_id"] == image["id"]]
        assert len(record["annotations"]) == len(expected)
        for ours, theirs in zip(record["annotations"], expected, strict=True):
            assert ours["bbox"] == theirs["bbox"]
            assert ours["bbox_mode"] == BoxMode.XYWH_ABS
            assert CATEGORIES[ours["category_id"]] == theirs["category_id"]
            assert ours["segmentation"] == theirs["segmentation"]
    assert load_lvis_dataset("x", *files, num_classes=5, filter_empty=True) == [
        record for record in records if record["annotations"]
    ]


def test_images_in_one_folder(content: Content, files: tuple[str, str], tmp_path: Path) -> None:
    """Files of your own may name their images as COCO does."""
    for image in content["images"]:
        image["file_name"] = image.pop("coco_url").rpartition("/")[2]
    Path(files[0]).write_text(json.dumps(content))
    (record, *_) = load_lvis_dataset("x", files[0], f"{files[1]}/val2017", num_classes=5)
    assert record["file_name"] == str(Path(files[1], "val2017", content["images"][0]["file_name"]))


def test_detectron2_knows_where_lvis_lies(
    files: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    metadata = MetadataCatalog.get("lvis_v1_val")
    monkeypatch.setitem(metadata.__dict__, "json_file", files[0])
    monkeypatch.setitem(metadata.__dict__, "image_root", files[1] + "/")
    assert len(load_lvis_dataset("lvis_v1_val", num_classes=5, role="test")) == 6


def test_what_cannot_be_used(content: Content, files: tuple[str, str]) -> None:
    with pytest.raises(ValueError, match=r"set dataset\.num_classes=5"):
        load_lvis_dataset("x", *files, num_classes=1203)
    with pytest.raises(ValueError, match=r"dataset\.test\.json_file="):
        load_lvis_dataset("x", "nowhere.json", files[1], num_classes=5, role="test")
    with pytest.raises(ValueError, match="not a known data set"):
        load_lvis_dataset("lvis_v7", num_classes=5)
    del content["images"][0]["coco_url"]
    Path(files[0]).write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"image 10 \(None\) must have a text as file_name"):
        load_lvis_dataset("x", *files, num_classes=5)


def test_weights_of_the_federated_loss(content: Content, files: tuple[str, str]) -> None:
    expected = get_fed_loss_cls_weights("lvis_v1_train", 0.5)
    torch.testing.assert_close(FederatedClassWeights("lvis_v1_train")(), expected)
    weights = FederatedClassWeights("x", files[0])()
    assert weights.tolist() == pytest.approx(CATEGORIES)  # roots of the squares in the file
    with pytest.raises(ValueError, match=r"coco_2017_train has none: set .*use_fed_loss=False"):
        FederatedClassWeights("coco_2017_train")()
    for count in (None, -1, 10**400, math.nan):
        content["categories"][1]["image_count"] = count
        Path(files[0]).write_text(json.dumps(content))
        with pytest.raises(ValueError, match=r"lvis\.json has none"):
            FederatedClassWeights("x", files[0])()


def test_rare_classes_are_repeated(content: Content, files: tuple[str, str]) -> None:
    cfg = OmegaConf.create(get_config("common/data/lvis.py"), flags={"allow_objects": True})
    cfg.model = {"input_format": "RGB", "pixel_mean": [0, 0, 0]}
    cfg.dataset.train.update(json_file=files[0], image_root=files[1])
    cfg.dataset.num_classes = 5
    cfg.dataloader.train.num_workers = 0
    cfg.dataloader.train.sampler.repeat_factors.repeat_thresh = 0.9
    cfg.dataloader.train.total_batch_size = 2
    loader = instantiate(cfg.dataloader.train)
    batch = next(iter(loader))
    assert batch[0]["image"].shape == (3, 1024, 1024)
    shown = {i["id"] for i in content["images"]} & {a["image_id"] for a in content["annotations"]}
    classes = {
        i: {a["category_id"] for a in content["annotations"] if a["image_id"] == i}
        for i in sorted(shown)
    }
    factors = []
    for there in classes.values():  # arXiv 1908.03195, appendix B
        shares = [sum(c in other for other in classes.values()) / len(classes) for c in there]
        factors.append(max(max(1, (0.9 / share) ** 0.5) for share in shares))
    sampler = instantiate(cfg.dataloader.train.sampler)
    repeated = sampler._int_part + sampler._frac_part
    assert repeated.tolist() == pytest.approx(factors, rel=1e-5)
    assert max(factors) > 1


def test_the_experiment_has_the_federated_loss_by_one_override(
    files: tuple[str, str],
) -> None:
    (path,) = (path for path in CONFIGS if path.parent.name == "LVIS")
    cfg = load(path)
    with torch.device("meta"):
        assert instantiate(cfg.model.roi_heads).box_predictor.use_sigmoid_ce
        cfg.model.roi_heads.box_predictor.use_fed_loss = True
        assert len(instantiate(cfg.model.roi_heads).box_predictor.fed_loss_cls_weights) == 1203
        cfg.dataset.train.json_file = files[0]
        cfg.dataset.num_classes = 5
        predictor = instantiate(cfg.model.roi_heads).box_predictor
    assert predictor.fed_loss_cls_weights.shape == (5,)
