"""Labels of HTC's semantic branch, whole tiny detectors, and HTC's matcher."""

import numpy as np
import pytest
import torch
from detectron2.config import instantiate
from detectron2.modeling.matcher import Matcher
from detectron2.structures import BitMasks, Boxes, Instances, PolygonMasks
from detectron2.utils.events import EventStorage
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import DictConfig
from torch import Tensor

from vitadapter.model_zoo import get_config
from vitadapter.modeling.roi_heads import BestProposalMatcher
from vitadapter.modeling.roi_heads.htc import HybridTaskCascade, rasterize_things

SIZE = (64, 96)  # height, width
CLASSES = 5
BACKGROUND = 182


def _polygon(x0: float, y0: float, x1: float, y1: float) -> np.ndarray:
    return np.array([x0, y0, x1, y0, x1, y1, x0, y1], dtype=np.float64)


def _instances(
    boxes: list[list[int]], classes: list[int], size: tuple[int, int] = SIZE, bitmasks: bool = False
) -> Instances:
    """With masks that fill the boxes."""
    polygons = PolygonMasks([[_polygon(*box)] for box in boxes])
    instances = Instances(size)
    instances.gt_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).view(-1, 4))
    instances.gt_classes = torch.tensor(classes, dtype=torch.int64)
    instances.gt_masks = (
        BitMasks.from_polygon_masks(polygons, *size) if bitmasks and boxes else polygons
    )
    return instances


@pytest.mark.parametrize("bitmasks", [False, True])
def test_things_are_painted_smaller_ones_on_top(bitmasks: bool) -> None:
    boxes = [[40, 16, 56, 32], [24, 8, 72, 56], [0, 0, 16, 16]]
    labels = rasterize_things(
        _instances(boxes, [3, 1, 4], bitmasks=bitmasks),
        stride=8,
        num_classes=CLASSES,
        background=BACKGROUND,
    )
    expected = torch.full((8, 12), BACKGROUND)
    expected[1:7, 3:9] = 1
    expected[2:4, 5:7] = 3
    expected[0:2, 0:2] = 4
    assert torch.equal(labels, expected)


def test_both_forms_of_masks_give_the_same_labels() -> None:
    generator = np.random.default_rng(0)
    corners = generator.integers(0, 40, (12, 2))
    boxes = np.concatenate([corners, corners + generator.integers(3, 24, (12, 2))], 1).tolist()
    arguments = {"stride": 8, "num_classes": 12, "background": BACKGROUND}
    a, b = (
        rasterize_things(_instances(boxes, list(range(12)), bitmasks=form), **arguments)
        for form in (False, True)
    )
    assert (a == b).float().mean() > 0.97


def test_no_things_and_odd_sizes() -> None:
    labels = rasterize_things(
        _instances([], [], size=(61, 75)), stride=8, num_classes=CLASSES, background=BACKGROUND
    )
    assert labels.shape == (8, 10)
    assert (labels == BACKGROUND).all()


def test_things_that_cannot_be_painted() -> None:
    arguments = {"stride": 8, "num_classes": CLASSES, "background": BACKGROUND}
    with pytest.raises(ValueError, match=r"classes must be in 0\.\.4, got \[0, 5\]"):
        rasterize_things(_instances([[0, 0, 9, 9]] * 2, [0, 5]), **arguments)
    instances = _instances([[0, 0, 9, 9]], [0])
    instances.remove("gt_masks")
    with pytest.raises(ValueError, match="needs instance masks"):
        rasterize_things(instances, **arguments)


def _tiny_config() -> DictConfig:
    cfg = get_config("common/models/htc_vit_adapter.py").model
    cfg.backbone.out_channels = 16
    net = cfg.backbone.bottom_up.net
    net.update(embed_dim=32, depth=4, num_heads=2, window_block_indexes=[0], drop_path_rate=0.0)
    cfg.backbone.bottom_up.deform_num_heads = 4
    cfg.proposal_generator.head.in_channels = 16
    heads = cfg.roi_heads
    heads.num_classes = CLASSES
    for box_head, predictor, mask_head in zip(
        heads.box_heads, heads.box_predictors, heads.mask_heads, strict=True
    ):
        box_head.input_shape.channels = 16
        box_head.update(conv_dims=[16], fc_dims=[16])
        predictor.input_shape.channels = 16
        predictor.test_score_thresh = 0.0
        mask_head.input_shape.channels = 16
        mask_head.conv_dims = [16, 16]
    heads.semantic_head.update(in_channels=16, conv_dim=16)
    return cfg


@pytest.fixture(scope="module")
def model() -> HybridTaskCascade:
    torch.manual_seed(0)
    return instantiate(_tiny_config())


def _batch(with_map: tuple[bool, bool] = (False, False)) -> list[dict[str, object]]:
    """Two images of different sizes."""
    batch = []
    for size, mapped in zip([(64, 96), (50, 75)], with_map, strict=True):
        instances = _instances([[8, 8, 40, 40], [32, 16, 72, 48]], [0, CLASSES - 1], size)
        image = torch.randint(0, 256, (3, *size), dtype=torch.uint8)
        batch.append({"image": image, "instances": instances})
        if mapped:
            batch[-1]["sem_seg"] = torch.randint(0, 183, size)
    return batch


def _labels(model: HybridTaskCascade, batch: list[dict[str, object]]) -> torch.Tensor:
    return model._semantic_labels(batch, model.preprocess_image(batch))


