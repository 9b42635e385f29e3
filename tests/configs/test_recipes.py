"""The Mask R-CNN experiments on COCO follow the official recipes, to the digit.

Every row of ViT-Adapter in the official zoo and the 3x rows of ViT have a recipe. Of the rows of
paper table 1 without one, ViT 1x and ViTDet take optimizer and net from the recipe of ViT 3x and
the rest from the schedule's. Rows that nobody published a recipe for (`OURS`) are not tested here.
"""

import json
import math
import re
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from detectron2.config import instantiate
from detectron2.data import transforms as T
from fvcore.common.param_scheduler import CosineParamScheduler
from official_recipes import recipe_name
from omegaconf import DictConfig
from project_configs import CONFIGS, count_parameters, full_size_model, load, net_wrapper

from vitadapter.data.transforms import PadToSize, RandomChoice
from vitadapter.modeling.backbone import ViT
from vitadapter.solver import PerEpoch

Recipe = dict[str, object]

# Rows without a recipe: paper tables 4 (AugReg-B) and 6, and nets newer than the official release.
OURS = re.compile(r"_b_augreg_3x$|_dinov3_|_eva02_|_finetune$|_variant[12]$")
# Millions of parameters: backbone and whole detector, of the official models.
PARAMETERS = {
    "vit_adapter_t_deit": ("7.967", "28.069"),
    "vit_adapter_s_deit": ("27.504", "47.802"),
    "vit_adapter_s_deit_nofpn": ("27.504", "45.442"),
    "vit_adapter_b_deit": ("99.495", "120.187"),
    "vit_adapter_l_augreg": ("326.974", "347.927"),
    "vit_adapter_s_dinov2": ("27.954", "48.253"),
    "vit_adapter_b_dinov2": ("100.396", "121.088"),
    "vit_adapter_l_dinov2": ("327.786", "348.740"),
    "vit_adapter_b_mae": ("97.469", "120.065"),
    "vit_adapter_b_uniperceiver": ("99.502", "120.194"),
    "vit_t_deit": ("5.973", "26.075"),
    "vit_s_deit": ("23.448", "43.747"),
    "vit_b_deit": ("92.903", "113.594"),
    "vit_l_augreg": ("316.333", "337.287"),
}
# Whole detector, of paper table 1.
PAPER_PARAMETERS = {"vitdet_t": 26.6, "vitdet_s": 45.7, "vitdet_b": 121.3, "vitdet_l": 350.9}
EPOCH = 7330  # iterations on train2017 in batches of 16


class Row(NamedTuple):
    """A config and the official recipes that it follows."""

    path: Path
    cfg: DictConfig
    backbone: str
    recipe: str
    schedule_recipe: str


def _row(path: Path) -> Row:
    name = re.sub(r"mask_rcnn_|_lsj|_[0-9]+(x|ep)", "", path.stem)
    recipe = recipe_name(path)
    if "vit_adapter" in path.stem:
        return Row(path, load(path), name, recipe, recipe)
    # Table 1's rows of the plain ViT: one recipe, and the adapter's for the shorter schedule.
    _, _, _, size, pretrain, schedule = path.stem.split("_")
    plain = recipe_name(path.with_stem(f"mask_rcnn_vit_{size}_{pretrain}_3x"))
    adapter = recipe_name(path.with_stem(f"mask_rcnn_vit_adapter_{size}_{pretrain}_{schedule}"))
    return Row(path, load(path), name, plain, plain if schedule == "3x" else adapter)


@pytest.fixture(
    scope="module",
    params=[p for p in CONFIGS if p.match("COCO/mask_rcnn_*") and not OURS.search(p.stem)],
    ids=lambda path: path.stem,
)
def row(request: pytest.FixtureRequest) -> Row:
    return _row(request.param)


def test_parameter_counts(row: Row) -> None:
    model = full_size_model(row.path)
    total = count_parameters(model) / 1e6
    if row.backbone in PARAMETERS:
        backbone = count_parameters(model.backbone.bottom_up) / 1e6
        assert (f"{backbone:.3f}", f"{total:.3f}") == PARAMETERS[row.backbone]
    else:
        assert round(total, 1) == PAPER_PARAMETERS[row.backbone.rpartition("_")[0]]


def test_the_counts_above_are_the_published_ones(
    row: Row, recipes: dict[str, Recipe], shared: Path
) -> None:
    if row.backbone in PARAMETERS:
        published = recipes[row.recipe]["params"]
        figures = (published["constructed_backbone_M"], published["constructed_total_M"])
        assert tuple(f"{figure:.3f}" for figure in figures) == PARAMETERS[row.backbone]
    else:
        table = json.loads((shared / "reference" / "paper_tables.json").read_text())["table_1"]
        size = row.backbone.split("_")[1]
        method = f"ViTDet-{size.upper()}"
        (published,) = (r["params_M"] for r in table["rows"] if r["method"] == method)
        assert published == PAPER_PARAMETERS[f"vitdet_{size}"]


