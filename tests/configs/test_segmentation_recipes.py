"""The segmentation experiments follow the official recipes, to the digit.

Plain-ViT baselines have none; they are trained as the adapters, and their sizes are the paper's.
"""

import json
import re
from pathlib import Path

import detectron2.data.transforms as T
import pytest
import torch
from detectron2.config import instantiate
from detectron2.projects.point_rend import ColorAugSSDTransform
from fvcore.common.param_scheduler import PolynomialDecayParamScheduler
from omegaconf import DictConfig
from project_configs import (
    SEGMENTATION_CONFIGS,
    count_parameters,
    full_size_model,
    load,
    net_wrapper,
    split_test,
)
from segmentation_recipes import PAPER_PARAMETERS, RECIPES, check_mask2former
from timm.models import get_pretrained_cfg

from vitadapter.data.sem_seg.layouts import LAYOUTS
from vitadapter.data.transforms import PadToSize, RandomResize, ResizeToFit, StretchToMultiple
from vitadapter.model_zoo.trained_models import SCHEME, find_trained_model
from vitadapter.modeling.backbone import BEiT, ViT

Recipe = dict[str, object]

PATHS = {f"{path.parent.name}/{path.stem}": path for path in SEGMENTATION_CONFIGS}


def path_of(name: str) -> Path:
    """The file of an experiment, which may end in a key of `TESTS`."""
    return PATHS[split_test(name)[0]]


def read(name: str) -> DictConfig:
    """An experiment, under a test of its weights if its name ends so."""
    return load(path_of(name), split_test(name)[1])


@pytest.fixture(params=sorted(RECIPES))
def name(request: pytest.FixtureRequest) -> str:
    """An experiment with an official recipe."""
    return request.param


@pytest.fixture
def recipe(name: str, recipes: dict[str, Recipe]) -> Recipe:
    return recipes[RECIPES[name]]


@pytest.fixture
def cfg(name: str) -> DictConfig:
    return read(name)


def test_every_official_recipe_has_an_experiment(recipes: dict[str, Recipe]) -> None:
    official = {n for n in recipes if n.startswith(("mask2former_", "upernet_", "semfpn_"))}
    official -= {n for n in official if recipes[n]["codebase"] == "detection"}  # panoptic
    assert official == set(RECIPES.values())


def test_parameter_counts(name: str, recipe: Recipe) -> None:
    model = full_size_model(path_of(name))
    backbone = getattr(model.backbone, "bottom_up", model.backbone)
    counts = [f"{count_parameters(module) / 1e6:.3f}" for module in (model, backbone)]
    published = recipe["params"]
    figures = (published["constructed_total_M"], published["constructed_backbone_M"])
    assert counts == [f"{figure:.3f}" for figure in figures]


@pytest.mark.parametrize("prefix", sorted(PAPER_PARAMETERS))
def test_parameter_counts_of_the_paper(prefix: str) -> None:
    paths = [path for path in SEGMENTATION_CONFIGS if path.stem.startswith(f"{prefix}_")]
    assert paths
    for path in paths:
        count = count_parameters(full_size_model(path)) / 1e6
        assert count == pytest.approx(PAPER_PARAMETERS[prefix], abs=0.5 if "l_" in prefix else 0.06)


@pytest.mark.parametrize(
    ("method", "name", "millions"),
    [
        # 318.31 in VPT's paper, of which 13.18 are the head's (ours 13.14).
        ("ViT-L (full-tuning)", "setr_pup_vit_l_augreg_160k", 317.290),
        ("ViT-L (w/ VPT)", "setr_pup_vit_l_augreg_vpt_160k", 15.873),
        ("ViT-Adapter-L (full-tuning)", "semantic_fpn_vit_adapter_l_augreg_80k", 332.027),
        ("ViT-Adapter-L (frozen ViT)", "semantic_fpn_vit_adapter_l_augreg_frozen_80k", 29.668),
    ],
)
def test_trained_parameters_of_table_11(
    method: str, name: str, millions: float, shared: Path
) -> None:
    model = full_size_model(PATHS[f"ADE20K/{name}"])
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad) / 1e6
    assert f"{trained:.3f}" == f"{millions:.3f}"
    tables = json.loads((shared / "reference" / "paper_tables.json").read_text())
    (row,) = (row for row in tables["table_11"]["rows"] if row["method"] == method)
    assert trained == pytest.approx(row["trainable_M"], abs=0.5 if trained < 300 else 1.0)


