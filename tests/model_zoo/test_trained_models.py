"""The table of trained models, against what the official release and Detectron2 publish."""

import json
import re
from pathlib import Path

import pytest
import torch
from official_recipes import recipe_name
from project_configs import PROJECT, TESTS, full_size_model
from segmentation_recipes import PANOPTIC_RECIPES, RECIPES

from vitadapter.checkpoint.cache import cached_path
from vitadapter.checkpoint.loading import check_plan, plan_load
from vitadapter.model_zoo.configs import list_experiments
from vitadapter.model_zoo.trained_models import TRAINED_MODELS, find_trained_model, zoo_address

METRICS = {
    "box_AP": "bbox/AP",
    "mask_AP": "segm/AP",
    "PQ": "panoptic_seg/PQ",
    "PQ_thing": "panoptic_seg/PQ_th",
    "PQ_stuff": "panoptic_seg/PQ_st",
}
VITDET = "COCO/cascade_mask_rcnn_vitdet_l_mae_lsj_100ep"
ONE_OF_EACH_FAMILY = (
    "COCO/mask_rcnn_vit_adapter_s_deit_3x_nofpn",
    "COCO/mask_rcnn_vit_adapter_b_mae_lsj_50ep",
    "COCO/cascade_mask_rcnn_vit_adapter_s_deit_3x",
    "COCO/htcpp_vit_adapter_l_beitv2_o365",
    "COCO/atss_vit_adapter_s_deit_3x",
    "COCO/gfl_vit_adapter_s_deit_3x",
    "COCO/sparse_rcnn_vit_adapter_s_deit_3x",
    "ADE20K/upernet_vit_adapter_l_uniperceiver_160k",
    "PascalContext/mask2former_vit_adapter_b_beit_480_40k",
    "COCOPanoptic/mask2former_vit_adapter_l_beitv2_3x",
)


def recipes_of(experiment: str) -> dict[str, str]:
    """The official recipes of an experiment, by what its name has added for a test."""
    path = PROJECT / "configs" / f"{experiment}.py"
    named = {test: recipe_name(path.with_stem(path.stem + test)) for test in ("", *TESTS)}
    segmenters = RECIPES | PANOPTIC_RECIPES
    named = {test: segmenters.get(experiment + test, name) for test, name in named.items()}
    return {test: name for test, name in named.items() if name}


def published(recipe: dict[str, object], test: str) -> dict[str, float]:
    """A recipe's figures under the names that evaluations give them."""
    figures = recipe["published"]
    if "mIoU_ss" in figures:
        mean_iou = figures["mIoU_ms" if test == "_ms" else "mIoU_ss"]
        return {} if mean_iou is None else {"sem_seg/mIoU": mean_iou}
    return {METRICS[k]: v for k, v in figures.items() if k in METRICS and v is not None}


def read(shared: Path, name: str) -> dict[str, object]:
    return json.loads((shared / "reference" / f"{name}.json").read_text())


def test_entries_are_sound() -> None:
    assert set(TRAINED_MODELS) <= set(list_experiments())
    for name, model in TRAINED_MODELS.items():
        assert re.fullmatch(r"https://[\w./+-]+\.(pth|pth\.tar|pkl|zip)", model.url), name
        assert model.sha256 is None or re.fullmatch(r"[0-9a-f]{64}", model.sha256), name
        assert set(model.published) <= {"", *TESTS.values()}
    places = {cached_path(model.url) for model in TRAINED_MODELS.values()}
    assert len(places) == len({model.url for model in TRAINED_MODELS.values()})


def test_every_official_model_is_there(shared: Path) -> None:
    """URLs and figures of all 62 recipes, and no others."""
    official = {row["recipe"]: row for row in read(shared, "trained_models")["models"]}
    recipes = {recipe["name"]: recipe for recipe in read(shared, "recipes")["recipes"]}
    found = set()
    for experiment, model in TRAINED_MODELS.items():
        if experiment == VITDET:
            continue
        expected: dict[str, dict[str, float]] = {}
        for test, name in recipes_of(experiment).items():
            row = official.get(name)
            if row is not None:
                found.add(name)
                assert model.url == row["url"]
                assert row["archive"] == model.url.endswith(".zip")
            # The release lists some tests with augmentation apart, and some with the others.
            tests = {test, "_ms"} if row is not None and "mIoU_ms" in row["published"] else {test}
            expected |= {t: published(row or recipes[name], t) for t in tests if name in recipes}
        expected = {TESTS.get(test, ""): figures for test, figures in expected.items() if figures}
        assert model.published == expected, experiment
    assert found == official.keys()


def test_detectron2s_vitdet(shared: Path) -> None:
    rows = {row["config"]: row for row in read(shared, "trained_models")["detectron2_vitdet"]}
    row = rows["COCO/cascade_mask_rcnn_vitdet_l_100ep"]
    model = TRAINED_MODELS[VITDET]
    assert model.url == row["url"]
    assert model.published == {"": {"bbox/AP": row["box_AP"], "segm/AP": row["mask_AP"]}}


@pytest.mark.parametrize("experiment", ONE_OF_EACH_FAMILY)
def test_its_file_fills_the_model(experiment: str, shared: Path) -> None:
    """By the published lists of names and shapes."""
    index = read(shared, "keys/index")
    name = next(name for name in recipes_of(experiment).values() if name in index)
    shapes = read(shared, f"keys/{Path(index[name]['file']).stem}")
    state = {key: torch.empty(shape, device="meta") for key, (shape, _) in shapes.items()}
    model = full_size_model(PROJECT / "configs" / f"{experiment}.py")
    plan = plan_load(model, state, experiment, resize=False)
    check_plan(plan, model, complete=True)
    assert not plan.is_doubtful


def test_names() -> None:
    name = "COCO/mask_rcnn_vit_adapter_s_deit_3x"
    assert find_trained_model(f"{name}.py") is find_trained_model(name) is TRAINED_MODELS[name]
    for config in (name, f"{name}.py", f"projects/ViTAdapter/configs/{name}.py", f"/a/{name}.py"):
        assert zoo_address(config) == f"zoo://{name}"


def test_file_in_the_working_directory(monkeypatch) -> None:
    monkeypatch.chdir(PROJECT / "configs" / "COCO")
    name = "mask_rcnn_vit_adapter_s_deit_3x"
    assert zoo_address(f"{name}.py") == f"zoo://COCO/{name}"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("COCO/mask_rcnn_vit_adapter_s_deit3x", "no experiment .*near .*/mask_rcnn_vit_adapter_s_"),
        (
            "mask_rcnn_vit_adapter_s_deit_3x",
            "no experiment .*near .*/mask_rcnn_vit_adapter_s_",
        ),
        ("", "no experiment ''; near names: none"),
        ("a" * 300, "no experiment 'a+'; near names: none"),
        (
            "COCO/mask_rcnn_vit_adapter_s_dinov3_3x",
            r"no trained model of COCO/mask_rcnn_vit_adapter_s_dinov3_3x has been published; the "
            r"nearest .*COCO/mask_rcnn_vit_adapter_s_dinov2_3x",
        ),
    ],
)
def test_names_without_weights(name: str, message: str) -> None:
    for find in (find_trained_model, zoo_address):
        with pytest.raises(ValueError, match=message):
            find(name)
