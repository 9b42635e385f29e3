"""The experiments with ATSS, GFL and Sparse R-CNN follow the official recipes, and train."""

from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from dense_configs import DETECTORS, dense_config, shrink_dense
from detectron2.config import instantiate
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from omegaconf import DictConfig
from project_configs import CONFIGS, count_parameters, full_size_model, load

Recipe = dict[str, object]
LOSSES = {
    "atss": {"loss_cls", "loss_box_reg", "loss_centerness"},
    "gfl": {"loss_cls", "loss_box_reg", "loss_dfl"},
    "sparse_rcnn": {
        f"{name}_stage{stage}"
        for name in ("loss_cls", "loss_box_reg", "loss_giou")
        for stage in (0, 1)
    },
}


class Row(NamedTuple):
    """A config and the official recipe that it follows."""

    name: str
    path: Path
    cfg: DictConfig
    recipe: Recipe


@pytest.fixture(scope="module", params=DETECTORS)
def row(request: pytest.FixtureRequest, recipes: dict[str, Recipe]) -> Row:
    return _row(request.param, recipes)


def _row(name: str, recipes: dict[str, Recipe]) -> Row:
    (path,) = (path for path in CONFIGS if path.stem == f"{name}_vit_adapter_s_deit_3x")
    return Row(name, path, dense_config(name), recipes[f"{name}_deit_adapter_small_fpn_3x_coco"])


def test_every_recipe_has_an_experiment(recipes: dict[str, Recipe]) -> None:
    official = {name for name in recipes if name.startswith(("atss", "gfl", "sparse"))}
    assert official == {f"{name}_deit_adapter_small_fpn_3x_coco" for name in DETECTORS}


def test_parameter_counts(row: Row) -> None:
    model, params = full_size_model(row.path), row.recipe["params"]
    assert f"{count_parameters(model) / 1e6:.3f}" == f"{params['constructed_total_M']:.3f}"
    backbone = count_parameters(model.backbone.bottom_up) / 1e6
    assert f"{backbone:.3f}" == f"{params['constructed_backbone_M']:.3f}"
    assert f"{count_parameters(model) / 1e6:.0f}M" == params["readme"]


def test_what_it_shares_with_mask_rcnn(row: Row, recipes: dict[str, Recipe]) -> None:
    """Net, data and schedule, which test_recipes.py holds to the recipe of Mask R-CNN."""
    theirs = recipes["mask_rcnn_deit_adapter_small_fpn_3x_coco"]
    for key in ("backbone", "schedule", "train_augmentation", "test", "batch"):
        assert row.recipe[key] == theirs[key], key
    (path,) = (path for path in CONFIGS if path.stem == "mask_rcnn_vit_adapter_s_deit_3x")
    ours = load(path)
    # Partial functions are equal in what they print only.
    assert repr(row.cfg.model.backbone.bottom_up) == repr(ours.model.backbone.bottom_up)
    assert repr(row.cfg.lr_multiplier) == repr(ours.lr_multiplier)
    assert row.cfg.train.max_iter == ours.train.max_iter
    for loader in ("train", "test"):
        mapper = row.cfg.dataloader[loader].mapper
        assert repr(mapper.augmentations) == repr(ours.dataloader[loader].mapper.augmentations)
    for key in ("pixel_mean", "pixel_std", "input_format"):
        assert row.cfg.model[key] == ours.model[key], key
    assert row.cfg.dataloader.train.total_batch_size == row.recipe["batch"]["total"]
    assert not row.cfg.dataloader.train.dataset.masks
    assert row.cfg.dataloader.evaluator.tasks == ["bbox"]


def test_neck(row: Row) -> None:
    neck, fpn = row.recipe["neck"], row.cfg.model.backbone
    assert fpn.out_channels == neck["out_channels"]
    assert fpn.get("norm", "") == (neck["norm"] or "")
    assert fpn.in_features[0] == f"res{2 + neck['start_level']}"
    shape = full_size_model(row.path).backbone.output_shape()
    assert len(shape) == neck["num_outs"]