def test_backbone(name: str, cfg: DictConfig, recipe: Recipe) -> None:
    expected = recipe["backbone"]
    wrapper = net_wrapper(cfg)
    net = wrapper.net
    for key in ("patch_size", "embed_dim", "depth", "num_heads", "drop_path_rate"):
        assert net[key] == expected[key], key
    assert net.window_size == 0
    assert not any(expected["window_attn"])
    assert net.norm_layer.keywords["eps"] == expected["layernorm_eps"]
    assert net.use_act_checkpoint == expected["activation_checkpointing"]
    assert net.layer_scale_init == expected["vit_layer_scale_init"]
    if net._target_ is ViT:
        assert net.pretrain_img_size == expected["pretrain_size"]
    if net._target_ is BEiT:
        assert net.img_size == expected["img_size"] == expected["input_must_be_exactly"][0]
        assert net.use_cls_token == expected["cls_token"]
    if "adapter" not in expected:
        assert wrapper.block_indexes == expected["out_indices"]
        return
    adapter = expected["adapter"]
    assert wrapper.conv_dim == adapter["conv_inplane"]
    assert wrapper.num_points == adapter["n_points"]
    assert wrapper.deform_num_heads == adapter["deform_num_heads"]
    assert wrapper.deform_ratio == adapter["deform_ratio"]
    assert bool(wrapper.ffn_ratio) == adapter["with_cffn"]
    assert wrapper.ffn_ratio in (0, adapter["cffn_ratio"])
    assert wrapper.num_extra_extractors == adapter["num_extra_extractors"]
    assert wrapper.drop_path_rate == expected["drop_path_rate"]
    # With one interaction there is nothing per stage to give.
    assert wrapper.vit_feature == ("final" if "light" in name else "stage")
    assert wrapper.get("injector_gamma_init", 0.0) == adapter["injector_gamma_init"]
    backbone = full_size_model(path_of(name)).backbone
    stages = getattr(backbone, "bottom_up", backbone).stages
    assert [[start, stop - 1] for start, stop in stages] == adapter["interaction_indexes"]


# Of names of BEiT's files, which timm's configurations do not tell: timm's to the official form.
_BEIT_TAGS = {"in22k_ft_in22k": "pt22k_ft22k", "in1k_ft_in22k": "pt1k_ft21k"}


def _stem(file: str) -> str:
    """Without what says how it is packed."""
    return Path(file).name.split(".")[0]


def test_pretrained_weights(cfg: DictConfig, recipe: Recipe) -> None:
    expected = recipe["pretrain"]
    published = Path(expected["backbone_file"]).stem
    name = cfg.train.init_checkpoint.removeprefix("timm://")
    if name.startswith(SCHEME):  # a first stage's run
        first_stage = find_trained_model(name.removeprefix(SCHEME)).url
        file = expected["whole_model_file"]
        assert recipe["evaluation_only"] if file is None else _stem(file) == _stem(first_stage)
        return
    if name.startswith("https://"):
        assert Path(name).stem == published
        return
    url = get_pretrained_cfg(name).url
    architecture, _, tag = name.partition(".")
    stored = Path(url).stem if url else f"{architecture}_{_BEIT_TAGS[tag]}"
    assert stored == published


