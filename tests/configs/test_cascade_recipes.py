"""The experiments with Cascade Mask R-CNN and HTC++ follow the official recipes, to the digit."""

import json
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from detectron2.config import instantiate
from detectron2.data import transforms as T
from detectron2.modeling.matcher import Matcher
from omegaconf import DictConfig
from project_configs import CONFIGS, count_parameters, full_size_model, load, net_wrapper
from zoo_rows import ROWS

from vitadapter.data.insta_boost import InstaBoost
from vitadapter.layers.soft_nms import SoftNMS
from vitadapter.modeling.inference import ScaleRangeMapperTTA
from vitadapter.modeling.roi_heads import BestProposalMatcher, CascadeROIHeads, HTCROIHeads

Recipe = dict[str, object]

RECIPES = {
    "cascade_mask_rcnn_vit_adapter_s_deit_3x": "cascade_mask_rcnn_deit_adapter_small_fpn_3x_coco",
    "cascade_mask_rcnn_vit_adapter_b_deit_3x": "cascade_mask_rcnn_deit_adapter_base_fpn_3x_coco",
    "cascade_mask_rcnn_vit_b_deit_3x": "cascade_mask_rcnn_deit_base_fpn_3x_coco",
    "htcpp_vit_adapter_l_augreg_3x": "htc++_augreg_adapter_large_fpn_3x_coco",
    "htcpp_vit_adapter_l_beit_3x": "htc++_beit_adapter_large_fpn_3x_coco",
    "htcpp_vit_adapter_l_beit_3x_old": "htc++_beit_adapter_large_fpn_3x_coco_old",
    "htcpp_vit_adapter_l_beitv2_3x": "htc++_beitv2_adapter_large_fpn_3x_coco",
    "htcpp_vit_adapter_l_beitv2_o365": "htc++_beitv2_adapter_large_fpn_o365_coco",
    "htcpp_vit_adapter_l_uniperceiver_3x": "htc++_uniperceiver_adapter_large_fpn_3x_coco",
}
# HTC++ that the official release also tests at several scales, as the zoo's rows do.
MULTI_SCALE = [path for path, test, _ in ROWS if test == "_ms" and path.match("htcpp_*")]
# Paper table 2; without an official recipe.
PAPER_ONLY = "cascade_mask_rcnn_vit_s_deit_3x"


class Row(NamedTuple):
    """A config and the official recipe that it follows."""

    path: Path
    cfg: DictConfig
    recipe: Recipe


@pytest.fixture(scope="module", params=list(RECIPES))
def row(request: pytest.FixtureRequest, recipes: dict[str, Recipe]) -> Row:
    (path,) = (path for path in CONFIGS if path.stem == request.param)
    return Row(path, load(path), recipes[RECIPES[request.param]])


def test_every_recipe_has_an_experiment(recipes: dict[str, Recipe]) -> None:
    official = {name for name in recipes if name.startswith(("cascade", "htc"))}
    # Evaluations of the same models under test-time augmentation.
    assert {name for name in official if not name.endswith("_ms")} == set(RECIPES.values())


def test_parameter_counts(row: Row) -> None:
    model = full_size_model(row.path)
    backbone = model.backbone.bottom_up
    backbone = getattr(backbone, "bottom_up", backbone)
    params = row.recipe["params"]
    assert f"{count_parameters(model) / 1e6:.3f}" == f"{params['constructed_total_M']:.3f}"
    assert f"{count_parameters(backbone) / 1e6:.3f}" == f"{params['constructed_backbone_M']:.3f}"


def test_parameter_counts_of_paper_table_2(shared: Path) -> None:
    table = json.loads((shared / "reference" / "paper_tables.json").read_text())["table_2"]
    rows = {r["method"]: r["params_M"] for r in table["frameworks"]["Cascade Mask R-CNN"]}
    for method, stem in {
        "ViT-S": PAPER_ONLY,
        "ViT-Adapter-S": "cascade_mask_rcnn_vit_adapter_s_deit_3x",
        "ViT-B": "cascade_mask_rcnn_vit_b_deit_3x",
        "ViT-Adapter-B": "cascade_mask_rcnn_vit_adapter_b_deit_3x",
    }.items():
        (path,) = (path for path in CONFIGS if path.stem == stem)
        assert round(count_parameters(full_size_model(path)) / 1e6) == rows[method]