def test_labels_are_every_eighth_pixel_of_the_maps_and_padding_is_ignored(model) -> None:
    batch = _batch((True, True))
    labels = _labels(model, batch)
    assert labels.shape == (2, 8, 12)
    assert torch.equal(labels[0], batch[0]["sem_seg"][::8, ::8])
    # 50 x 75 pixels are padded to 64 x 96.
    assert torch.equal(labels[1, :7, :10], batch[1]["sem_seg"][::8, ::8])
    assert (labels[1, 7:] == 255).all()
    assert (labels[1, :, 10:] == 255).all()


def test_without_maps_labels_are_the_things(model) -> None:
    labels = _labels(model, _batch())
    assert labels[0].unique().tolist() == [0, CLASSES - 1, BACKGROUND]
    assert labels[1].unique().tolist() == [0, CLASSES - 1, BACKGROUND, 255]


def test_labels_that_cannot_be(model) -> None:
    with pytest.raises(ValueError, match=r"all images of a batch .* or none, got 1 of 2"):
        _labels(model, _batch((True, False)))
    batch = _batch((True, True))
    batch[1]["sem_seg"][0, 0] = 183
    batch[1]["sem_seg_file_name"] = "maps/b.png"
    rule = r"in 0\.\.182 or 255 \(ignored\), got \[183\] in maps/b\.png"
    with pytest.raises(ValueError, match=rule):
        _labels(model, batch)
    batch[1]["sem_seg"] = batch[1]["sem_seg"][:40]
    with pytest.raises(ValueError, match=r"got \(40, 75\) for \(50, 75\)"):
        _labels(model, batch)


def test_things_need_a_class_for_the_background() -> None:
    cfg = _tiny_config()
    cfg.roi_heads.semantic_head.num_classes = CLASSES
    with pytest.raises(ValueError, match="more than 5 classes, got 5"):
        _labels(instantiate(cfg), _batch())


@pytest.mark.parametrize("with_map", [(False, False), (True, True)], ids=["things", "maps"])
def test_trains(model: HybridTaskCascade, with_map: tuple[bool, bool]) -> None:
    model.train()
    model.zero_grad()
    with EventStorage():
        losses = model(_batch(with_map))
    assert {"loss_rpn_cls", "loss_rpn_loc", "loss_sem_seg"} <= set(losses)
    assert len(losses) == 12
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


@torch.no_grad()
def test_results_do_not_depend_on_the_batch(model: HybridTaskCascade) -> None:
    model.eval()
    torch.manual_seed(1)
    batch = _batch()
    # Of the same padded size: what surrounds an image is visible to it.
    together = model(batch)
    for alone, output in zip((model([x])[0] for x in batch), together, strict=True):
        a, b = alone["instances"], output["instances"]
        assert len(a) == len(b) > 0
        torch.testing.assert_close(a.scores, b.scores)
        torch.testing.assert_close(a.pred_boxes.tensor, b.pred_boxes.tensor, atol=1e-3, rtol=1e-4)


def _plain_assignment(
    ious: Tensor, threshold: float, min_quality: float
) -> tuple[list[int], list[int]]:
    """The official assignment, one box and one ground truth at a time."""
    matches, labels = [], []
    for column in ious.T.tolist():
        best = max(range(len(column)), key=lambda i: column[i])
        matches.append(best)
        labels.append(int(column[best] >= threshold))
    for truth, row in enumerate(ious.tolist()):
        if max(row) >= min_quality:
            for proposal, iou in enumerate(row):
                if iou == max(row):
                    matches[proposal], labels[proposal] = truth, 1
    return matches, labels


# Few different values, so that there are many ties.
@settings(max_examples=60, deadline=None)
@given(st.data(), st.integers(1, 5), st.integers(1, 7), st.sampled_from([0.3, 0.5, 0.7]))
def test_the_matcher_equals_a_plain_loop(
    data, truths: int, proposals: int, min_quality: float
) -> None:
    values = st.sampled_from([0.0, 0.2, 0.4, 0.5, 0.6, 0.9, 1.0])
    numbers = data.draw(st.lists(values, min_size=truths * proposals, max_size=truths * proposals))
    ious = torch.tensor(numbers).view(truths, proposals)
    matches, labels = BestProposalMatcher([0.5], [0, 1], min_quality=min_quality)(ious)
    assert (matches.tolist(), labels.tolist()) == _plain_assignment(ious, 0.5, min_quality)
    assert labels.dtype == Matcher([0.5], [0, 1])(ious)[1].dtype


def test_a_proposal_changes_hands() -> None:
    """Detectron2 leaves it with the ground truth that it overlaps most."""
    ious = torch.tensor([[0.9, 0.8, 0.1], [0.1, 0.6, 0.55]])
    assert Matcher([0.5], [0, 1], True)(ious)[0].tolist() == [0, 0, 1]
    matches, labels = BestProposalMatcher([0.5], [0, 1], min_quality=0.5)(ious)
    assert matches.tolist() == [0, 1, 1]
    assert labels.tolist() == [1, 1, 1]


@pytest.mark.parametrize("shape", [(0, 4), (3, 0), (0, 0)])
def test_nothing_to_match(shape: tuple[int, int]) -> None:
    matches, labels = BestProposalMatcher([0.5], [0, 1], min_quality=0.5)(torch.zeros(shape))
    assert matches.shape == labels.shape == shape[1:]
    assert not labels.any()


@pytest.mark.parametrize("min_quality", [0.0, -0.1, 1.5])
def test_min_quality_must_be_an_overlap(min_quality: float) -> None:
    with pytest.raises(ValueError, match=rf"min_quality must be in \(0, 1\], got {min_quality}"):
        BestProposalMatcher([0.5], [0, 1], min_quality=min_quality)
