from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from detectron2.data import transforms as T
from detectron2.layers import ShapeSpec
from detectron2.modeling.meta_arch.semantic_seg import SemSegFPNHead
from mask2former_samples import CLASSES, SHAPES, Pyramid, image_of
from PIL import Image
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from vitadapter.modeling.inference import SemanticSegmentorWithTTA, SlidingWindow
from vitadapter.modeling.semantic import (
    FCNHead,
    HeadWithAuxiliary,
    SemanticSegmentor,
    SETRUpHead,
    UPerHead,
)


def make_model(inference: SlidingWindow | None = None) -> SemanticSegmentor:
    torch.manual_seed(0)
    head = HeadWithAuxiliary(
        UPerHead(SHAPES, num_classes=CLASSES, channels=16, norm="LN"),
        FCNHead(SHAPES, num_classes=CLASSES, channels=16, norm="LN"),
    )
    return SemanticSegmentor(
        backbone=Pyramid(),
        sem_seg_head=head,
        pixel_mean=[120.0, 110.0, 100.0],
        pixel_std=[50.0, 60.0, 70.0],
        inference=inference,
    )


@pytest.mark.parametrize("inference", [None, SlidingWindow((64, 64), (40, 40))])
@torch.no_grad()
def test_predictions_do_not_depend_on_the_batch(inference: SlidingWindow | None) -> None:
    model = make_model(inference).eval()
    batch = [
        {"image": image_of(64, 96)},
        {"image": image_of(50, 33), "height": 100, "width": 66},
        {"image": image_of(32, 160), "height": 20, "width": 100},
    ]
    together = model(batch)
    for record, output in zip(batch, together, strict=True):
        (alone,) = model([record])
        assert torch.equal(alone["sem_seg"], output["sem_seg"])
        size = (record.get("height", record["image"].shape[1]), record.get("width"))
        assert output["sem_seg"].shape[:2] == (CLASSES, size[0])


@torch.no_grad()
def test_padding_is_cut_off_before_resizing() -> None:
    """As Detectron2 does it, for one image alone."""
    model = make_model().eval()
    record = {"image": image_of(50, 33), "height": 100, "width": 66}
    (ours,) = model([record])
    (expected,) = super(SemanticSegmentor, model).forward([record])
    torch.testing.assert_close(ours["sem_seg"], expected["sem_seg"])


def test_trains_and_reports_both_losses() -> None:
    model = make_model().train()
    batch = [
        {"image": image_of(64, 64, i), "sem_seg": torch.randint(0, CLASSES, (64, 64))}
        for i in range(2)
    ]
    batch[1]["sem_seg"][:10] = 255
    losses = model(batch)
    assert set(losses) == {"loss_sem_seg", "loss_sem_seg_aux"}
    sum(losses.values()).backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []


def test_a_crop_without_labels_trains_nothing() -> None:
    model = make_model().train()
    labels = torch.full((64, 64), 255)
    losses = model([{"image": image_of(64, 64, i), "sem_seg": labels} for i in range(2)])
    assert all(loss.item() == 0 for loss in losses.values())
    sum(losses.values()).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({}, 'training needs a label map "sem_seg", which x.png lacks'),
        ({"sem_seg": torch.zeros(64, 32)}, r"same \(height, width\), got \(\(64, 64\), \(64, 32\)"),
        (
            {"sem_seg": torch.tensor([0, CLASSES, 255, 1]).expand(64, 16, 4).flatten(1)},
            rf"lie in \[0, {CLASSES}\) or be 255 .*, got 0 to {CLASSES} in x.png",
        ),
        ({"sem_seg": torch.full((64, 64), -1)}, "got -1 to -1 in x.png"),
    ],
)
def test_wrong_labels_are_refused(record: Mapping[str, Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_model().train()([{"image": image_of(64, 64), "file_name": "x.png", **record}])


def test_labels_may_be_bytes() -> None:
    model = make_model().train()
    labels = torch.randint(0, CLASSES, (64, 96))
    labels[:10] = 255
    losses = []
    for dtype in (torch.int64, torch.uint8):
        torch.manual_seed(0)
        record = {"image": image_of(64, 96), "sem_seg": labels.to(dtype)}
        losses.append(model([record, record]))
    torch.testing.assert_close(losses[0], losses[1], rtol=0, atol=0)


def test_heads_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"same num_classes, got \(5, 6\)"):
        HeadWithAuxiliary(UPerHead(SHAPES, num_classes=5), FCNHead(SHAPES, num_classes=6))
    with pytest.raises(ValueError, match="losses of the heads must differ"):
        HeadWithAuxiliary(
            UPerHead(SHAPES, num_classes=5),
            FCNHead(SHAPES, num_classes=5, loss_name="loss_sem_seg"),
        )
    with pytest.raises(ValueError, match=r"one of \['res2'.*got 'p2'"):
        FCNHead(SHAPES, num_classes=5, in_feature="p2")
    with pytest.raises(ValueError, match="at least two features"):
        UPerHead({"res2": SHAPES["res2"]}, num_classes=5)
    auxiliary = [FCNHead(SHAPES, num_classes=5) for _ in range(2)]
    with pytest.raises(ValueError, match="losses of the heads must differ, got loss_sem_seg_aux"):
        HeadWithAuxiliary(UPerHead(SHAPES, num_classes=5), auxiliary)
    with pytest.raises(ValueError, match=r"one of \['res2'.*got 'p2'"):
        SETRUpHead(SHAPES, num_classes=5, in_feature="p2")
    with pytest.raises(ValueError, match="divide the stride 4 of res2, got num_convs=4"):
        SETRUpHead(SHAPES, num_classes=5, in_feature="res2")


def test_setrs_head_upsamples_as_often_as_it_convolves() -> None:
    torch.manual_seed(0)
    shapes = {"block9": ShapeSpec(channels=8, stride=16)}
    head = SETRUpHead(shapes, in_feature="block9", num_classes=5, channels=4, norm="BN").eval()
    features = torch.randn(2, 8, 3, 2)
    x = F.layer_norm(features.movedim(1, 3), (8,), eps=1e-6).movedim(3, 1)
    for conv in head.convs:
        x = F.conv2d(x, conv.weight, padding=1) / (1 + conv.norm.eps) ** 0.5
        x = F.interpolate(x.relu(), scale_factor=2, mode="bilinear")
    assert x.shape == (2, 4, 48, 32)
    logits, losses = head({"block9": features})
    torch.testing.assert_close(logits, head.predictor(x))
    assert losses == {}


def test_every_auxiliary_head_is_trained() -> None:
    heads = [FCNHead(SHAPES, num_classes=5, channels=8, norm="BN", loss_name=n) for n in "ab"]
    both = HeadWithAuxiliary(UPerHead(SHAPES, num_classes=5, channels=8, norm="BN"), heads)
    features = {
        n: torch.randn(2, s.channels, 64 // s.stride, 64 // s.stride) for n, s in SHAPES.items()
    }
    losses = both(features, torch.zeros(2, 64, 64, dtype=torch.long))[1]
    assert set(losses) == {"loss_sem_seg", "a", "b"}
    sum(losses.values()).backward()
    assert all(p.grad is not None for head in heads for p in head.parameters())


@torch.no_grad()
def test_scales_and_mirrored_images_are_averaged() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 70, 3), dtype=np.uint8)
    model = make_model().eval()
    resizes = [T.Resize((64, 112)), [T.Resize((32, 56))]]
    augmented = SemanticSegmentorWithTTA(model, resizes=resizes)
    (found,) = augmented([{"image": torch.from_numpy(pixels.transpose(2, 0, 1))}])
    expected = []
    for size in ((64, 112), (32, 56)):
        resized = np.asarray(Image.fromarray(pixels).resize(size[::-1], Image.BILINEAR))
        image = torch.from_numpy(resized.transpose(2, 0, 1).copy())
        for flip in (False, True):
            version = image.flip(2) if flip else image
            (output,) = model([{"image": version}])
            logits = output["sem_seg"].flip(2) if flip else output["sem_seg"]
            logits = F.interpolate(logits[None], (40, 70), mode="bilinear")[0]
            expected.append(logits.softmax(0))
    torch.testing.assert_close(found["sem_seg"], torch.stack(expected).mean(0))
    np.testing.assert_allclose(found["sem_seg"].sum(0), 1, rtol=1e-5)