def test_net_and_adapter(row: Row) -> None:
    expected = row.recipe["backbone"]
    wrapper = net_wrapper(row.cfg)
    net = wrapper.net
    for key in ("patch_size", "embed_dim", "depth", "num_heads", "drop_path_rate"):
        assert net[key] == expected[key], key
    assert net.norm_layer.keywords["eps"] == expected["layernorm_eps"]
    assert net.use_act_checkpoint == expected["activation_checkpointing"]
    elsewhere = net.get("global_window_size") or None
    windows = [
        net.window_size if i in net.window_block_indexes else elsewhere for i in range(net.depth)
    ]
    assert windows == expected["window_size"]
    adapter = expected.get("adapter")
    if adapter is None:
        assert wrapper.block_indexes == expected["out_indices"]
        return
    assert wrapper.deform_num_heads == adapter["deform_num_heads"]
    assert wrapper.deform_ratio == adapter["deform_ratio"]
    assert wrapper.num_extra_extractors == adapter["num_extra_extractors"]
    assert wrapper.drop_path_rate == expected["drop_path_rate"]
    assert wrapper.get("injector_gamma_init", 0.0) == adapter["injector_gamma_init"]
    assert wrapper.vit_feature == ("stage" if adapter["version"] == "old" else "final")


def test_neck(row: Row) -> None:
    neck, fpn = row.recipe["neck"], row.cfg.model.backbone
    if row.recipe["head"]["framework"] == "HybridTaskCascade":
        extra, neck = neck
        layer = fpn.bottom_up
        assert layer.num_heads == extra["num_heads"]
        assert layer.ffn_ratio == extra["ffn_ratio"]
        assert layer.drop_path_rate == extra["drop_path"]
        assert layer.use_act_checkpoint == extra["activation_checkpointing"]
    assert fpn.out_channels == neck["out_channels"]
    assert fpn.get("norm") == neck["norm"]


def test_rpn(row: Row) -> None:
    expected, rpn = row.recipe["head"]["rpn"], row.cfg.model.proposal_generator
    assert rpn.anchor_generator.sizes == expected["anchor_sizes"]
    assert rpn.batch_size_per_image == expected["sampler"]["per_image"]
    phases = (expected["train_proposals"], expected["test_proposals"])
    assert list(rpn.pre_nms_topk) == [phase["pre_nms_per_level"] for phase in phases]
    assert list(rpn.post_nms_topk) == [phase["post_nms_total"] for phase in phases]
    assert rpn.nms_thresh == phases[0]["nms_iou"]
    assert rpn.anchor_boundary_thresh == expected["allowed_border"]
    assert rpn.smooth_l1_beta == pytest.approx(expected["loss_box"]["beta"], rel=1e-4)


def test_stages(row: Row) -> None:
    head, heads = row.recipe["head"], row.cfg.model.roi_heads
    is_htc = head["framework"] == "HybridTaskCascade"
    assert heads._target_ is (HTCROIHeads if is_htc else CascadeROIHeads)
    assert list(heads.stage_loss_weights) == head["cascade"]["stage_loss_weights"]
    assert heads.average_logits
    assert heads.batch_size_per_image == head["roi_sampler"]["per_image"]
    assert heads.positive_fraction == head["roi_sampler"]["positive_fraction"]
    for stage, expected in enumerate(head["bbox_head_stages"]):
        box_head, predictor = heads.box_heads[stage], heads.box_predictors[stage]
        assert list(box_head.conv_dims) == [expected["conv_channels"]] * 4
        assert list(box_head.fc_dims) == [expected["fc_channels"]]
        assert (box_head.conv_norm or None) == expected["conv_norm"]
        assert predictor.cls_agnostic_bbox_reg == expected["class_agnostic_box"]
        weights = expected["box_coder"]["d2_weights"]
        assert list(predictor.box2box_transform.weights) == pytest.approx(weights, rel=1e-4)
        loss = expected["loss_box"]
        assert predictor.box_reg_loss_type == loss["kind"]
        weight = predictor.loss_weight
        assert (weight if isinstance(weight, float) else weight.loss_box_reg) == loss["weight"]
        assert loss["kind"] == "giou" or predictor.smooth_l1_beta == loss["beta"]
        assert predictor.test_score_thresh == head["test"]["score_thr"]
        assert predictor.get("test_nms_thresh", 0.5) == head["test"]["nms"]["iou"]
        assert predictor.test_topk_per_image == head["test"]["max_per_image"]
        # The last of Detectron2's list is the deconvolution.
        assert len(heads.mask_heads[stage].conv_dims) == head["mask_head"][stage]["convs"] + 1
        if is_htc:
            takes_previous = head["mask_head"][stage]["conv_res_1x1_from_previous_stage"]
            assert heads.mask_heads[stage].takes_previous == takes_previous


def test_matchers(row: Row) -> None:
    for config, expected in zip(
        row.cfg.model.roi_heads.proposal_matchers, row.recipe["head"]["roi_assigner"], strict=True
    ):
        assert list(config.thresholds) == [expected["pos"]] == [expected["neg"]]
        if expected["low_quality_matches"]:
            assert config._target_ is BestProposalMatcher
            assert config.min_quality == expected["min_pos"]
        else:
            assert config._target_ is Matcher
            assert not config.allow_low_quality_matches


