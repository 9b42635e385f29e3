"""Official Mask2Former checkpoints here and back, and the size of our model for each recipe."""

import functools
import json
from pathlib import Path

import pytest
import torch
from detectron2.config import instantiate
from omegaconf import DictConfig, OmegaConf
from project_configs import PROJECT, full_size_model
from torch import Tensor, nn

from vitadapter.checkpoint import OfficialLayout, convert_official, export_official
from vitadapter.checkpoint.families import recognise
from vitadapter.checkpoint.official.layouts import LAYOUTS, MASK2FORMER, MASK2FORMER_PANOPTIC
from vitadapter.model_zoo import get_config

PANOPTIC = "mask2former_beitv2_adapter_large_16x1_3x_coco-panoptic"
NAMES = [
    "mask2former_beit_adapter_base_480_40k_pascal_context_59_ms",
    "mask2former_beit_adapter_base_512_40k_cocostuff10k_ms",
    "mask2former_beit_adapter_large_128_40k_chase_db1_ss",
    "mask2former_beit_adapter_large_480_40k_pascal_context_59_ms",
    "mask2former_beit_adapter_large_512_40k_cocostuff10k_ms",
    "mask2former_beit_adapter_large_512_80k_potsdam_ss",
    "mask2former_beit_adapter_large_640_160k_ade20k_ms",
    "mask2former_beit_adapter_large_896_80k_ade20k_ms",
    "mask2former_beit_adapter_large_896_80k_cityscapes_ms",
    "mask2former_beit_adapter_large_896_80k_cocostuff164k_ms",
    PANOPTIC,
]


def official_state(shared: Path, name: str) -> dict[str, Tensor]:
    shapes = json.loads((shared / "reference" / "keys" / f"{name}.json").read_text())
    return {key: torch.empty(shape, device="meta") for key, (shape, _) in shapes.items()}


def config_of(recipe: dict) -> DictConfig:
    """Our model's config, from the shared bases, for an official recipe."""
    bases = get_config("common/models/mask2former_vit_adapter.py")
    nets = get_config("common/models/beit.py")
    backbone, head = recipe["backbone"], recipe["head"]["decode_head"]
    panoptic = recipe["task"] == "panoptic_segmentation"
    model = bases.model_panoptic if panoptic else bases.model
    if head["feat_channels"] == 1024:
        model.sem_seg_head = bases.wide_head
    size = {768: "base", 1024: "large"}[backbone["embed_dim"]]
    model.backbone = nets[f"vit_adapter_beit_{size}{'' if panoptic else '_global'}"]
    model.backbone.net.img_size = backbone["img_size"]
    model.sem_seg_head.pixel_decoder.ffn_dim = head["pixel_decoder"]["ffn"]
    model.sem_seg_head.predictor.num_queries = head["num_queries"]
    classes = {"num_classes": head["num_classes"], "num_things": head.get("num_things", 0)}
    return OmegaConf.create({"model": model, "dataset": classes}, flags={"allow_objects": True})


@functools.cache
def _build(spec: str) -> nn.Module:
    with torch.device("meta"):
        return instantiate(config_of(json.loads(spec)).model)


def build_model(recipe: dict) -> nn.Module:
    """Our model on the meta device; recipes of the same model share one."""
    kept = {key: recipe[key] for key in ("task", "backbone", "head")}
    kept["backbone"] = {key: kept["backbone"][key] for key in ("embed_dim", "img_size")}
    head = kept["head"]["decode_head"]
    keys = ("feat_channels", "num_queries", "num_classes", "pixel_decoder")
    kept["head"] = {"decode_head": {key: head[key] for key in keys}}
    return _build(json.dumps(kept, sort_keys=True))


def layout_of(name: str) -> OfficialLayout:
    return MASK2FORMER_PANOPTIC if name == PANOPTIC else MASK2FORMER


