"""The dense parts of whole models through torch.compile: one program for images of all sizes.

They are the backbone and the heads that work on whole maps. The sizes of all else (proposals,
matching, heads of regions) depend on the data. ``backbone/test_compile.py`` has the adapter itself.
"""

import copy
from collections.abc import Iterable, Iterator
from operator import attrgetter

import exported_models
import pytest
import torch
from compiled_programs import Programs
from detector_samples import tiny_detector
from torch import Tensor, nn
from torch.fx.experimental import _config as fx_config


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    """Nothing compiled before. Sides that are equal in the first images may differ in others."""
    torch._dynamo.reset()
    with fx_config.patch(use_duck_shape=False):
        yield
    torch._dynamo.reset()


# Smaller ones have maps with a single row or column, which need programs of their own.
SIZES = [(32 * h, 32 * w) for h in (5, 3, 4, 6, 7) for w in (6, 4, 5, 7)]


def tensors(nested: object) -> list[Tensor]:
    if isinstance(nested, Tensor):
        return [nested]
    inner = nested.values() if isinstance(nested, dict) else nested
    return [x for each in inner for x in tensors(each)] if isinstance(inner, Iterable) else []


def run(model: nn.Module, heads: list[str], images: Tensor) -> list[Tensor]:
    """The outputs of the backbone and of these heads."""
    features = model.backbone(images)
    outputs = tensors(features)
    for name in heads:
        given = features
        if name == "proposal_generator.rpn_head":
            given = [features[n] for n in model.proposal_generator.in_features]
        elif name == "head":
            given = [features[n] for n in model.head_in_features]
        outputs += tensors(attrgetter(name)(model)(given))
    return outputs


@pytest.mark.parametrize(
    ("name", "heads"),
    [
        ("adapter", ["proposal_generator.rpn_head"]),
        ("htc", ["proposal_generator.rpn_head", "roi_heads.semantic_head"]),
        ("atss", ["head"]),
        ("upernet", ["sem_seg_head"]),
        ("mask2former", ["sem_seg_head"]),
    ],
)
def test_one_program_of_each_part_for_all_sizes(name: str, heads: list[str]) -> None:
    # A Mask R-CNN on ViT-Adapter with FPN; the others have a small backbone.
    model = (
        tiny_detector("mask_rcnn").eval()
        if name == "adapter"
        else exported_models.build(name).requires_grad_(True)
    )
    plain = copy.deepcopy(model)
    programs = Programs()
    for part in ("backbone", *heads):
        attrgetter(part)(model).compile(backend=programs, dynamic=True)
    for size in SIZES:
        images = torch.randn(2, 3, *size)
        found, expected = run(model, heads, images), run(plain, heads, images)
        assert len(found) == len(expected) > 0
        for x, y in zip(found, expected, strict=True):
            torch.testing.assert_close(x, y, rtol=1e-3, atol=1e-4)
        assert programs.number == 1 + len(heads), f"compiled again for {size}"
    for outputs in (found, expected):
        sum(x.float().square().mean() for x in outputs if x.requires_grad).backward()
    for (key, parameter), other in zip(model.named_parameters(), plain.parameters(), strict=True):
        if other.grad is not None:
            torch.testing.assert_close(
                parameter.grad, other.grad, rtol=1e-2, atol=1e-4, msg=lambda m, k=key: f"{k}: {m}"
            )
