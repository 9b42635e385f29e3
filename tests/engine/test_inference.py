"""`train.inference`: precision, wrapping, and how it comes out of a config."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import instantiate
from omegaconf import DictConfig
from torch import nn

from vitadapter.engine import trainer
from vitadapter.engine.inference import InferenceModel, apply_tiles, apply_tta, build_inference
from vitadapter.engine.overrides import apply_overrides
from vitadapter.engine.predictor import LazyPredictor
from vitadapter.engine.run_checks import SetupError
from vitadapter.engine.trainer import do_eval_only, do_test, do_train
from vitadapter.model_zoo import get_config
from vitadapter.modeling.inference import DetectorWithTTA, Tiles, tiles


class _Probe(nn.Module):
    """Says in which type a product is computed."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2, 2))
        self.backbone = nn.Identity()
        self.backbone.size_divisibility = 32

    def forward(self, batched_inputs: list[dict[str, object]]) -> list[dict[str, object]]:
        return [{"dtype": (self.weight @ self.weight).dtype} for _ in batched_inputs]


IMAGE = {"image": torch.zeros(3, 40, 40, dtype=torch.uint8)}


@pytest.mark.parametrize(
    ("amp_dtype", "dtype"),
    [(None, torch.float32), ("bfloat16", torch.bfloat16), ("float16", torch.float16)],
)
def test_mixed_precision(amp_dtype: str | None, dtype: torch.dtype) -> None:
    assert InferenceModel(_Probe(), amp_dtype=amp_dtype)([IMAGE]) == [{"dtype": dtype}]


def test_an_unknown_precision_is_refused() -> None:
    with pytest.raises(ValueError, match=r"amp_dtype must be float16 or .* or null, got 'half'"):
        InferenceModel(_Probe(), amp_dtype="half")


def test_a_fault_is_found_before_training(cfg: DictConfig) -> None:
    cfg.train.inference.amp_dtype = "half"
    with pytest.raises(SetupError, match=r"train\.inference: amp_dtype must be float16 or"):
        do_train(cfg)
    assert not Path(cfg.train.output_dir, "metrics.json").exists()


def test_mixed_precision_hardly_changes_a_detector(cfg: DictConfig) -> None:
    torch.manual_seed(0)
    model = instantiate(cfg.model).eval()
    sample = next(iter(instantiate(cfg.dataloader.test)))
    cfg.train.inference.amp_dtype = "bfloat16"
    with torch.no_grad():
        (exact,), (half,) = model(sample), build_inference(cfg, model)(sample)
    exact, half = exact["instances"], half["instances"]
    assert len(half) > 0
    assert half.pred_boxes.tensor.dtype == torch.float32
    assert half.scores[0].item() == pytest.approx(exact.scores[0].item(), abs=0.02)


@pytest.mark.parametrize("training", [True, False])
def test_the_training_mode_is_kept(training: bool, cfg: DictConfig) -> None:
    model = instantiate(cfg.model).train(training)
    assert build_inference(cfg, model).training == training
    do_test(cfg, model)
    assert model.training == training
    assert model.roi_heads.training == training


def test_a_config_without_the_block_runs_plainly(cfg: DictConfig) -> None:
    del cfg.train["inference"]
    model = instantiate(cfg.model)
    inference = build_inference(cfg, model)
    assert inference.model is model
    assert inference.tta is None
    assert inference.amp_dtype is None


def test_augmentation_from_a_config(cfg: DictConfig) -> None:
    cfg.train.inference.tta = get_config("common/tta.py").multi_scale_flip
    cfg.train.inference.tta.overrides = ["model.roi_heads.box_predictor.test_topk_per_image=7"]
    model = instantiate(cfg.model)
    apply_tta(cfg)
    assert len(cfg.dataloader.test.mapper.augmentations) == 1
    assert build_inference(cfg, model).tta is None
    apply_overrides(
        cfg,
        [
            "train.inference.tta.enabled=True",
            "train.inference.tta.wrapper.tta_mapper.min_sizes=[64,96]",
            "train.inference.tta.wrapper.tta_mapper.max_size=128",
        ],
    )
    inference = build_inference(cfg, model)
    assert isinstance(inference.tta, DetectorWithTTA)
    assert inference.tta.model is inference.model is model
    assert cfg.train.inference.model is None  # the config itself stays free of it
    assert do_test(cfg, model).keys() == {"bbox", "segm"}
    assert cfg.dataloader.test.mapper.augmentations == []
    assert cfg.model.roi_heads.box_predictor.test_topk_per_image == 7