def test_heads(name: str, cfg: DictConfig, recipe: Recipe) -> None:
    if "mask2former" in name:
        check_mask2former(cfg, recipe)
        return
    model = full_size_model(path_of(name))
    expected = recipe["head"]["decode_head"]
    auxiliary = recipe["head"].get("auxiliary_head")
    head = model.sem_seg_head
    assert head.num_classes == cfg.dataset.num_classes == expected["num_classes"]
    assert head.ignore_value == cfg.dataset.ignore_label == 255
    if auxiliary is None:
        assert cfg.model.sem_seg_head.conv_dims == expected["channels"]
        assert cfg.model.backbone.out_channels == recipe["neck"]["out_channels"]
        assert sorted(model.backbone.output_shape()) == ["p2", "p3", "p4", "p5"]
        assert head.dropout.p == expected["dropout"]
        assert head.loss_weight == expected["loss"]["weight"]
        return
    head, aux_head = head.head, head.auxiliary_head
    assert cfg.model.sem_seg_head.head.channels == expected["channels"]
    assert list(head.ppm.pool_scales) == expected["ppm_scales"]
    assert head.dropout.p == aux_head.dropout.p == expected["dropout"] == auxiliary["dropout"]
    assert head.loss_weight == expected["loss"]["weight"]
    assert aux_head.loss_weight == auxiliary["loss"]["weight"]
    assert aux_head.in_feature == f"res{auxiliary['in_index'] + 2}"
    assert aux_head.predictor.in_channels == auxiliary["channels"]
    assert len(aux_head.convs) == auxiliary["num_convs"]


def test_data(cfg: DictConfig, recipe: Recipe) -> None:
    """Root folders have other names below Detectron2's folder of data sets than officially."""
    expected = recipe["dataset"]
    assert cfg.dataset.reduce_zero_label == expected["reduce_zero_label"]
    for part, split in (("train", "train"), ("test", "val")):
        layout = LAYOUTS[cfg.dataset[part].name]
        assert len(layout.class_names) == cfg.dataset.num_classes
        official = expected[split][1]
        if official == ["training/images", "validation/images"]:  # of Mapillary Vistas
            official = "trainval/images"
        assert layout.image_root.endswith(official)


def test_optimizer(name: str, cfg: DictConfig, recipe: Recipe) -> None:
    expected = recipe["optimizer"]
    optimizer = cfg.optimizer
    assert optimizer._target_ is torch.optim.AdamW
    assert optimizer.lr == expected["lr"]
    assert optimizer.weight_decay == expected["weight_decay"]
    defaults = torch.optim.AdamW([torch.zeros(1)]).defaults
    assert [list(defaults["betas"]), defaults["eps"]] == [expected["betas"], expected["eps"]]
    assert cfg.train.amp.enabled == bool(expected["amp_fp16"])
    assert expected["grad_clip"] is None
    assert cfg.dataloader.train.total_batch_size == recipe["batch"]["total"]


def _groups(name: str, cfg: DictConfig) -> dict[str, tuple[float, float]]:
    """Learning rate and weight decay of each parameter."""
    model = full_size_model(path_of(name))
    cfg.optimizer.params.model = model
    found = {
        id(parameter): (group["lr"], group["weight_decay"])
        for group in instantiate(cfg.optimizer).param_groups
        for parameter in group["params"]
    }
    return {n: found[id(p)] for n, p in model.named_parameters()}


_SLOW = re.compile(r"sem_seg_head\..*(class|mask|query)_(embed|feat)\.|predictor\.level_embed\.")


