"""Experiments of panoptic and instance segmentation follow their recipes; small copies train."""

import copy
import json
from pathlib import Path

import detectron2.data.transforms as T
import numpy as np
import pytest
import torch
from detectron2.config import LazyConfig, instantiate
from detectron2.data import MetadataCatalog
from detectron2.structures import BitMasks, Instances
from detectron2.utils.events import EventStorage
from omegaconf import DictConfig
from project_configs import (
    PANOPTIC_CONFIGS,
    count_parameters,
    full_size_model,
    load,
    net_wrapper,
)
from segmentation_recipes import PANOPTIC_RECIPES, check_mask2former

from vitadapter.data.transforms import PadToSize, RandomChoice
from vitadapter.modeling.mask2former import SegmentTargets
from vitadapter.solver import ClippedAdamW

SIZE = 64  # pixels
PATHS = {path.stem: path for path in PANOPTIC_CONFIGS}
OFFICIAL = PATHS["mask2former_vit_adapter_l_beitv2_3x"]
INSTANCES = "mask2former_instance_vit_adapter_s_dinov3_frozen_lsj_50ep"

Recipe = dict[str, object]
each = pytest.mark.parametrize("path", PANOPTIC_CONFIGS, ids=lambda path: path.stem)


@pytest.fixture(scope="module")
def recipe(shared: Path) -> Recipe:
    listed = json.loads((shared / "reference" / "recipes.json").read_text())["recipes"]
    (panoptic,) = (r for r in listed if r["task"] == "panoptic_segmentation")
    assert [panoptic["name"]] == list(PANOPTIC_RECIPES.values())
    return panoptic


def test_all_are_there() -> None:
    sizes = [f"mask2former_vit_adapter_{s}_dinov3_frozen_lsj_50ep" for s in "sbl"]
    assert {*sizes, INSTANCES, OFFICIAL.stem} <= set(PATHS)


@each
def test_has_what_the_training_script_reads(path: Path) -> None:
    cfg = load(path)
    assert {"model", "dataset", "dataloader", "optimizer", "lr_multiplier", "train"} <= set(cfg)
    assert {"train", "test", "evaluator"} <= set(cfg.dataloader)
    assert Path(cfg.train.output_dir) == Path("output", path.parent.name, path.stem)
    assert cfg.dataloader.evaluator.output_dir.startswith(cfg.train.output_dir)


@pytest.mark.parametrize("path", [OFFICIAL, PATHS[INSTANCES]], ids=["panoptic", "instances"])
def test_your_own_data_are_overrides(path: Path) -> None:
    panoptic = path.parent.name == "COCOPanoptic"
    overrides = ["dataset.num_classes=7", "dataset.test.json_file=b", "dataset.test.image_root=c"]
    overrides += ["dataset.num_things=3", "dataset.test.panoptic_root=d"] if panoptic else []
    cfg = LazyConfig.apply_overrides(load(path), overrides)
    for part in (cfg.dataloader.test.dataset, cfg.dataloader.evaluator):
        assert (part.json_file, part.image_root) == ("b", "c")
        assert part.get("panoptic_root", "d") == "d"
    assert cfg.dataloader.train.dataset.num_classes == 7
    with torch.device("meta"):
        model = instantiate(cfg.model)
    assert model.sem_seg_head.predictor.class_embed.out_features == 7 + 1
    if panoptic:
        assert model.panoptic_inference.thing_classes == {0, 1, 2}
        assert model.instance_inference.thing_classes == [0, 1, 2]
    else:
        assert model.instance_inference.thing_classes is None


def test_official_sizes(recipe: Recipe) -> None:
    model = full_size_model(OFFICIAL)
    published = recipe["params"]
    assert f"{count_parameters(model) / 1e6:.3f}" == str(published["constructed_total_M"])
    backbone = f"{count_parameters(model.backbone) / 1e6:.3f}"
    assert float(backbone) == published["constructed_backbone_M"]


