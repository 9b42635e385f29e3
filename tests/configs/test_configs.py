"""Every experiment of projects/ loads, builds at full size, and trains when cut down.

How the configs follow the official recipes is in test_recipes.py.
"""

import ast
import functools
import re
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from detectron2.config import LazyConfig, instantiate
from detectron2.data import transforms as T
from detectron2.structures import Boxes, BoxMode, Instances, PolygonMasks
from detectron2.utils.events import EventStorage
from omegaconf import DictConfig, ListConfig, OmegaConf
from PIL import Image
from project_configs import ALL_CONFIGS, CONFIGS, heads_of, load, net_wrapper, shrink
from timm.models import get_pretrained_cfg
from torch import nn

from vitadapter.engine.checkpoint import check_weights_exist
from vitadapter.model_zoo import get_config, load_experiment

SIZE = 64  # pixels
COCO_BASE = next(path for path in CONFIGS if path.stem == "mask_rcnn_vit_adapter_s_deit_1x")


def _name(path: Path) -> str:
    return f"{path.parent.name}/{path.stem}"


each_config = pytest.mark.parametrize("path", CONFIGS, ids=_name)
# Detectors of one stage, Sparse R-CNN and segmenters train in tests of their own.
each_r_cnn = pytest.mark.parametrize(
    "path",
    [path for path in CONFIGS if re.match(r"(cascade_)?(mask|faster)_rcnn_|htcpp_", path.stem)],
    ids=_name,
)


def test_the_rows_of_table_1_are_there() -> None:
    rows = {
        f"mask_rcnn_{backbone}_{size}_{schedule}"
        for backbone in ("vit", "vitdet", "vit_adapter")
        for size in ("t_deit", "s_deit", "b_deit", "l_augreg")
        for schedule in ("1x", "3x")
    }
    assert rows <= {path.stem for path in CONFIGS if path.parent.name == "COCO"}


def test_the_rows_of_tables_2_and_8_are_there() -> None:
    rows = {f"{head}_{net}_s_deit_3x" for head in ("atss", "gfl") for net in ("vit", "vit_adapter")}
    rows |= {
        f"cascade_mask_rcnn_{net}_{size}_deit_3x"
        for net in ("vit", "vit_adapter")
        for size in ("s", "b")
    }
    rows.add("cascade_mask_rcnn_vitdet_l_mae_lsj_100ep")
    rows |= {f"htcpp_vit_adapter_l_{pretrain}_3x" for pretrain in ("augreg", "beit", "beitv2")}
    assert rows <= {path.stem for path in CONFIGS if path.parent.name == "COCO"}


@pytest.mark.parametrize("path", ALL_CONFIGS, ids=_name)
def test_has_what_the_training_script_reads(path: Path) -> None:
    cfg = load(path)
    assert {"model", "dataset", "dataloader", "optimizer", "lr_multiplier", "train"} <= set(cfg)
    assert {"train", "test", "evaluator"} <= set(cfg.dataloader)
    assert Path(cfg.train.output_dir) == Path("output", path.parent.name, path.stem)
    assert cfg.dataloader.evaluator.output_dir.startswith(cfg.train.output_dir)
    # Detectron2 asks for the rate after the last iteration, too.
    multiplier = instantiate(cfg.lr_multiplier)
    assert 0 <= multiplier(1.0) <= multiplier(0.5) <= 1


@each_config
def test_the_pretrained_weights_are_of_the_nets_size(path: Path) -> None:
    cfg = load(path)
    name = cfg.train.init_checkpoint
    if not name.startswith("timm://"):
        if path.parent.name == "Digits":
            assert name == ""
        else:  # what timm does not have, which is compared with the recipes elsewhere
            assert re.search("uniperceiver|o365", path.stem)
            check_weights_exist(name)
        return
    tag = name.removeprefix("timm://")
    assert get_pretrained_cfg(tag) is not None, "timm has no such weights"
    net = net_wrapper(cfg).net
    assert _size_in_timm(tag.partition(".")[0]) == (net.embed_dim, net.depth)


@functools.cache
def _size_in_timm(name: str) -> tuple[int, int]:
    with torch.device("meta"):
        model = timm.create_model(name)
    return model.embed_dim, len(model.blocks)


