"""Whole detectors, loaded from official checkpoints that are put together from golden parts.

Backbone, neck and heads have golden files of their own, with inputs of their own: what the whole
computes is not stored. But each part computes, at its place in the loaded detector, what is stored
for it, and takes what the part before it gives.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

import pytest
import torch
from cascade_samples import build_htc, proposals_of
from detectron2.config import LazyCall as L
from detectron2.config import instantiate
from detectron2.modeling.meta_arch import GeneralizedRCNN
from golden_heads import GoldenHead, batched_inputs, check_detections
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from vitadapter.checkpoint.loading import check_plan, plan_load
from vitadapter.checkpoint.official.conversion import NameTable
from vitadapter.checkpoint.official.layouts import HTC_HEADS
from vitadapter.model_zoo import get_config
from vitadapter.modeling.backbone import ExtraAttention
from vitadapter.modeling.roi_heads import HTCROIHeads

BACKBONE = "det_vit_tiny"
# Golden files by the prefix of their names in an official checkpoint.
PARTS = {
    "atss": {"neck.": "mmdet2_fpn_atss", "bbox_head.": "mmdet2_atss"},
    "gfl": {"neck.": "mmdet2_fpn_atss", "bbox_head.": "mmdet2_gfl"},
    "htc": {"neck.1.": "mmdet2_fpn_std", "rpn_head.": "mmdet2_rpn", "roi_head.": "mmdet2_htc"},
}
# HTC++ has an attention layer before the FPN, whose golden file is of another width than the
# backbone: drawn by the same rule, it is there for the checkpoint to be complete.
EXTRA, EXTRA_WIDTH, WIDTH = "det_extra_attention", 256, 192


def _config(name: str) -> DictConfig:
    cfg = {
        "dataset": {"num_classes": 80},
        "model": get_config(f"common/models/{name}_vit_adapter.py").model,
    }
    cfg = OmegaConf.create(cfg, flags={"allow_objects": True})
    cfg.model.backbone.bottom_up = get_config("common/models/vit_adapter.py").vit_adapter_tiny
    if name == "htc":
        cfg.model.proposal_generator.post_nms_topk = (10, 10)  # a thousand take a minute
        cfg.model.backbone.bottom_up = L(ExtraAttention)(
            bottom_up=cfg.model.backbone.bottom_up, num_heads=3, ffn_ratio=4.0
        )
    cfg.model.update(pixel_mean=[0.0] * 3, pixel_std=[1.0] * 3)
    return cfg.model


def _keep_few(heads: HTCROIHeads) -> HTCROIHeads:
    """Masks of the usual hundred detections take seconds."""
    for predictor in heads.box_predictor:
        predictor.test_topk_per_image = 5
    return heads.eval()


class Whole:
    """A detector and the golden files that its checkpoint is made of."""

    def __init__(self, name: str, golden: ModuleType) -> None:
        files = {"backbone.": BACKBONE, **PARTS[name]}
        self.golden = golden
        self.parts = {prefix: golden.load(golden.path(file)) for prefix, file in files.items()}
        official = {
            prefix + key: tensor
            for prefix, (_, keys, _) in self.parts.items()
            for key, tensor in golden.make_state_dict(keys).items()
        }
        if name == "htc":
            _, keys, _ = golden.load(golden.path(EXTRA))
            keys = [[k, [n * WIDTH // EXTRA_WIDTH for n in shape], t] for k, shape, t in keys]
            extra = golden.make_state_dict(keys)
            official |= {f"neck.0.{key}": tensor for key, tensor in extra.items()}
        self.model = instantiate(_config(name)).eval()
        plan = plan_load(self.model, official, name, resize=False)
        check_plan(plan, self.model, complete=True)
        plan.apply(self.model)
        if name == "htc":
            _keep_few(self.model.roi_heads)
        assert not plan.report.unexpected

    def difference(self, prefix: str, name: str, value: Tensor) -> float:
        """Largest absolute difference from the stored output of a part."""
        return self.golden.compare(self.parts[prefix][2], "r0", name, value)["max_abs"]

    def features(self, prefix: str) -> list[Tensor]:
        """The stored inputs of a part, one per level."""
        meta = self.parts[prefix][0]
        return [
            torch.from_numpy(self.golden.make_input(meta["feature_seed"] + i, shape))
            for i, shape in enumerate(meta["levels"])
        ]


@pytest.fixture(scope="module", params=list(PARTS))
def whole(request: pytest.FixtureRequest, golden: ModuleType) -> Whole:
    return Whole(request.param, golden)


@contextmanager
def _gives(module: nn.Module, output: dict[str, Tensor]) -> Iterator[None]:
    """`module` returns `output`, whatever it is given."""
    handle = module.register_forward_hook(lambda *_: output)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _noted(module: nn.Module, notes: list[object]) -> Iterator[None]:
    """Notes input and output of `module`."""
    handle = module.register_forward_hook(lambda _, inputs, output: notes.append((inputs, output)))
    try:
        yield
    finally:
        handle.remove()


@torch.no_grad()
def test_the_backbone_at_its_place(whole: Whole) -> None:
    run = whole.parts["backbone."][0]["runs"][0]
    image = torch.from_numpy(whole.golden.make_input(run["input_seed"], run["input_shape"]))
    notes: list[tuple[tuple[Tensor], dict[str, Tensor]]] = []
    bottom_up = whole.model.backbone.bottom_up
    if isinstance(bottom_up, ExtraAttention):
        bottom_up = bottom_up.bottom_up
    with _noted(bottom_up, notes):
        whole.model([{"image": image[0]}])
    ((given,), features) = notes[0]
    assert torch.equal(given, image)  # 128 x 160 pixels are not padded
    for i, feature in enumerate(features.values()):
        assert whole.difference("backbone.", f"f{i + 1}", feature) < 5e-5


@torch.no_grad()
def test_the_neck_at_its_place(whole: Whole) -> None:
    backbone = whole.model.backbone
    (prefix,) = (prefix for prefix in whole.parts if prefix.startswith("neck."))
    names = [f"res{i}" for i in range(2, 6)]
    with _gives(backbone.bottom_up, dict(zip(names, whole.features(prefix), strict=True))):
        outputs = backbone(torch.zeros(2, 3, 128, 160))
    assert len(outputs) == 5
    for i, output in enumerate(outputs.values()):
        assert whole.difference(prefix, f"p{i}", output) < 5e-5


@torch.no_grad()
def test_the_heads_take_what_the_neck_gives(whole: Whole) -> None:
    model = whole.model
    is_r_cnn = isinstance(model, GeneralizedRCNN)
    head = model.proposal_generator.rpn_head if is_r_cnn else model.head
    neck_notes: list[tuple[object, dict[str, Tensor]]] = []
    head_notes: list[tuple[tuple[list[Tensor]], object]] = []
    with _noted(model.backbone, neck_notes), _noted(head, head_notes):
        model([{"image": torch.zeros(3, 128, 160)}])
    (features,) = head_notes[0][0]
    for given, made in zip(features, neck_notes[0][1].values(), strict=True):
        assert given is made


@torch.no_grad()
def test_the_heads_at_their_place(whole: Whole) -> None:
    """The dense detectors to their last detection, the RPN to its boxes."""
    model = whole.model
    prefix = "bbox_head." if "bbox_head." in whole.parts else "rpn_head."
    is_r_cnn = isinstance(model, GeneralizedRCNN)
    head = model.proposal_generator.rpn_head if is_r_cnn else model.head
    features = dict(zip(model.backbone.output_shape(), whole.features(prefix), strict=True))
    notes: list[tuple[object, tuple[list[Tensor], ...]]] = []
    with _gives(model.backbone, features), _noted(head, notes):
        outputs = model(batched_inputs())
    for kind, name in zip(notes[0][1], ("cls", "bbox", "centerness"), strict=False):
        for level, values in enumerate(kind):
            assert whole.difference(prefix, f"{name}{level}", values) < 5e-5
    if is_r_cnn:
        return
    for image, output in enumerate(outputs):
        found = object.__new__(GoldenHead)
        found.arrays = whole.parts[prefix][2]
        check_detections(found, image, output["instances"])


@torch.no_grad()
@pytest.mark.parametrize("whole", ["htc"], indirect=True)
def test_the_regions_at_their_place(whole: Whole) -> None:
    """Against the heads of which test_htc_golden.py proves every intermediate output."""
    golden = whole.golden
    _, keys, arrays = whole.parts["roi_head."]
    table = NameTable(HTC_HEADS)
    proven = build_htc(dim=256, fc_dim=1024, num_classes=80, score_thresh=0.001)
    proven.load_state_dict(
        {
            table.to_ours(f"roi_head.{name}").removeprefix("roi_heads."): tensor
            for name, tensor in golden.make_state_dict(keys).items()
        }
    )
    proven.nms = whole.model.roi_heads.nms
    features = dict(
        zip(whole.model.backbone.output_shape(), whole.features("roi_head."), strict=True)
    )
    boxes = [arrays["proposals0"].tolist(), arrays["proposals1"].tolist()]
    ours, theirs = (
        heads(None, features, proposals_of(boxes))[0]
        for heads in (whole.model.roi_heads, _keep_few(proven))
    )
    for found, expected in zip(ours, theirs, strict=True):
        assert len(found) == len(expected) > 0
        assert torch.equal(found.scores, expected.scores)
        assert torch.equal(found.pred_boxes.tensor, expected.pred_boxes.tensor)
        assert torch.equal(found.pred_masks, expected.pred_masks)