class _NewMaps(TorchDispatchMode):
    """Counts the tensors of at least some size that are made."""

    def __init__(self, numel: int) -> None:
        super().__init__()
        self.numel = numel
        self.storages: dict[int, torch.UntypedStorage] = {}

    def __torch_dispatch__(
        self, func: Callable, types: object, args: tuple = (), kwargs: dict | None = None
    ) -> object:
        made = func(*args, **(kwargs or {}))
        if isinstance(made, Tensor) and made.numel() >= self.numel:
            storage = made.untyped_storage()
            self.storages[storage.data_ptr()] = storage  # kept, so that no address comes back
        return made


@torch.no_grad()
def test_augmentation_holds_one_map_beside_the_predicted_one() -> None:
    predicted = [torch.randn(CLASSES, 150, 90) for _ in range(4)]
    left = iter(predicted)

    class Model(nn.Module):
        def forward(self, batched_inputs: Sequence[object]) -> list[dict[str, Tensor]]:
            return [{"sem_seg": next(left).clone()}]

    augmented = SemanticSegmentorWithTTA(Model(), resizes=[T.NoOpTransform(), T.Resize((8, 8))])
    with _NewMaps(CLASSES * 150 * 90) as made:
        (found,) = augmented([{"image": torch.zeros(3, 150, 90, dtype=torch.uint8)}])
    assert len(made.storages) == len(predicted) + 1
    versions = [x.flip(2) if i % 2 else x for i, x in enumerate(y.softmax(0) for y in predicted)]
    torch.testing.assert_close(found["sem_seg"], torch.stack(versions).mean(0))


@torch.no_grad()
def test_small_images_are_padded_with_black() -> None:
    """The official recipes pad to the crop before they normalise."""
    model = make_model(SlidingWindow((64, 64), (32, 32), pad_to_crop=True)).eval()
    image = image_of(40, 64)
    (found,) = model([{"image": image}])
    (expected,) = model([{"image": F.pad(image, (0, 0, 0, 24))}])
    torch.testing.assert_close(found["sem_seg"], expected["sem_seg"][:, :40])


def test_no_scale_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one scale"):
        SemanticSegmentorWithTTA(make_model(), resizes=[])


@torch.no_grad()
def test_augmentation_takes_the_given_image_which_is_to_be_the_whole_one() -> None:
    """The file is not read again; the scales of an image that was resized would be others."""
    model = SemanticSegmentorWithTTA(make_model().eval(), resizes=[T.NoOpTransform()])
    record = {"file_name": "not there.png", "image": image_of(64, 96), "height": 64, "width": 96}
    (found,) = model([record])
    assert found["sem_seg"].shape == (CLASSES, 64, 96)
    with pytest.raises(ValueError, match=r"not there.png of 192 x 128 .*augmentations=\[\]"):
        model([record | {"height": 128, "width": 192}])


def test_takes_the_head_of_detectron2() -> None:
    head = SemSegFPNHead(
        SHAPES, num_classes=CLASSES, conv_dims=8, common_stride=4, norm="", ignore_value=255
    )
    model = SemanticSegmentor(
        backbone=Pyramid(), sem_seg_head=head, pixel_mean=[0.0] * 3, pixel_std=[1.0] * 3
    )
    labels = torch.randint(CLASSES, (64, 64))
    losses = model([{"image": image_of(64, 64), "sem_seg": labels}])
    assert losses["loss_sem_seg"].isfinite()
    (found,) = model.eval()([{"image": image_of(64, 64)}])
    assert found["sem_seg"].shape == (CLASSES, 64, 64)