def test_rates_of_every_parameter(name: str, cfg: DictConfig, recipe: Recipe) -> None:
    expected = recipe["optimizer"]
    decay = expected["layer_decay"]
    base = expected["lr"]
    for parameter, (rate, _) in _groups(name, cfg).items():
        _, in_net, rest = parameter.partition(".net.")
        if decay is not None:
            last = decay["num_layers"] + 1
            layer = last
            if in_net:
                layer = int(rest.split(".")[1]) + 1 if rest.startswith("blocks.") else 0
            elif "extra_id0" in decay and _SLOW.search(parameter):
                layer = 0
            factor = decay["scale_id0"] if layer == 0 else decay["rate"] ** (last - layer)
        else:
            multiplier = expected.get("substring_multipliers", {}).get("head", {}).get("lr_mult", 1)
            factor = multiplier if "head" in parameter and "bias" not in parameter else 1
        assert rate == pytest.approx(base * factor, rel=1e-5), parameter


def test_weight_decay_of_every_parameter(name: str, cfg: DictConfig, recipe: Recipe) -> None:
    rule = recipe["optimizer"].get("no_decay_rule")
    model = full_size_model(path_of(name))
    parameters = dict(model.named_parameters())
    decayed = {n for n, (_, decay) in _groups(name, cfg).items() if decay}
    if rule is None:  # PVT's
        assert decayed == set(parameters)
    elif rule.startswith("no decay for every 1-D tensor"):
        matrices = {n for n, p in parameters.items() if p.ndim > 1}
        assert decayed == {n for n in matrices if not n.endswith(".bias")}
    else:
        assert "backbone.net.pos_embed" not in decayed
        assert "backbone.level_embed" not in decayed
        assert "backbone.net.blocks.0.gamma1" in decayed
        assert "backbone.norm1.weight" not in decayed
        # Called "bn" officially.
        assert "sem_seg_head.head.ppm.bottleneck.norm.weight" in decayed
        assert not [n for n in decayed if n.endswith("bias")]


