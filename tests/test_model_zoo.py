"""The model zoo page tells the truth about the configs of projects/ViTAdapter."""

import json
import re
from pathlib import Path

import pytest
import timm
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import instantiate
from project_configs import CONFIGS, PROJECT, count_parameters, full_size_model, load
from torch import nn

PAGE = PROJECT / "README.md"
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")

Row = dict[str, str]


def _rows() -> list[tuple[Path, Row]]:
    """Each table row that starts with a link to a config: the config, and cells by column."""
    rows = []
    header: list[str] = []
    for line in PAGE.read_text().splitlines():
        if not line.startswith("|"):
            header = []
            continue
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if not header:
            header = cells
        elif set(line) > set("|-"):
            (target,) = LINK.findall(cells[0])
            rows.append((PROJECT / target, dict(zip(header, cells, strict=True))))
    return rows


ROWS = _rows()
each_row = pytest.mark.parametrize(
    ("path", "row"), ROWS, ids=lambda value: value.stem if isinstance(value, Path) else ""
)


def test_every_config_is_linked_once() -> None:
    linked = [link for link in LINK.findall(PAGE.read_text()) if link.startswith("configs/")]
    assert sorted(PROJECT / link for link in linked) == CONFIGS
    assert sorted(path for path, _ in ROWS) == CONFIGS


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
def test_parameters_are_measured(path: Path, row: Row) -> None:
    assert row["#params (M)"] == f"{count_parameters(full_size_model(path)) / 1e6:.3f}"


@each_row
def test_row_names_its_config(path: Path, row: Row) -> None:
    backbone, size = re.match(r"\[(.+)-([TSBL])\]", row["name"]).groups()
    words = [backbone.lower().replace("-", "_"), size.lower()]
    if "schedule" in row:
        words += [row["pre-training"].split(",")[0].lower(), row["schedule"].removesuffix("+MS")]
    assert re.fullmatch(r"(mask|faster)_rcnn_" + "_".join(words), path.stem)


@each_row
def test_published_figures_are_the_papers(path: Path, row: Row, shared: Path) -> None:
    """Rows with published figures are those of table 1, and carry its figures."""
    tables = json.loads((shared / "reference" / "paper_tables.json").read_text())
    published = {r["method"]: r for r in tables["table_1"]["rows"]}
    if not path.match("COCO/mask_rcnn_*"):
        assert not any("paper" in column for column in row)
        return
    paper = published[row["name"].split("]")[0].removeprefix("[")]
    ap = paper[{"1x": "sched_1x", "3x+MS": "sched_3x_MS"}[row["schedule"]]]
    assert float(row["box AP (paper)"]) == ap["AP_b"]
    assert float(row["mask AP (paper)"]) == ap["AP_m"]
    # The paper has 43.8 for 43.747.
    assert float(row["#params (M)"]) == pytest.approx(paper["params_M"], abs=0.06)
    assert row["pre-training"].split(", ")[1] in paper["pretrain"]


def test_the_recipe_for_pretrained_weights_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    source, target = re.findall(r'"([^"]+\.pth)"', code)
    # timm's DeiT has the names and shapes of the original files.
    deit = timm.create_model("deit_small_patch16_224", pretrained=False)
    monkeypatch.chdir(tmp_path)
    torch.save({"model": deit.state_dict()}, source)
    exec(compile(code, str(PAGE), "exec"), {})

    config = next(p for p in CONFIGS if p.stem == "mask_rcnn_vit_adapter_s_deit_1x")
    bottom_up = instantiate(load(config).model.backbone.bottom_up)
    model = nn.ModuleDict({"backbone": nn.ModuleDict({"bottom_up": bottom_up})})
    DetectionCheckpointer(model).load(target)
    expected = deit.state_dict()
    loaded = {n: t for n, t in bottom_up.net.state_dict().items() if "gamma" not in n}
    assert set(expected) - set(loaded) == {
        "cls_token",
        "norm.weight",
        "norm.bias",
        "head.weight",
        "head.bias",
    }
    assert all(torch.equal(tensor, expected[name]) for name, tensor in loaded.items())