def test_no_config_imports_another_by_its_absolute_name(repository: Path) -> None:
    """Such a module is shared with all later loads, and so are the edits of the files on it."""
    for path in [*repository.glob("configs/**/*.py"), *repository.glob("projects/**/*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                modules = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            assert not any(name.startswith("vitadapter.configs") for name in modules), path


def _overwrite(node: DictConfig | ListConfig) -> None:
    """Replaces every leaf of a config."""
    for key in range(len(node)) if isinstance(node, ListConfig) else list(node):
        child = node._get_node(key)
        if isinstance(child, DictConfig | ListConfig) and child._value() is not None:
            _overwrite(child)
        else:
            node[key] = -1  # some nodes only take integers


@pytest.mark.parametrize("path", CONFIGS[::10], ids=_name)
def test_edits_do_not_leak_into_later_loads(path: Path) -> None:
    cfg = load_experiment(path)
    before = repr(cfg)
    _overwrite(cfg)
    assert net_wrapper(cfg).net.embed_dim == cfg.optimizer.lr == -1
    assert repr(load_experiment(path)) == before


def _batch(with_masks: bool, num_classes: int) -> list[dict[str, object]]:
    """Two random images with a square and a triangle each."""
    shapes = [[8.0, 8.0, 32.0, 8.0, 32.0, 32.0, 8.0, 32.0], [30.0, 60.0, 60.0, 60.0, 45.0, 20.0]]
    batch = []
    for _ in range(2):
        instances = Instances((SIZE, SIZE))
        instances.gt_boxes = Boxes(torch.tensor([[8.0, 8.0, 32.0, 32.0], [30.0, 20.0, 60.0, 60.0]]))
        instances.gt_classes = torch.tensor([0, num_classes - 1])
        if with_masks:
            instances.gt_masks = PolygonMasks([[np.array(shape)] for shape in shapes])
        image = torch.randint(0, 256, (3, SIZE, SIZE), dtype=torch.uint8)
        batch.append({"image": image, "instances": instances, "height": 2 * SIZE, "width": SIZE})
    return batch


def _has_masks(cfg: DictConfig) -> bool:
    return len(heads_of(cfg.model.roi_heads, "mask_head")) > 0


def _losses(roi_heads: DictConfig) -> set[str]:
    """Names of the losses that these heads have, with those of the RPN."""
    names = ["loss_cls", "loss_box_reg"]
    names += ["loss_mask"] if "mask_heads" in roi_heads else []
    if "box_heads" in roi_heads:
        stages = range(len(roi_heads.box_heads))
        names = [f"{name}_stage{stage}" for name in names for stage in stages]
    # Of Detectron2's own heads, one mask head even in a cascade.
    if "mask_heads" not in roi_heads and heads_of(roi_heads, "mask_head"):
        names.append("loss_mask")
    names += ["loss_sem_seg"] if "semantic_head" in roi_heads else []
    return {"loss_rpn_cls", "loss_rpn_loc", *names}


def _train_one_step(cfg: DictConfig) -> nn.Module:
    """Builds model and optimizer as Detectron2's training script does, and takes a step."""
    torch.manual_seed(0)
    model = instantiate(cfg.model).train()
    cfg.optimizer.params.model = model
    optimizer = instantiate(cfg.optimizer)
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    with EventStorage():
        losses = model(_batch(_has_masks(cfg), cfg.dataset.num_classes))
    assert set(losses) == _losses(cfg.model.roi_heads)
    sum(losses.values()).backward()
    # A parameter without gradient stops distributed training.
    assert [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
    optimizer.step()
    for name, value in model.named_parameters():
        assert value.isfinite().all(), name
        moved = (value != before[name]).any()
        if not value.requires_grad:
            assert not moved, name
        else:
            # AdamW divides by at least its eps of 1e-8, which keeps less from moving anything.
            assert moved or value.grad.abs().max() < 1e-8, name
    return model


def _check_inference(model: nn.Module, with_masks: bool) -> None:
    model.eval()
    with torch.no_grad():
        (output,) = model([{**_batch(False, 1)[0], "height": 2 * SIZE, "width": SIZE}])
    found = output["instances"]
    assert len(found) > 0
    assert found.scores.isfinite().all()
    boxes = found.pred_boxes.tensor
    assert boxes.isfinite().all()
    assert (boxes >= 0).all()
    assert boxes[:, 0::2].max() <= SIZE
    assert boxes[:, 1::2].max() <= 2 * SIZE
    assert found.has("pred_masks") == with_masks
    if with_masks:
        assert found.pred_masks.shape == (len(found), 2 * SIZE, SIZE)


def _kind(node: object) -> object:
    """What a config is but for its numbers."""
    if isinstance(node, DictConfig):
        return frozenset((key, _kind(node[key])) for key in node)
    if isinstance(node, ListConfig):
        return frozenset(map(_kind, node))
    return "number" if type(node) in (int, float) else str(node)


@pytest.fixture(scope="module")
def trained() -> set[object]:
    """The kinds of models and optimizers of which a small copy has been trained."""
    return set()


@each_r_cnn
def test_a_small_copy_trains_and_predicts(path: Path, trained: set[object]) -> None:
    """One of each kind: sizes and schedules make no difference to copies of equal size."""
    cfg = shrink(load(path))
    kind = _kind(cfg.model), _kind(cfg.optimizer)
    if kind not in trained:
        _check_inference(_train_one_step(cfg), _has_masks(cfg))
        trained.add(kind)


@pytest.mark.parametrize("name", ["mask_rcnn_vitdet", "mask_rcnn_vit_adapter"])
def test_a_model_base_fits_any_experiment(name: str) -> None:
    """The bases that no experiment uses unchanged, such as Detectron2's own feature pyramid."""
    cfg = load(COCO_BASE)
    cfg.model = get_config(f"common/models/{name}.py").model
    _check_inference(_train_one_step(shrink(cfg)), with_masks=True)


@each_r_cnn
def test_the_classes_are_one_override(path: Path) -> None:
    cfg = LazyConfig.apply_overrides(load(path), ["dataset.num_classes=7"])
    with torch.device("meta"):
        heads = instantiate(cfg.model.roi_heads)
    assert heads.num_classes == 7
    configs = heads_of(cfg.model.roi_heads, "box_predictor")
    is_cascade = "box_heads" in cfg.model.roi_heads
    predictors = heads.box_predictor if is_cascade else [heads.box_predictor]
    for predictor, config in zip(predictors, configs, strict=True):
        assert predictor.cls_score.out_features == 7 + 1
        box_classes = 1 if config.get("cls_agnostic_bbox_reg", False) else 7
        assert predictor.bbox_pred.out_features == box_classes * 4
    if _has_masks(cfg):
        has_several = "mask_heads" in cfg.model.roi_heads
        for mask_head in heads.mask_head if has_several else [heads.mask_head]:
            assert mask_head.predictor.out_channels == 7
    assert cfg.dataloader.train.dataset.num_classes == 7
    assert cfg.dataloader.test.dataset.num_classes == 7


@each_config
def test_an_override_reaches_everything_that_depends_on_it(path: Path) -> None:
    overrides = [
        "dataset.train.json_file=a.json",
        "dataset.test.json_file=b.json",
        "dataset.test.image_root=b",
        "model.input_format=BGR",
        "optimizer.lr=0.125",
        "optimizer.weight_decay=0.5",
        "train.max_iter=5000",
        "train.output_dir=there",
    ]
    cfg = LazyConfig.apply_overrides(load(path), overrides)
    net_wrapper(cfg).net.drop_path_rate = 0.25
    loader = cfg.dataloader
    assert loader.train.dataset.json_file == "a.json"
    assert loader.test.dataset.json_file == loader.evaluator.json_file == "b.json"
    assert loader.test.dataset.image_root == loader.evaluator.image_root == "b"
    assert loader.train.mapper.image_format == loader.test.mapper.image_format == "BGR"
    assert net_wrapper(cfg).get("drop_path_rate", 0.25) == 0.25
    assert (cfg.optimizer.params.base_lr, cfg.optimizer.params.weight_decay) == (0.125, 0.5)
    assert cfg.lr_multiplier.max_iter == 5000
    assert loader.evaluator.output_dir.startswith("there")


@each_config
def test_the_mappers_read_an_annotated_image(path: Path, tmp_path: Path) -> None:
    file_name = tmp_path / "image.png"
    pixels = np.random.default_rng(0).integers(0, 256, (240, 320, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file_name)
    annotation = {
        "bbox": [100.0, 60.0, 120.0, 120.0],
        "bbox_mode": BoxMode.XYWH_ABS,
        "category_id": 3,
        "segmentation": [[100.0, 60.0, 220.0, 60.0, 220.0, 180.0, 100.0, 180.0]],
        "iscrowd": 0,
    }
    record = {"file_name": str(file_name), "height": 240, "width": 320, "annotations": [annotation]}
    cfg = load(path)

    tested = instantiate(cfg.dataloader.test.mapper)(record)["image"]
    size = (240, 320)
    for step in cfg.dataloader.test.mapper.augmentations:
        size = T.ResizeShortestEdge.get_output_shape(*size, step.short_edge_length, step.max_size)
    assert tested.shape == (3, *size)

    trained = instantiate(cfg.dataloader.train.mapper)(record)
    assert trained["image"].dtype == torch.uint8
    mapper = OmegaConf.to_container(cfg.dataloader.train.mapper, resolve=True)
    sizes = re.findall(r"'(?:max_size|target_width)': (\d+)", str(mapper))
    assert max(trained["image"].shape) <= max(map(int, sizes))
    assert trained["instances"].image_size == tuple(trained["image"].shape[1:])
    assert trained["instances"].has("gt_masks") == cfg.dataloader.train.dataset.masks