def test_schedule(cfg: DictConfig, recipe: Recipe) -> None:
    expected = recipe["schedule"]
    max_iter = expected["iterations"]
    assert cfg.train.max_iter == cfg.lr_multiplier.max_iter == max_iter
    assert cfg.lr_multiplier.scheduler._target_ is PolynomialDecayParamScheduler
    multiplier = instantiate(cfg.lr_multiplier)
    warmup = expected["warmup"] or {"iters": 0, "start_ratio": 1.0}
    for iteration in (0, 1, 750, 1500, max_iter // 2, max_iter - 1):
        value = (1 - iteration / max_iter) ** expected["power"]
        if iteration < warmup["iters"]:
            # Within the warm-up Detectron2's is straight, the official one follows the schedule.
            left = 1 - iteration / warmup["iters"]
            value *= 1 - (1 - warmup["start_ratio"]) * left
        assert multiplier(iteration / max_iter) == pytest.approx(value, rel=0.04)


def test_training_augmentation(cfg: DictConfig, recipe: Recipe) -> None:
    made_elsewhere = ("semantic_map_to_class_masks", "map_mapillary_v1_66_ids_to_19_cityscapes")
    first, resize, crop, flip, photometric, normalize, pad = (
        step for step in recipe["train_augmentation"] if not step["op"].startswith(made_elsewhere)
    )
    assert first["op"] == "load_gt"
    steps = cfg.dataloader.train.mapper.augmentations
    kinds = [step._target_ for step in steps]
    assert kinds == [
        RandomResize,
        T.RandomCrop_CategoryAreaConstraint,
        T.RandomFlip,
        ColorAugSSDTransform,
        PadToSize,
    ]
    assert (steps[0].short, steps[0].long) == (resize["base_short"], resize["base_long"])
    assert list(steps[0].ratio_range) == resize["ratio_range"]
    assert list(steps[1].crop_size) == crop["size"]
    assert steps[1].single_category_max_area == crop["single_class_max_fraction"]
    assert steps[1].ignored_category == 255
    assert (steps[2].horizontal, steps[2].get("prob", 0.5)) == (True, flip["p"])
    distortion = instantiate(steps[3])
    assert distortion.brightness_delta == photometric["brightness_delta"]
    assert [distortion.contrast_low, distortion.contrast_high] == photometric["contrast"]
    assert [distortion.saturation_low, distortion.saturation_high] == photometric["saturation"]
    assert distortion.hue_delta == photometric["hue_delta_deg"]
    assert list(steps[4].size) == pad["to_size"]
    assert steps[4].pixel_value == cfg.model.pixel_mean == normalize["mean"]
    assert steps[4].seg_pad_value == pad["label_value"]
    assert cfg.model.pixel_std == normalize["std"]
    assert cfg.dataloader.train.mapper.image_format == normalize["channel_order"]


def _sides(step: ResizeToFit) -> tuple[int, int | None]:
    return step.short, step.long


def test_test_settings(name: str, cfg: DictConfig, recipe: Recipe) -> None:
    expected = recipe["test"]
    operations = {step["op"]: step for step in expected["steps"]}
    stretched = "stretch_up_to_multiple" in operations
    tta = cfg.train.inference.tta
    given = instantiate(cfg.dataloader.test.mapper.augmentations)
    scales = expected.get("scales_effective", expected["scales"])
    if not expected["hflip_tta"]:
        assert not tta.enabled
        (scale,) = scales
        assert _sides(given[0]) == (scale["short"], scale["max_long"])
        assert [type(step) for step in given] == [ResizeToFit, *[StretchToMultiple] * stretched]
    else:
        assert tta.enabled
        assert tta.wrapper.flip
        assert given == []
        floor = operations.get("resize_test_scale_with_floor", {}).get("crop", [0])[0]
        sides = [
            (max(scale["short"], floor), None if floor else scale["max_long"]) for scale in scales
        ]
        resizes = instantiate(tta.wrapper.resizes)
        assert [_sides(resize) for resize, *_ in resizes] == sides
        kinds = [ResizeToFit, *[StretchToMultiple] * stretched]
        assert all([type(step) for step in steps] == kinds for steps in resizes)
        assert {step.divisor for _, *steps in resizes for step in steps} <= {32}
    if expected["crop"] is None:
        assert cfg.model.inference is None
        return
    assert list(cfg.model.inference.crop_size) == expected["crop"]
    assert list(cfg.model.inference.stride) == expected["stride"]
    padded = "pad_bottom_right_so_both_sides_reach" in operations
    assert cfg.model.inference.pad_to_crop == padded


def test_multi_scale_of_table_3() -> None:
    """Rows without an official multi-scale file take the ratios that the official files name."""
    names = [f"{n}_ms" for n in PATHS if "beit" not in n and re.search("_(80k|160k)$", n)]
    # Mask2Former is in table 9.
    names = [n for n in names if n not in RECIPES and "mask2former" not in n]
    assert len(names) >= 15
    for name in (n for n in names if "_t_" in n or "_l_" in n):
        resizes = instantiate(read(name).train.inference.tta.wrapper.resizes)
        ratios = [0.5, 0.75, 1.0, 1.25, 1.5, 1.75]
        assert [_sides(fit) for fit, _ in resizes] == [
            (int(512 * ratio), int(2048 * ratio)) for ratio in ratios
        ]
        assert {stretch.divisor for _, stretch in resizes} == {32}


@pytest.mark.parametrize("size", ["t", "s", "b"])
@pytest.mark.parametrize(("head", "schedule"), [("semantic_fpn", "80k"), ("upernet", "160k")])
def test_baselines_differ_in_the_backbone_alone(head: str, schedule: str, size: str) -> None:
    adapter, plain = (
        read(f"ADE20K/{head}_{backbone}_{size}_deit_{schedule}")
        for backbone in ("vit_adapter", "vit")
    )
    # Partial functions are equal only to themselves.
    nets = [{**net_wrapper(c).net, "norm_layer": None} for c in (plain, adapter)]
    assert nets[0] == nets[1]
    assert net_wrapper(plain).block_indexes == [2, 5, 8, 11]
    for key in ("dataset", "optimizer", "lr_multiplier"):
        assert plain[key] == adapter[key]