def test_semantic_branch_and_suppression(row: Row) -> None:
    head, heads = row.recipe["head"], row.cfg.model.roi_heads
    if head["framework"] != "HybridTaskCascade":
        assert heads.nms is None
        assert head["test"]["nms"]["kind"] == "nms"
        return
    nms = instantiate(heads.nms)
    assert isinstance(nms, SoftNMS)
    assert nms.min_score == head["test"]["nms"]["min_score"]
    assert nms.decay.iou_threshold == head["test"]["nms"]["iou"]
    expected, semantic = head["semantic_head"], heads.semantic_head
    assert len(semantic.in_features) == expected["inputs"]
    assert semantic.fusion_level == expected["fusion_level"]
    assert semantic.num_convs == expected["convs"]
    assert semantic.conv_dim == expected["channels"]
    assert semantic.num_classes == expected["classes"]
    assert semantic.ignore_value == expected["ignore_index"]
    assert semantic.loss_weight == expected["loss_weight"]
    assert semantic.stride == expected["fusion_stride"]
    assert list(semantic.pooler.scales) == [1 / head["semantic_pool"]["strides"][0]]
    assert semantic.pooler.output_size == head["semantic_pool"]["size"]


def test_optimizer_and_schedule(row: Row) -> None:
    expected, optimizer = row.recipe["optimizer"], row.cfg.optimizer
    assert optimizer.lr == expected["lr"]
    assert optimizer.weight_decay == expected["weight_decay"]
    assert row.cfg.train.amp.enabled == bool(expected["amp_fp16"])
    if expected["amp_fp16"]:
        assert row.cfg.train.amp.dtype == "float16"
        assert row.cfg.train.amp.init_scale == expected["amp_fp16"]["dynamic_loss_scale_init"]
    clip = expected["grad_clip"]
    assert optimizer.get("max_norm") == (None if clip is None else clip["max_norm"])
    decay, factor = expected["layer_decay"], optimizer.params.lr_factor_func
    if decay is None:
        assert factor is None
    else:
        assert factor.rate == decay["rate"]
        assert factor.num_layers == decay["num_layers"]
    schedule, multiplier = row.recipe["schedule"], row.cfg.lr_multiplier
    length = schedule.get("iters_at_total_batch_16", schedule.get("iterations"))
    assert row.cfg.train.max_iter == multiplier.max_iter == length
    assert row.cfg.dataloader.train.total_batch_size == row.recipe["batch"]["total"]
    assert multiplier.warmup_iters == schedule["warmup"]["iters"]
    at = instantiate(multiplier)
    for fraction in (0.1, 0.74, 0.76, 0.9, 0.93, 0.99):
        passed = sum(36 * fraction >= milestone for milestone in schedule["milestones"])
        assert at(fraction) == pytest.approx(0.1**passed)


def test_average_of_the_weights(row: Row) -> None:
    expected, ema = row.recipe["schedule"].get("weight_ema"), row.cfg.train.ema
    assert ema.enabled == (expected is not None)
    if expected is not None:
        assert 1 - ema.decay == pytest.approx(expected["momentum_floor"])
        assert f"exp(-(1+t)/{ema.ramp_iters})" in expected["rule"]


def test_instances_are_pasted(row: Row) -> None:
    first, augment = row.recipe["train_augmentation"][0], row.cfg.dataloader.train.mapper
    if first["op"] != "instaboost":
        assert augment.get("instance_augmentation") is None
        return
    pasting = augment.instance_augmentation
    assert pasting._target_ is InstaBoost
    assert pasting.prob == first["apply_prob"]
    assert pasting.color_prob == first["color_prob"]
    assert list(pasting.scale) == first["scale"]
    assert list(pasting.angle) == first["theta"]
    shift = [1 / first["dx_divisor"], 1 / first["dy_divisor"]]
    assert list(pasting.max_shift) == pytest.approx(shift)
    # What the class has no options for.
    assert dict(zip(first["actions"], first["action_prob"], strict=True))["normal"] == 1
    assert first["heatmap"] is False
    assert instantiate(row.cfg.dataloader.train.mapper).instance_augmentation.image_format == "RGB"


