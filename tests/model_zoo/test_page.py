"""The model zoo page tells the truth about the configs of projects/ViTAdapter."""

import json
import re
from pathlib import Path

import pytest
from official_recipes import recipe_name
from project_configs import (
    CONFIGS,
    PANOPTIC_CONFIGS,
    PROJECT,
    SEGMENTATION_CONFIGS,
    TESTS,
    VARIANTS,
    count_parameters,
    full_size_model,
    load,
)
from segmentation_recipes import PANOPTIC_RECIPES, RECIPES
from torch import nn
from zoo_rows import LINK, PAGE, ROWS, Row

from vitadapter.analysis import analyze_model
from vitadapter.engine.inference import build_inference
from vitadapter.model_zoo.trained_models import TRAINED_MODELS

# Schedules as the page names them, in the words of file names.
SCHEDULES = {
    "1x": "1x",
    "3x+MS": "3x",
    "LSJ, 25 epochs": "lsj_25ep",
    "LSJ, 50 epochs": "lsj_50ep",
    "LSJ, 100 epochs": "lsj_100ep",
    "3x+MS, old features": "3x_old",
    "Objects365, then COCO": "o365",
}
HEADS = {
    "Mask R-CNN": "mask_rcnn",
    "Faster R-CNN": "faster_rcnn",
    "ATSS": "atss",
    "GFL": "gfl",
    "Sparse R-CNN": "sparse_rcnn",
    "Cascade Mask R-CNN": "cascade_mask_rcnn",
    "HTC++": "htcpp",
    "UPerNet": "upernet",
    "SETR-PUP": "setr_pup",
    "Semantic FPN": "semantic_fpn",
    "Mask2Former": "mask2former",
}
PUBLISHED = {
    "box AP": "box_AP",
    "mask AP": "mask_AP",
    "PQ": "PQ",
    "PQ things": "PQ_thing",
    "PQ stuff": "PQ_stuff",
}
NAME = re.compile(r"\[((?P<head>[^\]]+), )?(?P<net>ViT|ViTDet|ViT-Adapter)-(?P<size>[TSBL])\b.*\]")
TABLE_1 = re.compile(r"mask_rcnn_(vit|vitdet|vit_adapter)_([tsb]_deit|l_augreg)_[13]x")
# Rows of the paper's table 2 without an official recipe.
TABLE_2_ONLY = ("cascade_mask_rcnn_vit_s_deit_3x", "atss_vit_s_deit_3x", "gfl_vit_s_deit_3x")

each_row = pytest.mark.parametrize(
    ("path", "test", "row"), ROWS, ids=[path.stem + test for path, test, _ in ROWS]
)


def test_every_config_has_one_row() -> None:
    linked = {link for link in LINK.findall(PAGE.read_text()) if link.startswith("configs/")}
    configs = sorted(CONFIGS + PANOPTIC_CONFIGS + SEGMENTATION_CONFIGS)
    assert {PROJECT / link for link in linked} == set(configs)
    assert sorted(path for path, test, _ in ROWS if not test) == configs
    rows = [(path, test) for path, test, _ in ROWS]
    assert len(set(rows)) == len(rows)


def test_links_resolve() -> None:
    targets = [link for link in LINK.findall(PAGE.read_text()) if "://" not in link]
    headings = re.findall(r"^#+ (.*)$", PAGE.read_text(), flags=re.MULTILINE)
    anchors = {f"#{heading.lower().replace(' ', '-')}" for heading in headings}
    missing = [t for t in targets if t not in anchors and not (PROJECT / t).is_file()]
    assert len(targets) > len(CONFIGS)
    assert missing == []


def test_commands_name_files_that_exist(repository: Path) -> None:
    named = re.findall(r"(?:projects|scripts)/[\w/]+\.(?:py|sh)", PAGE.read_text())
    assert named
    assert [name for name in named if not (repository / name).is_file()] == []


@each_row
def test_trained_models_are_linked(path: Path, test: str, row: Row) -> None:
    trained = TRAINED_MODELS.get(f"{path.parent.name}/{path.stem}")
    assert row.get("trained", "-") == ("-" if trained is None else f"[model]({trained.url})")


def test_no_column_of_models_or_results_is_empty() -> None:
    filled: dict[tuple[str, ...], bool] = {}
    for _, _, row in ROWS:
        for name in row:
            if name == "trained" or name.endswith("(ours)"):
                column = (*row, name)
                filled[column] = filled.get(column, False) or row[name] != "-"
    assert len(filled) > 5
    assert all(filled.values())


@each_row
def test_parameters_are_measured(path: Path, test: str, row: Row) -> None:
    model = full_size_model(path, test if test in VARIANTS else "")
    assert row["#params (M)"] == f"{count_parameters(model) / 1e6:.3f}"


@pytest.mark.parametrize(("path", "test", "row"), [each for each in ROWS if "GFLOPs" in each[2]])
def test_flops_are_measured(path: Path, test: str, row: Row) -> None:
    """Within a percent of the paper's."""
    flops = analyze_model(load(path, test), (800, 1280)).total.flops.total() / 1e9
    assert row["GFLOPs"] == f"{flops:.1f}"
    assert flops == pytest.approx(float(row["GFLOPs (paper)"]), rel=0.01)