def test_net(row: Row, recipes: dict[str, Recipe]) -> None:
    expected = recipes[row.recipe]["backbone"]
    net = net_wrapper(row.cfg).net
    for key in ("patch_size", "embed_dim", "depth", "num_heads", "drop_path_rate"):
        assert net[key] == expected[key], key
    windows = [net.window_size if i in net.window_block_indexes else None for i in range(net.depth)]
    assert windows == expected["window_size"]
    assert net.norm_layer.keywords["eps"] == expected["layernorm_eps"]
    if net._target_ is not ViT:
        return
    assert net.pretrain_img_size == expected["pretrain_size"]
    assert net.layer_scale_init == expected["vit_layer_scale_init"]
    assert net.pad_after_qkv == ("AFTER" in expected["window_padding"])
    pos_embed = full_size_model(row.path).backbone.bottom_up.net.pos_embed
    assert list(pos_embed.shape) == expected["pos_embed_shape"]


def test_wrapper_of_the_net(row: Row, recipes: dict[str, Recipe]) -> None:
    wrapper = net_wrapper(row.cfg)
    expected = recipes[row.recipe]["backbone"]
    if row.backbone.startswith("vitdet"):
        assert wrapper.block_indexes == [wrapper.net.depth - 1]
        assert wrapper.net.residual_block_indexes == expected["out_indices"]
    elif "adapter" not in expected:
        assert wrapper.block_indexes == expected["out_indices"]
        assert wrapper.net.residual_block_indexes == []
    else:
        adapter = expected["adapter"]
        assert wrapper.conv_dim == adapter["conv_inplane"]
        assert wrapper.num_points == adapter["n_points"]
        assert wrapper.deform_num_heads == adapter["deform_num_heads"]
        assert wrapper.deform_ratio == adapter["deform_ratio"]
        assert wrapper.ffn_ratio == adapter["cffn_ratio"]
        assert wrapper.num_extra_extractors == adapter["num_extra_extractors"]
        assert wrapper.drop_path_rate == expected["drop_path_rate"]
        assert wrapper.vit_feature == "final"
        stages = full_size_model(row.path).backbone.bottom_up.stages
        assert [[start, stop - 1] for start, stop in stages] == adapter["interaction_indexes"]


def test_heads(row: Row, recipes: dict[str, Recipe]) -> None:
    head = recipes[row.schedule_recipe]["head"]
    rpn, roi_heads = row.cfg.model.proposal_generator, row.cfg.model.roi_heads
    assert rpn.anchor_generator.sizes == head["rpn"]["anchor_sizes"]
    assert rpn.anchor_generator.aspect_ratios == head["rpn"]["aspect_ratios_h_over_w"]
    assert rpn.anchor_generator.strides == head["rpn"]["strides"]
    assert rpn.batch_size_per_image == head["rpn"]["sampler"]["per_image"]
    phases = (head["rpn"]["train_proposals"], head["rpn"]["test_proposals"])
    assert list(rpn.pre_nms_topk) == [phase["pre_nms_per_level"] for phase in phases]
    assert list(rpn.post_nms_topk) == [phase["post_nms_total"] for phase in phases]
    assert rpn.nms_thresh == phases[0]["nms_iou"]
    assert roi_heads.batch_size_per_image == head["roi_sampler"]["per_image"]
    assert roi_heads.positive_fraction == head["roi_sampler"]["positive_fraction"]
    # Without the recipe's low-quality matches, as the model zoo says.
    assert roi_heads.proposal_matcher.thresholds == [head["roi_assigner"]["pos"]]
    box_head = head["bbox_head"]
    assert roi_heads.box_head.fc_dims == [box_head["fc_channels"]] * box_head["shared_fcs"]
    assert (
        roi_heads.box_head.conv_dims == [box_head["conv_channels"]] * box_head["shared_convs_3x3"]
    )
    assert len(rpn.head.get("conv_dims", [-1])) == head["rpn"]["num_convs"]
    norms = [roi_heads.box_head.get("conv_norm"), roi_heads.mask_head.get("conv_norm")]
    expected = [box_head["conv_norm"], head["mask_head"]["norm"]]
    neck = recipes[row.schedule_recipe]["neck"]
    if neck["kind"] == "FPN":
        norms.append(row.cfg.model.backbone.get("norm"))
        expected.append(neck["norm"])
    assert norms == [norm and norm.removeprefix("MM") for norm in expected]
    assert (
        list(roi_heads.box_predictor.box2box_transform.weights)
        == (head["bbox_head"]["box_coder"]["d2_weights"])
    )
    assert roi_heads.box_predictor.test_score_thresh == head["test"]["score_thr"]
    # The last of Detectron2's list is the deconvolution.
    assert len(roi_heads.mask_head.conv_dims) == head["mask_head"]["convs"] + 1
    assert roi_heads.num_classes == head["bbox_head"]["num_classes"]
    assert row.cfg.model.backbone.out_channels == recipes[row.recipe]["neck"]["out_channels"]