def test_official_model(recipe: Recipe) -> None:
    cfg, expected = load(OFFICIAL), recipe["backbone"]
    net, wrapper, adapter = net_wrapper(cfg).net, net_wrapper(cfg), expected["adapter"]
    for key in ("patch_size", "embed_dim", "depth", "num_heads", "drop_path_rate", "img_size"):
        assert net[key] == expected[key], key
    windowed = net.window_block_indexes
    windows = [net.window_size if i in windowed else net.global_window_size for i in range(24)]
    assert windows == expected["window_size"]
    assert net.use_cls_token == expected["cls_token"]
    assert net.layer_scale_init == expected["vit_layer_scale_init"]
    assert net.use_act_checkpoint == expected["activation_checkpointing"]
    assert wrapper.vit_feature == "final"
    assert wrapper.injector_gamma_init == adapter["injector_gamma_init"]
    assert wrapper.deform_num_heads == adapter["deform_num_heads"]
    assert wrapper.deform_ratio == adapter["deform_ratio"]
    check_mask2former(cfg, recipe)
    head = recipe["head"]["decode_head"]
    assert cfg.dataset.num_things == head["num_things"]
    test, model = recipe["head"]["test"], cfg.model
    assert model.semantic_on == test["semantic_on"]
    assert (model.instance_inference is not None) == test["instance_on"]
    assert model.instance_inference.max_per_image == test["max_per_image"]
    assert model.panoptic_inference.overlap_threshold == test["iou_thr"]


def test_official_training(recipe: Recipe) -> None:
    cfg, expected, schedule = load(OFFICIAL), recipe["optimizer"], recipe["schedule"]
    optimizer = cfg.optimizer
    assert optimizer._target_ is ClippedAdamW
    assert optimizer.max_norm == expected["grad_clip"]["max_norm"]
    assert (optimizer.lr, optimizer.weight_decay) == (expected["lr"], expected["weight_decay"])
    assert cfg.train.amp.enabled == bool(expected["amp_fp16"])
    assert cfg.dataloader.train.total_batch_size == recipe["batch"]["total"]
    assert cfg.train.max_iter == schedule["iterations"]
    average = schedule["weight_ema"]
    assert cfg.train.ema.enabled
    assert 1 - cfg.train.ema.decay == pytest.approx(average["momentum_floor"])
    assert f"exp(-(1+t)/{cfg.train.ema.ramp_iters})" in average["rule"]
    multiplier = instantiate(cfg.lr_multiplier)
    steps = [0, 9, *(m + d for m in schedule["milestones"] for d in (-1, 1))]
    values = [multiplier(step / schedule["iterations"]) for step in steps]
    assert values == pytest.approx([1, 1, 1, 0.1, 0.1, 0.01])


def test_official_rates_of_every_parameter(recipe: Recipe) -> None:
    """Unlike the semantic recipes the head's embeddings learn as fast as the rest of it."""
    expected, model = recipe["optimizer"], full_size_model(OFFICIAL)
    cfg = copy.deepcopy(load(OFFICIAL))
    cfg.optimizer.params.model = model
    groups = instantiate(cfg.optimizer).param_groups
    found = {id(p): (g["lr"], g["weight_decay"]) for g in groups for p in g["params"]}
    decay = expected["layer_decay"]
    for name, parameter in model.named_parameters():
        _, in_net, rest = name.partition(".net.")
        layer = decay["num_layers"] + 1
        if in_net:
            layer = int(rest.split(".")[1]) + 1 if rest.startswith("blocks.") else 0
        rate = expected["lr"] * decay["rate"] ** (decay["num_layers"] + 1 - layer)
        exempt = parameter.ndim == 1 or name.endswith(".bias")
        assert found[id(parameter)] == pytest.approx((rate, 0.0 if exempt else 0.05)), name


def test_official_augmentation(recipe: Recipe) -> None:
    mapper = load(OFFICIAL).dataloader.train.mapper
    _, flip, choice, *_ = recipe["train_augmentation"]
    steps = mapper.augmentations
    assert [step._target_ for step in steps] == [T.RandomFlip, RandomChoice]
    assert flip == {"op": "hflip", "p": 0.5}
    for branch, official in zip(steps[1].branches, choice["branches"], strict=True):
        for step, other in zip(branch, official, strict=True):
            if other["op"] == "random_crop":
                assert (step._target_, step.crop_type) == (T.RandomCrop, "absolute_range")
                assert list(step.crop_size) == [384, 600]
                assert "[min(side,384), min(side,600)]" in other["height_and_width"]
            else:
                assert list(step.short_edge_length) == other["short"]
                assert step.max_size == other["max_long"]
    (tested,) = load(OFFICIAL).dataloader.test.mapper.augmentations
    (scale,) = recipe["test"]["scales"]
    assert (tested.short_edge_length, tested.max_size) == (scale["short"], scale["max_long"])