@pytest.mark.parametrize("name", ["atss", "gfl"])
def test_dense_head(name: str, recipes: dict[str, Recipe]) -> None:
    row = _row(name, recipes)
    head, model = row.recipe["head"], row.cfg.model
    expected = head["dense_head"]
    assert model.anchor_generator.sizes == expected["anchor_sizes"]
    assert model.anchor_generator.aspect_ratios == expected["aspect_ratios"]
    assert model.anchor_generator.strides == expected["strides"]
    assert model.anchor_generator.offset == expected["anchor_center_offset"]
    assert model.head.conv_dims == [expected["channels"]] * expected["stacked_convs"]
    assert (model.head.norm, expected["conv_norm"]) == ("GN", "GN(32)")
    assert model.head.num_levels == len(expected["strides"])
    assert model.num_classes == model.head.num_classes == expected["num_classes"]
    assert model.anchor_matcher.topk == head["assigner"]["topk"]
    assert model.head.box_loss_weight == expected["loss_box"]["weight"]
    test = head["test"]
    assert model.test_score_thresh == test["score_thr"]
    assert model.test_topk_candidates == test["pre_nms_per_level"]
    assert model.test_nms.iou_threshold == test["nms"]["iou"]
    assert model.max_detections_per_image == test["max_per_image"]
    if row.name == "atss":
        assert model.head.focal_loss_alpha == expected["loss_cls"]["alpha"]
        assert model.head.focal_loss_gamma == expected["loss_cls"]["gamma"]
        assert list(model.head.box2box_transform.weights) == expected["box_coder"]["d2_weights"]
    else:
        assert model.head.quality_focal_beta == expected["loss_cls"]["beta"]
        assert model.head.distribution_loss_weight == expected["loss_dfl"]["weight"]
        assert model.head.num_bins == expected["bins_per_side"]


def test_sparse_rcnn_head(recipes: dict[str, Recipe]) -> None:
    head = recipes["sparse_rcnn_deit_adapter_small_fpn_3x_coco"]["head"]
    model = dense_config("sparse_rcnn").model
    assert model.num_proposals == head["proposals"]
    assert len(model.box_heads) == len(head["stage_loss_weights"])
    pool = head["bbox_pool"]
    assert model.box_pooler.output_size == pool["size"]
    assert model.box_pooler.sampling_ratio == pool["sampling_ratio"]
    assert [1 / scale for scale in model.box_pooler.scales] == pool["strides"]
    for stage in model.box_heads:
        assert stage.num_heads == head["head"]["num_heads"]
        assert stage.feedforward_dim == head["head"]["ffn"]
        assert stage.num_cls_fcs == head["head"]["cls_fcs"]
        assert stage.num_reg_fcs == head["head"]["reg_fcs"]
        assert stage.dynamic_dim == head["head"]["dynamic_conv"]["feat_channels"]
    assert list(model.box2box_transform.weights) == head["head"]["box_coder"]["d2_weights"]
    costs, matcher = head["assigner"]["costs"], model.criterion.matcher
    assert matcher.cls_weight == costs["cls_cost"]["weight"]
    assert matcher.box_weight == costs["reg_cost"]["weight"]
    assert matcher.giou_weight == costs["iou_cost"]["weight"]
    assert matcher.cls_weight == head["head"]["loss_cls"]["weight"]
    assert matcher.box_weight == head["head"]["loss_box"]["weight"]
    assert matcher.giou_weight == head["head"]["loss_iou"]["weight"]
    assert model.max_detections_per_image == head["test"]["max_per_image"]


