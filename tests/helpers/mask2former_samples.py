"""A tiny Mask2Former and images with truth for it."""

import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone
from detectron2.structures import BitMasks, Instances
from torch import Tensor, nn

from vitadapter.modeling.inference import SlidingWindow
from vitadapter.modeling.mask2former import (
    HungarianMatcher,
    InstanceInference,
    Mask2Former,
    Mask2FormerHead,
    MaskedTransformerDecoder,
    MSDeformAttnPixelDecoder,
    PanopticInference,
    SegmentTargets,
    SemanticTargets,
    SetCriterion,
)

CLASSES = 5
THINGS = [0, 1, 2]
SHAPES = {f"res{i}": ShapeSpec(channels=8, stride=2**i) for i in range(2, 6)}


class Pyramid(Backbone):
    """Features with a receptive field, of strides 4 to 32."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Conv2d(3, 8, 2**i + 1, stride=2**i, padding=2 ** (i - 1)) for i in range(2, 6)
        )

    @property
    def size_divisibility(self) -> int:
        return 32

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        assert images.shape[-1] % 32 == images.shape[-2] % 32 == 0
        return {f"res{i + 2}": conv(images) for i, conv in enumerate(self.convs)}

    def output_shape(self) -> dict[str, ShapeSpec]:
        return SHAPES


def make_head(
    num_queries: int = 8,
    num_classes: int = CLASSES,
    *,
    encoder_layers: int = 2,
    decoder_layers: int = 4,
) -> Mask2FormerHead:
    sizes = dict(embed_dim=32, mask_dim=16, num_heads=2, ffn_dim=16)
    return Mask2FormerHead(
        MSDeformAttnPixelDecoder(SHAPES, num_layers=encoder_layers, **sizes),
        MaskedTransformerDecoder(
            num_classes=num_classes,
            num_queries=num_queries,
            num_layers=decoder_layers,
            **sizes,
        ),
    )


def make_model(
    task: str = "semantic", *, inference: SlidingWindow | None = None, num_queries: int = 8
) -> Mask2Former:
    """Untrained but from a fixed seed, with thresholds that let an untrained model answer."""
    torch.manual_seed(0)
    semantic = task == "semantic"
    return Mask2Former(
        backbone=Pyramid(),
        sem_seg_head=make_head(num_queries),
        criterion=SetCriterion(num_classes=CLASSES, matcher=HungarianMatcher(num_points=64)),
        targets=SemanticTargets() if semantic else SegmentTargets(),
        pixel_mean=[120.0, 110.0, 100.0],
        pixel_std=[50.0, 60.0, 70.0],
        semantic_on=semantic,
        instance_inference=None if semantic else InstanceInference(max_per_image=10),
        panoptic_inference=PanopticInference(
            thing_classes=THINGS, score_threshold=0.0, overlap_threshold=0.0
        )
        if task == "panoptic"
        else None,
        inference=inference,
    )


def image_of(height: int, width: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=generator)


def record_of(height: int = 64, width: int = 96, seed: int = 0) -> dict[str, object]:
    """An image of three segments, as a label map and as instances."""
    labels = torch.full((height, width), 255)
    labels[: height // 2] = 4
    labels[height // 2 :, : width // 2] = 1
    labels[height // 4 : height // 2, : width // 3] = 0
    instances = Instances((height, width))
    instances.gt_classes = torch.tensor([0, 1, 4])
    instances.gt_masks = BitMasks(labels == instances.gt_classes[:, None, None])
    return {
        "image": image_of(height, width, seed),
        "sem_seg": labels,
        "instances": instances,
        "file_name": f"{seed}.png",
    }