def test_official_data(recipe: Recipe) -> None:
    for part, split in (("train", "train"), ("test", "val")):
        metadata = MetadataCatalog.get(load(OFFICIAL).dataset[part].name)
        assert Path(recipe["dataset"][split]).name == Path(metadata.panoptic_json).name


@pytest.mark.parametrize("path", [p for p in PANOPTIC_CONFIGS if "lsj" in p.stem])
def test_large_scale_jitter(path: Path) -> None:
    cfg = load(path)
    steps = {step._target_: step for step in cfg.dataloader.train.mapper.augmentations}
    assert set(steps) == {T.ResizeScale, T.RandomCrop, PadToSize, T.RandomFlip}
    scale, pad = steps[T.ResizeScale], steps[PadToSize]
    assert (scale.min_scale, scale.max_scale, scale.target_height) == (0.1, 2.0, 1024)
    assert instantiate(pad).seg_pad_value == 0
    assert cfg.model.backbone.freeze_net


def shrink(cfg: DictConfig) -> DictConfig:
    """Cuts a Mask2Former down in place: 32 channels, and few of everything."""
    wrapper, head = net_wrapper(cfg), cfg.model.sem_seg_head
    if "model_name" in wrapper.net:  # of timm's nets the smallest that there is
        wrapper.net.update(model_name="vit_tiny_patch16_224", embed_dim=192, num_heads=3, depth=12)
    else:
        wrapper.net.update(embed_dim=32, depth=4, num_heads=2, window_block_indexes=[0, 2])
    wrapper.update(deform_num_heads=4, norm="BN")
    head.pixel_decoder.update(embed_dim=32, num_heads=4, ffn_dim=32, num_layers=1)
    head.predictor.update(num_layers=2, ffn_dim=32, num_queries=8)
    cfg.model.criterion.matcher.num_points = 64
    return cfg


def batch(num_classes: int) -> list[dict[str, object]]:
    """An image of two segments, and one without any."""
    records = []
    for number in range(2):
        pixels = np.random.default_rng(number).integers(0, 256, (3, SIZE, SIZE), dtype=np.uint8)
        instances = Instances((SIZE, SIZE))
        instances.gt_classes = torch.tensor([] if number else [0, num_classes - 1]).long()
        masks = torch.zeros(len(instances.gt_classes), SIZE, SIZE, dtype=torch.bool)
        masks[:1, :32], masks[1:, 40:, :50] = True, True
        instances.gt_masks = BitMasks(masks)
        records.append({"image": torch.as_tensor(pixels), "instances": instances})
    return records


@pytest.mark.parametrize("name", [OFFICIAL.stem, INSTANCES, PANOPTIC_CONFIGS[-1].stem])
def test_small_copies_train_and_predict(name: str) -> None:
    torch.manual_seed(0)
    cfg = shrink(load(PATHS[name]))
    model = instantiate(cfg.model)
    assert isinstance(model.targets, SegmentTargets)
    cfg.optimizer.params.model = model
    optimizer = instantiate(cfg.optimizer)
    with EventStorage():
        losses = model(batch(cfg.dataset.num_classes))
    assert {"loss_ce", "loss_mask", "loss_dice", "loss_dice_1"} <= set(losses)
    assert all(loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()
    optimizer.step()
    assert all(p.isfinite().all() for p in model.parameters())
    with EventStorage():  # no image of the batch has a segment
        losses = model([batch(cfg.dataset.num_classes)[1]] * 2)
    assert sum(losses.values()).isfinite()
    model.eval()
    wide = torch.zeros(3, SIZE, SIZE + 40, dtype=torch.uint8)
    with torch.no_grad():
        (output,) = model([{"image": wide, "height": 50, "width": 80}])
    assert output["instances"].pred_masks.shape[1:] == (50, 80)
    assert output.keys() == {"instances"} | ({"panoptic_seg"} if name != INSTANCES else set())
    if name != INSTANCES:
        assert output["panoptic_seg"][0].shape == (50, 80)


def test_every_output_by_config() -> None:
    cfg = shrink(load(OFFICIAL))
    cfg.model.update(semantic_on=True, instance_inference=None)
    cfg.model.panoptic_inference.score_threshold = 0.0
    model = instantiate(cfg.model).eval()
    with torch.no_grad():
        (output,) = model([{"image": torch.zeros(3, SIZE, SIZE, dtype=torch.uint8)}])
    assert output.keys() == {"sem_seg", "panoptic_seg"}
    assert output["sem_seg"].shape == (133, SIZE, SIZE)
    assert model.panoptic_inference.score_threshold == 0.0