def test_optimizer(row: Row, recipes: dict[str, Recipe]) -> None:
    expected = recipes[row.recipe]["optimizer"]
    optimizer = row.cfg.optimizer
    assert optimizer._target_ is torch.optim.AdamW
    arguments = {key: optimizer[key] for key in optimizer if key not in ("_target_", "params")}
    settings = torch.optim.AdamW([torch.zeros(1)], **arguments).defaults
    for key in ("lr", "weight_decay", "eps"):
        assert settings[key] == expected[key], key
    assert list(settings["betas"]) == expected["betas"]
    assert row.cfg.train.amp.enabled == bool(expected["amp_fp16"])
    assert expected["grad_clip"] is None
    factor = optimizer.params.lr_factor_func
    if expected["layer_decay"] is None:
        assert factor is None
    else:
        assert factor.rate == expected["layer_decay"]["rate"]
        assert factor.num_layers == expected["layer_decay"]["num_layers"]
    no_decay = instantiate(optimizer.params.no_decay)
    matrix, vector = torch.zeros(1, 2, 3), torch.zeros(3)
    # The two official rules differ in these.
    by_name = "contains level_embed" in expected["no_decay_rule"]
    assert no_decay("backbone.bottom_up.net.pos_embed", matrix) == by_name
    assert no_decay("backbone.bottom_up.net.blocks.0.gamma1", vector) == (not by_name)


def test_schedule(row: Row, recipes: dict[str, Recipe]) -> None:
    expected = recipes[row.schedule_recipe]["schedule"]
    multiplier = row.cfg.lr_multiplier
    assert row.cfg.train.max_iter == multiplier.max_iter == expected["iters_at_total_batch_16"]
    assert row.cfg.train.max_iter == EPOCH * expected["epochs"]
    if expected["policy"].startswith("cosine"):
        assert "updated per epoch" in expected["policy"]
        assert multiplier.scheduler._target_ is PerEpoch
        assert multiplier.scheduler.epochs == expected["epochs"]
        assert multiplier.scheduler.scheduler._target_ is CosineParamScheduler
        assert multiplier.scheduler.scheduler.end_value == expected["min_lr_ratio"]
    else:
        assert multiplier.scheduler.num_updates == expected["epochs"]
        assert multiplier.scheduler.milestones == expected["milestones"]
        gamma = expected["gamma"]
        assert multiplier.scheduler["values"] == pytest.approx([1.0, gamma, gamma**2])
    assert multiplier.warmup_iters == expected["warmup"]["iters"]
    assert multiplier.warmup_factor == expected["warmup"]["start_ratio"]
    assert row.cfg.dataloader.train.total_batch_size == recipes[row.recipe]["batch"]["total"]


def test_learning_rate_by_iteration(row: Row) -> None:
    max_iter = row.cfg.train.max_iter
    multiplier = instantiate(row.cfg.lr_multiplier)

    def at(iteration: int) -> float:
        return multiplier(iteration / max_iter)

    cosine = "_lsj_" in row.path.stem
    warmup = 2000 if cosine else 500
    for iteration in (0, 1, 250, warmup - 1, warmup, warmup + 1):
        expected = 1 - (1 - 0.001) * (1 - min(iteration, warmup) / warmup)
        assert at(iteration) == pytest.approx(expected, rel=1e-3)
    if cosine:
        epochs = max_iter // EPOCH
        for epoch in range(1, epochs):
            expected = 0.01 + 0.99 * (1 + math.cos(math.pi * epoch / epochs)) / 2
            assert at(epoch * EPOCH) == at((epoch + 1) * EPOCH - 1) == pytest.approx(expected)
        return
    first, second = (8, 11) if "1x" in row.path.stem else (27, 33)
    assert at(first * EPOCH - 1) == pytest.approx(1.0)
    assert at(first * EPOCH) == at(second * EPOCH - 1) == pytest.approx(0.1)
    assert at(second * EPOCH) == at(max_iter - 1) == pytest.approx(0.01)