def test_no_key_list_is_forgotten(shared: Path) -> None:
    listed = (shared / "reference" / "keys").glob("mask2former*.json")
    assert sorted(path.stem for path in listed) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_names_and_shapes_are_ours_and_come_back(
    name: str, shared: Path, recipes: dict[str, dict]
) -> None:
    official = official_state(shared, name)
    layout = layout_of(name)
    assert [x.name for x in LAYOUTS if x.recognises(official)] == [layout.name]
    assert recognise(official).name == layout.name
    conversion = convert_official(official, layout)
    # BEiT's index of relative positions follows from the size of its tables.
    assert all(key.endswith(".relative_position_index") for key in conversion.dropped)
    ours = build_model(recipes[name]).state_dict()
    assert {n: t.shape for n, t in conversion.tensors.items()} == {
        n: t.shape for n, t in ours.items()
    }
    back = export_official(conversion.tensors, layout)
    assert back.keys() | conversion.dropped.keys() == official.keys()
    assert all(back[key] is official[key] for key in back)


def test_the_panoptic_experiment_is_the_official_model(shared: Path) -> None:
    path = PROJECT / "configs/COCOPanoptic/mask2former_vit_adapter_l_beitv2_3x.py"
    ours = full_size_model(path).state_dict()
    conversion = convert_official(official_state(shared, PANOPTIC), MASK2FORMER_PANOPTIC)
    assert {n: t.shape for n, t in conversion.tensors.items()} == {
        n: t.shape for n, t in ours.items()
    }


def test_an_old_unused_classifier_is_dropped(shared: Path) -> None:
    """Files of before 2022-06-24 have one."""
    official = official_state(shared, NAMES[0])
    official["decode_head.conv_seg.weight"] = torch.empty(59, 256, 1, 1, device="meta")
    dropped = convert_official(official, MASK2FORMER).dropped
    assert "no longer has" in dropped["decode_head.conv_seg.weight"]


def test_every_recipe_has_its_published_size(recipes: dict[str, dict]) -> None:
    recipes = {n: recipe for n, recipe in recipes.items() if n.startswith("mask2former")}
    assert len(recipes) == 24
    for name, recipe in recipes.items():
        model = build_model(recipe)
        counts = (sum(p.numel() for p in module.parameters()) for module in (model.backbone, model))
        published = recipe["params"]
        expected = published["constructed_backbone_M"], published["constructed_total_M"]
        assert tuple(round(n / 1e6, 3) for n in counts) == expected, name


@pytest.mark.parametrize("name", [NAMES[0], NAMES[2], NAMES[3], PANOPTIC])
def test_settings_without_parameters_are_the_recipes(name: str, recipes: dict[str, dict]) -> None:
    """One recipe of each width of the head."""
    recipe = recipes[name]
    head, matching = recipe["head"]["decode_head"], recipe["head"]["matching"]
    model = config_of(recipe).model
    assert model.backbone.drop_path_rate == recipe["backbone"]["drop_path_rate"]
    pixel, decoder = model.sem_seg_head.pixel_decoder, model.sem_seg_head.predictor
    criterion, matcher = model.criterion, model.criterion.matcher
    assert pixel.mask_dim == head["mask_channels"]
    expected = head["pixel_decoder"]
    assert (pixel.num_heads, pixel.num_points) == (expected["heads"], expected["points"])
    assert (pixel.num_layers, pixel.num_levels) == (expected["layers"], expected["levels"])
    expected = head["transformer_decoder"]
    assert (decoder.num_heads, decoder.num_layers) == (expected["heads"], expected["layers"])
    assert decoder.ffn_dim == expected["ffn"]
    assert criterion.no_object_weight == head["loss_cls"]["class_weight"]["no_object"]
    for kind in ("cls", "mask", "dice"):
        ours = kind.replace("cls", "class")
        weight = matcher[f"{ours}_weight"]
        assert weight == matching[f"cost_{kind}"] == head[f"loss_{kind}"]["weight"]
    assert matcher.num_points == matching["points"]
    assert criterion.oversample_ratio == matching["oversample_ratio"]
    assert criterion.importance_sample_ratio == matching["importance_ratio"]
    if "test" in recipe["head"]:
        test = recipe["head"]["test"]
        assert model.instance_inference.max_per_image == test["max_per_image"]
        assert model.panoptic_inference.overlap_threshold == test["iou_thr"]
        assert (model.semantic_on, test["semantic_on"]) == (False, False)
        for inference in (model.panoptic_inference, model.instance_inference):
            assert instantiate(inference.thing_classes) == list(range(head["num_things"]))