def test_augmentation_changes_the_model_before_it_is_built(
    cfg: DictConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluated = []

    def evaluate(model: InferenceModel, *arguments: object) -> dict[str, object]:
        evaluated.append(model)
        return {}

    monkeypatch.setattr(trainer, "inference_on_dataset", evaluate)
    cfg.train.inference.tta = get_config("common/tta.py").multi_scale_flip
    cfg.train.inference.tta.overrides = ["model.roi_heads.box_predictor.test_topk_per_image=7"]
    apply_overrides(cfg, ["train.inference.tta.enabled=True", "train.max_iter=1"])
    fresh = cfg.copy()
    do_train(cfg)
    fresh.train.init_checkpoint = f"{cfg.train.output_dir}/model_final.pth"
    do_eval_only(fresh.copy())
    evaluated.append(LazyPredictor(fresh.copy()).inference)
    assert len(evaluated) == 3
    for inference in evaluated:
        assert inference.tta.model is inference.model
        assert inference.model.roi_heads.box_predictor.test_topk_per_image == 7


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("enabled=True", r"this config comes without test-time augmentation"),
        ("enabled=1", r"tta\.enabled must be True or False, got 1"),
    ],
)
def test_augmentation_that_a_config_lacks_is_refused_before_training(
    override: str, message: str, cfg: DictConfig
) -> None:
    apply_overrides(cfg, [f"train.inference.tta.{override}"])
    with pytest.raises(SetupError, match=message):
        do_train(cfg)
    assert not Path(cfg.train.output_dir, "metrics.json").exists()


@pytest.mark.parametrize("tta", ["multi_scale_flip", {"tta_mapper": None}])
def test_another_form_of_augmentation_is_refused(tta: object, cfg: DictConfig) -> None:
    cfg.train.inference.tta = tta
    with pytest.raises(ValueError, match=r"train\.inference\.tta\.enabled=True switches on"):
        apply_tta(cfg)


def test_null_is_no_augmentation(cfg: DictConfig) -> None:
    apply_overrides(cfg, ["train.inference.tta=null"])
    apply_tta(cfg)
    assert build_inference(cfg, instantiate(cfg.model)).tta is None


def _saved_detections(cfg: DictConfig) -> list[dict[str, object]]:
    file = Path(cfg.dataloader.evaluator.output_dir, "coco_instances_results.json")
    return json.loads(file.read_text())


def test_batches_at_test_time_do_not_change_the_detections(cfg: DictConfig) -> None:
    torch.manual_seed(0)
    model = instantiate(cfg.model)
    do_test(cfg, model)
    one_by_one = _saved_detections(cfg)
    cfg.dataloader.test.batch_size = 2
    do_test(cfg, model)
    in_batches = _saved_detections(cfg)
    assert len(in_batches) == len(one_by_one) > 0
    for ours, theirs in zip(in_batches, one_by_one, strict=True):
        assert (ours["image_id"], ours["category_id"]) == (
            theirs["image_id"],
            theirs["category_id"],
        )
        assert ours["bbox"] == pytest.approx(theirs["bbox"], abs=1e-3)
        assert ours["score"] == pytest.approx(theirs["score"], abs=1e-5)