def _as_recipe(augmentation: DictConfig) -> Recipe:
    """An augmentation in the words of recipes.json."""
    kind = augmentation._target_
    if kind is T.RandomFlip:
        assert augmentation.horizontal
        return {"op": "hflip", "p": augmentation.get("prob", 0.5)}
    if kind is RandomChoice:
        branches = [[_as_recipe(step) for step in branch] for branch in augmentation.branches]
        return {"op": "choose_one_branch_uniformly", "branches": branches}
    if kind is T.ResizeShortestEdge:
        edges = augmentation.short_edge_length
        edges = [edges] if isinstance(edges, int) else list(edges)
        if len(edges) == 1:
            return {"op": "resize_short", "short": edges[0], "max_long": augmentation.max_size}
        assert augmentation.sample_style == "choice"
        return {"op": "resize_short_choice", "short": edges, "max_long": augmentation.max_size}
    if kind is T.ResizeScale:
        return {
            "op": "resize_keep_ratio_jitter",
            "base_long": augmentation.target_width,
            "base_short": augmentation.target_height,
            "ratio_range": [augmentation.min_scale, augmentation.max_scale],
            "rule": "target=(int(long*r),int(short*r)); "
            "uniform scale = min(target_long/long_side, target_short/short_side)",
        }
    assert kind is T.RandomCrop
    low, high = augmentation.crop_size
    drawn = {
        "absolute_range": f"each drawn independently from [min(side,{low}), min(side,{high})]",
        "absolute": f"min(side,{low}) each (deterministic size, random position)",
    }[augmentation.crop_type]
    return {"op": "random_crop", "height_and_width": drawn, "keep_image_without_boxes": True}


def test_augmentation(row: Row, recipes: dict[str, Recipe]) -> None:
    recipe = recipes[row.schedule_recipe]
    first, *expected, normalize, pad = recipe["train_augmentation"]
    assert (first["op"], normalize["op"], pad["op"]) == ("load_gt", "normalize", "pad_bottom_right")
    mapper = row.cfg.dataloader.train.mapper
    steps = list(mapper.augmentations)
    if "to_size" in pad:
        padding = steps[-1]
        assert padding._target_ is PadToSize
        assert list(padding.size) == pad["to_size"]
        assert padding.pixel_value == row.cfg.model.pixel_mean
        del steps[-1]
    # What the mapper does after the augmentations.
    recompute = [step.pop("recompute_boxes_from_masks", False) for step in expected]
    assert mapper.get("recompute_boxes", False) == any(recompute)
    expected = [step for step in expected if step["op"] != "drop_boxes_smaller_than"]
    assert [_as_recipe(step) for step in steps] == expected
    if "dinov2" in row.backbone:  # L was trained with other statistics than it is tested with
        normalize = recipe["test"]["steps"][-2]
    assert row.cfg.model.pixel_mean == normalize["mean"]
    assert row.cfg.model.pixel_std == normalize["std"]
    assert row.cfg.model.input_format == normalize["channel_order"]
    size_divisibility = full_size_model(row.path).backbone.size_divisibility
    assert size_divisibility == recipe["test"]["steps"][-1]["to_multiple_of"]
    tested = _as_recipe(*row.cfg.dataloader.test.mapper.augmentations)
    assert tested == {"op": "resize_short", **recipe["test"]["scales"][0]}


def test_layer_decay_of_every_parameter(row: Row, recipes: dict[str, Recipe]) -> None:
    cfg, model = load(row.path), full_size_model(row.path)
    cfg.optimizer.params.model = model
    groups = instantiate(cfg.optimizer).param_groups
    rates = {id(parameter): group["lr"] for group in groups for parameter in group["params"]}
    decay = recipes[row.recipe]["optimizer"]["layer_decay"]
    depth = net_wrapper(cfg).net.depth
    seen = set()
    for name, parameter in model.named_parameters():
        words = name.removeprefix("backbone.bottom_up.net.").split(".")
        layer = depth + 1
        if words[0] in ("blocks", "layers"):
            layer = int(words[1]) + 1
        elif words[0] in ("patch_embed", "pos_embed", "visual_embed"):
            layer = 0
        factor = decay["rate"] ** (depth + 1 - layer) if decay is not None else 1.0
        assert rates[id(parameter)] == pytest.approx(cfg.optimizer.lr * factor), name
        seen.add(layer)
    assert seen == set(range(depth + 2))
    lowest = decay["scale_id0"] if decay is not None else 1.0
    assert min(rates.values()) == pytest.approx(cfg.optimizer.lr * lowest, rel=1e-4)
    assert max(rates.values()) == pytest.approx(cfg.optimizer.lr)