@pytest.mark.parametrize("stem", ["htcpp_vit_adapter_l_beit_3x", "htcpp_vit_adapter_l_beitv2_o365"])
def test_layer_decay_reaches_the_net_below_the_necks(stem: str, recipes: dict[str, Recipe]) -> None:
    (path,) = (path for path in CONFIGS if path.stem == stem)
    cfg, net = load(path), full_size_model(path).backbone.bottom_up.bottom_up.net
    factor = instantiate(cfg.optimizer.params.lr_factor_func)
    found = {factor(f"backbone.bottom_up.bottom_up.net.{n}") for n, _ in net.named_parameters()}
    decay = recipes[RECIPES[stem]]["optimizer"]["layer_decay"]
    expected = [decay["rate"] ** (decay["num_layers"] + 1 - i) for i in range(25)]
    assert sorted(found) == pytest.approx(expected)
    assert min(found) == pytest.approx(decay["scale_id0"], rel=1e-4)


def test_scales(row: Row) -> None:
    mapper = row.cfg.dataloader.test.mapper
    (tested,), (scale,) = mapper.augmentations, row.recipe["test"]["scales"]
    assert tested.short_edge_length == scale["short"]
    assert tested.max_size == scale["max_long"]
    if row.recipe["head"]["framework"] != "HybridTaskCascade":
        return  # 3x+MS, as for Mask R-CNN
    steps = {step["op"]: step for step in row.recipe["train_augmentation"]}
    resize, flip = row.cfg.dataloader.train.mapper.augmentations
    assert resize.sample_style == "range"
    drawn = steps["resize_short_uniform_int"]
    assert list(resize.short_edge_length) == drawn["short_range"]
    assert [resize.max_size] * 2 == drawn["long_range"]
    assert flip._target_ is T.RandomFlip
    assert flip.horizontal
    assert row.cfg.model.pixel_mean == steps["normalize"]["mean"]
    assert row.cfg.model.pixel_std == steps["normalize"]["std"]


def _check_size_ranges(mapper: ScaleRangeMapperTTA, expected: Recipe) -> None:
    """Each scale keeps areas on both sides of the recipe's bounds as the recipe says."""
    assert expected["size_ranges_px"] == {
        "s": "area<=32^2",
        "m": "32^2<area<=96^2",
        "l": "area>96^2",
    }
    areas = {"s": (1, 32**2), "m": (32**2 + 1, 96**2), "l": (96**2 + 1, 1e8)}
    versions = mapper({"image": torch.zeros(3, 8, 8), "height": 8, "width": 8})
    kept_by_scale = expected["kept_size_ranges_per_scale"]
    assert len(versions) == 2 * len(kept_by_scale)
    for index, version in enumerate(versions):
        above, up_to = version["area_range"]
        for size, tried in areas.items():
            kept = {above < area <= up_to for area in tried}
            assert kept == {size in kept_by_scale[index // 2]}, (index, size)


@pytest.mark.parametrize("path", MULTI_SCALE, ids=lambda p: p.stem)
def test_test_time_augmentation(path: Path, recipes: dict[str, Recipe]) -> None:
    recipe = recipes[RECIPES[path.stem] + "_ms"]
    cfg = load(path, "_ms")
    assert cfg.train.inference.tta.enabled
    (longest,) = {s["max_long"] for s in recipe["test"]["scales"]}
    tta = cfg.train.inference.tta.wrapper
    assert list(tta.tta_mapper.min_sizes) == [s["short"] for s in recipe["test"]["scales"]]
    assert tta.tta_mapper.max_size == longest
    assert tta.tta_mapper.flip == recipe["test"]["hflip_tta"]
    _check_size_ranges(instantiate(tta.tta_mapper), recipe["head"]["test_tta"])
    # The mapper hands over the whole image.
    assert len(cfg.dataloader.test.mapper.augmentations) == 0
    expected = recipe["head"]["test_tta"]
    assert tta.max_detections_per_image == expected["max_per_image"]
    nms = instantiate(tta.nms)
    assert isinstance(nms, SoftNMS)
    assert (nms.min_score, nms.decay.iou_threshold) == (
        expected["nms"]["min_score"],
        expected["nms"]["iou"],
    )
    for predictor in cfg.model.roi_heads.box_predictors:
        assert predictor.test_score_thresh == expected["score_thr"]
        assert predictor.test_topk_per_image == recipe["head"]["test"]["max_per_image"]
    # Same model as the row that it evaluates.
    evaluated = load(path)
    assert not evaluated.train.inference.tta.enabled
    assert repr(cfg.model.backbone) == repr(evaluated.model.backbone)


def test_every_evaluation_has_an_experiment(recipes: dict[str, Recipe]) -> None:
    official = {name for name in recipes if name.startswith("htc") and name.endswith("_ms")}
    assert {RECIPES[path.stem] + "_ms" for path in MULTI_SCALE} == official


def test_larger_scales_than_vitdets_images_fit_in() -> None:
    (path,) = (path for path in CONFIGS if path.stem.startswith("cascade_mask_rcnn_vitdet_l_"))
    assert [load(path, test).model.backbone.square_pad for test in ("", "_ms")] == [1024, 0]