class _Model(nn.Module):
    """What test-time augmentation is put around."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Identity()


@pytest.mark.parametrize(
    ("path", "test"),
    [(path, test) for path, test, _ in ROWS if test in TESTS],
    ids=[path.stem + test for path, test, _ in ROWS if test in TESTS],
)
def test_augmented_rows_name_what_switches_it_on(path: Path, test: str) -> None:
    cfg, model = load(path, test), _Model()
    assert build_inference(load(path), model).tta is None
    tta = build_inference(cfg, model).tta
    assert tta.model is model
    # The scales are made from the whole image.
    assert cfg.dataloader.test.mapper.augmentations == []


@each_row
def test_row_names_its_config(path: Path, test: str, row: Row) -> None:
    name = NAME.match(row["name"])
    words = [*name["net"].lower().split("-"), name["size"].lower()]
    words += HEADS[name["head"]].split("_") if name["head"] is not None else []
    if "schedule" in row or "settings" in row:
        pretraining = row["pre-training"].split(",")[0].lower().replace("-", "")
        words += [pretraining] if pretraining != "none" else []
        words += SCHEDULES[row["schedule"]].split("_") if "schedule" in row else []
        words += row.get("settings", "-").replace("-", "").split()
    assert set(words) <= set(path.stem.split("_"))


def _ablation(path: Path, test: str, tables: dict[str, dict[str, list[dict]]]) -> dict | None:
    """The row of the paper's table 6 or 7 for a variant of the baseline or of the adapter."""
    table_6 = tables["table_6"]
    components = {row["method"].lower().replace(" ", ""): row for row in table_6["components"]}
    variants = {f"_n{row['N']}": row for row in table_6["num_interactions"]}
    variants |= {f"_{row['attention'].lower()}": row for row in tables["table_7"]["rows"]}
    return components.get(path.stem.split("_")[-1]) or variants.get(test)


@each_row
def test_published_figures(
    path: Path, test: str, row: Row, recipes: dict[str, dict], shared: Path
) -> None:
    """Those of the paper's table 1, else those of the official recipe; "-" where there are none."""
    columns = [column for column in row if column.endswith("(paper)")]
    tables = json.loads((shared / "reference" / "paper_tables.json").read_text())
    experiment = f"{path.parent.name}/{path.stem}{test}"
    name = recipe_name(path.with_stem(path.stem + test))
    name = name or (RECIPES | PANOPTIC_RECIPES).get(experiment)
    published = recipes[name]["published"] if name in recipes else {}
    expected = {title: published.get(key) for title, key in PUBLISHED.items()}
    if "settings" in row:
        expected = {"mIoU": published.get("mIoU_ms" if test == "_ms" else "mIoU_ss")}
        if expected["mIoU"] is None:  # tables 3, 9 and 11, or nothing
            return
    if path.stem in TABLE_2_ONLY:
        framework = tables["table_2"]["frameworks"][NAME.match(row["name"])["head"]]
        (paper,) = (r for r in framework if r["method"] == "ViT-S")
        expected["box AP"] = paper["AP_b"]
        assert round(float(row["#params (M)"])) == paper["params_M"]
    if path.stem.startswith("cascade_mask_rcnn_vitdet_l_"):
        (paper,) = (r for r in tables["table_8"]["rows"] if r["method"] == "ViTDet-L")
        tested = paper["val_MS" if test == "_ms" else "val"]
        expected = {"box AP": tested["AP_b"], "mask AP": tested["AP_m"]}
    table_1 = {r["method"]: r for r in tables["table_1"]["rows"]}
    paper = table_1.get(row["name"].split("]")[0].removeprefix("["))
    if path.stem == "mask_rcnn_vit_adapter_b_augreg_3x":
        (paper,) = (
            r
            for r in tables["table_4"]["rows"]
            if r["method"] == "ViT-Adapter-B" and r["pretrain"] == "ImageNet-22K"
        )
        expected = {"box AP": paper["AP_b"], "mask AP": paper["AP_m"]}
    elif TABLE_1.fullmatch(path.stem) and path.parent.name == "COCO" and test not in VARIANTS:
        ap = paper[{"1x": "sched_1x", "3x+MS": "sched_3x_MS"}[row["schedule"]]]
        expected = {"box AP": ap["AP_b"], "mask AP": ap["AP_m"]}
        # The paper has 43.8 for 43.747.
        assert float(row["#params (M)"]) == pytest.approx(paper["params_M"], abs=0.06)
        assert row["pre-training"].split(", ")[1] in paper["pretrain"]
    if paper := _ablation(path, test, tables):
        expected = {
            "box AP": paper["AP_b"],
            "mask AP": paper["AP_m"],
            "GFLOPs": paper.get("GFLOPs"),
        }
        assert f"{float(row['#params (M)']):.1f}" == str(paper["params_M"])
    for column in columns:
        figure = expected[column.removesuffix(" (paper)")]
        assert row[column] == ("-" if figure is None else str(figure)), column


def test_augreg_of_table_9(shared: Path) -> None:
    tables = json.loads((shared / "reference" / "paper_tables.json").read_text())
    (paper,) = (
        row
        for row in tables["table_9"]["rows"]
        if row["method"] == "ViT-Adapter-L" and row["backbone_pretrain"] == "IN-22K, sup"
    )
    rows = {p.stem + test: row for p, test, row in ROWS if "l_augreg_640" in p.stem}
    cells = {name: row["mIoU (paper)"] for name, row in rows.items()}
    name = f"mask2former_vit_adapter_l_augreg_{paper['crop']}_{paper['iterations'] // 1000}k"
    assert cells == {name: str(paper["mIoU"]), f"{name}_ms": str(paper["mIoU_ms"])}