def test_optimizer(row: Row) -> None:
    expected, optimizer = row.recipe["optimizer"], row.cfg.optimizer
    assert (optimizer.lr, optimizer.weight_decay) == (expected["lr"], expected["weight_decay"])
    assert row.cfg.train.amp.enabled == bool(expected["amp_fp16"])
    clip = expected["grad_clip"]
    assert optimizer.get("max_norm") == (None if clip is None else clip["max_norm"])


def test_rate_and_decay_of_every_parameter(row: Row) -> None:
    """The official names decide; ours are converted from them in test_official_dense.py."""
    model = full_size_model(row.path)
    row.cfg.optimizer.params.model = model
    groups = instantiate(row.cfg.optimizer.params)
    found = {
        id(parameter): (group["lr"], group["weight_decay"])
        for group in groups
        for parameter in group["params"]
    }
    special = row.recipe["optimizer"].get("substring_multipliers", {}).get("rpn_head")
    for name, parameter in model.named_parameters():
        # Officially the norms of convolutions are called gn.
        official = name.replace(".norm.", ".gn.")
        exempt = any(part in official for part in ("level_embed", "pos_embed", "norm", "bias"))
        rate, decay = 1e-4, 0.0 if exempt else 0.05
        if name.startswith("init_proposal"):
            rate, decay = rate * special["lr_mult"], 0.05 * special["decay_mult"]
        assert found[id(parameter)] == pytest.approx((rate, decay)), name


def _batch(num_classes: int) -> list[dict[str, object]]:
    batch = []
    for _ in range(2):
        instances = Instances((64, 64))
        instances.gt_boxes = Boxes(torch.tensor([[8.0, 8.0, 40.0, 40.0], [30.0, 20.0, 60.0, 60.0]]))
        instances.gt_classes = torch.tensor([0, num_classes - 1])
        image = torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8)
        batch.append({"image": image, "instances": instances, "height": 128, "width": 64})
    return batch


@pytest.mark.parametrize(
    ("name", "net"),
    [*((name, "vit_adapter") for name in DETECTORS), ("atss", "vit"), ("gfl", "vit")],
)
def test_a_small_copy_trains_and_predicts(name: str, net: str) -> None:
    cfg = shrink_dense(dense_config(name, net))
    cfg.dataset.num_classes = 7  # one override
    torch.manual_seed(0)
    model = instantiate(cfg.model).train()
    cfg.optimizer.params.model = model
    optimizer = instantiate(cfg.optimizer)
    with EventStorage():
        losses = model(_batch(7))
    assert set(losses) == LOSSES[name]
    sum(losses.values()).backward()
    unused = [n for n, p in model.named_parameters() if p.grad is None]
    # ATSS and GFL take nothing from the stride-4 map, which the official models have all the same.
    # Without the flag distributed training would stop at that.
    assert cfg.train.ddp.find_unused_parameters == bool(unused) == (name != "sparse_rcnn")
    stride_4 = tuple(f"backbone.bottom_up.{part}." for part in ("spm.fc1", "up", "up1", "norm1"))
    assert all(parameter.startswith(stride_4) for parameter in unused)
    optimizer.step()
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    model.eval()
    with torch.no_grad():
        found = model(_batch(7)[:1])[0]["instances"]
    assert len(found) > 0
    assert found.image_size == (128, 64)
    assert found.pred_classes.max() < 7
    boxes = found.pred_boxes.tensor
    assert boxes.isfinite().all()
    assert boxes[:, 1::2].max() <= 128


@pytest.mark.parametrize("name", DETECTORS)
def test_mixed_precision(name: str) -> None:
    """bfloat16, which the CPU has; losses and boxes stay in float32."""
    cfg = shrink_dense(dense_config(name))
    torch.manual_seed(0)
    model = instantiate(cfg.model).train()
    with EventStorage(), torch.autocast("cpu", torch.bfloat16):
        losses = model(_batch(80))
    assert all(loss.dtype == torch.float32 and loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()
    model.eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        found = model(_batch(80)[:1])[0]["instances"]
    assert found.pred_boxes.tensor.dtype == torch.float32