def test_images_without_annotations_give_an_entry_to_the_server(
    cfg: DictConfig, tmp_path: Path
) -> None:
    """As `dataset.test.name=coco_2017_test-dev` does."""
    with Path(cfg.dataset.test.json_file).open() as file:
        content = json.load(file)
    del content["annotations"]
    json_file = tmp_path / "image_info_test-dev2017.json"
    json_file.write_text(json.dumps(content))
    cfg.dataset.test.json_file = str(json_file)
    cfg.dataloader.evaluator.algorithm = "mine"
    cfg.model.roi_heads.box_predictor.test_score_thresh = 0.0
    model = instantiate(cfg.model).eval()
    assert do_test(cfg, model) == {}
    folder = Path(cfg.train.output_dir, "inference")
    assert not (folder / "per_class.md").exists()
    for task, key in (("bbox", "bbox"), ("segm", "segmentation")):
        written = folder / f"submission_{task}" / "detections_test-dev2017_mine_results.json"
        entries = json.loads(written.read_text())
        assert {entry["image_id"] for entry in entries} == {i["id"] for i in content["images"]}
        assert all(key in entry for entry in entries)


def test_tiles_of_a_mosaic_give_what_its_images_give(cfg: DictConfig) -> None:
    """Tiles without an overlap are the images, and are resized as these are."""
    cfg.dataloader.test.mapper.augmentations[0].short_edge_length = 96
    model = instantiate(cfg.model)
    predictor = LazyPredictor(cfg.copy(), _saved(model, cfg))
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (64, 64, 3), dtype=np.uint8) for _ in range(4)]
    found = [predictor(image)["instances"] for image in images]
    mosaic = np.block([[[images[0]], [images[1]]], [[images[2]], [images[3]]]])
    expected = []
    for number, instances in enumerate(found):
        y, x = divmod(number, 2)
        offset = torch.tensor([x, y, x, y]) * 64
        boxes = (instances.pred_boxes.tensor + offset).round(decimals=3).tolist()
        areas = instances.pred_masks.flatten(1).sum(1).tolist()
        classes = instances.pred_classes.tolist()
        expected += zip(instances.scores.tolist(), classes, boxes, areas, strict=True)
    tiled = LazyPredictor(cfg.copy(), _saved(model, cfg), tiles=Tiles(64, 0.0))
    merged = tiled(np.ascontiguousarray(mosaic))["instances"]
    assert len(merged) == len(expected) > 4
    boxes = merged.pred_boxes.tensor.round(decimals=3).tolist()
    areas = [int(mask.sum()) for mask in merged.pred_masks]
    actual = zip(merged.scores.tolist(), merged.pred_classes.tolist(), boxes, areas, strict=True)
    assert sorted(actual) == sorted(expected)


def _saved(model: nn.Module, cfg: DictConfig) -> str:
    path = Path(cfg.train.output_dir).with_name("weights.pth")
    torch.save({"model": model.state_dict()}, path)
    return str(path)


def test_tiles_from_the_command_line_serve_evaluation(cfg: DictConfig) -> None:
    """Those that contain the whole image change nothing."""
    torch.manual_seed(0)
    model = instantiate(cfg.model)
    do_test(cfg, model)
    whole = _saved_detections(cfg)
    apply_overrides(cfg, ["train.inference.tiles.size=64", "train.inference.tiles.overlap=0.5"])
    for _ in range(2):  # the config that the first time has changed serves the second time, too
        do_test(cfg, model)
        tiled = _saved_detections(cfg)
        assert len(tiled) == len(whole) > 0
        for ours, theirs in zip(_ordered(tiled), _ordered(whole), strict=True):
            assert ours == theirs


def test_images_of_too_many_tiles_are_refused_before_training(
    cfg: DictConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiles, "_MOST", 8)
    apply_overrides(cfg, ["train.inference.tiles.size=16"])
    with pytest.raises(SetupError, match=r"train\.inference\.tiles: .* at most 8 tiles.*00\d\.png"):
        do_train(cfg)
    assert not list(Path(cfg.train.output_dir).glob("*.pth"))


def _ordered(results: list[dict[str, object]]) -> list[dict[str, object]]:
    return sorted(results, key=lambda r: (r["image_id"], -r["score"], r["bbox"]))


def test_other_forms_of_tiles_are_refused(cfg: DictConfig) -> None:
    apply_overrides(cfg, ["~train.inference.tiles"])
    apply_tiles(cfg)
    assert isinstance(build_inference(cfg, instantiate(cfg.model)), InferenceModel)
    cfg.train.inference.tiles = 800
    with pytest.raises(ValueError, match=r"train\.inference\.tiles\.size=800 predicts"):
        apply_tiles(cfg)
