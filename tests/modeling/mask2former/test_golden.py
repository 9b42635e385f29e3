"""The head and its losses equal those of the official release under converted weights."""

from types import ModuleType
from typing import NamedTuple

import numpy as np
import pytest
import torch
from detectron2.layers import ShapeSpec
from torch import Tensor

from vitadapter.checkpoint.official.conversion import NameTable
from vitadapter.checkpoint.official.layouts import mask2former_head
from vitadapter.modeling.mask2former import (
    HungarianMatcher,
    Mask2FormerHead,
    MaskedTransformerDecoder,
    MaskPrediction,
    MaskTargets,
    MSDeformAttnPixelDecoder,
    SetCriterion,
)
from vitadapter.modeling.mask2former.pixel_decoder import PixelDecoderOutput

STRIDES = {"res2": 4, "res3": 8, "res4": 16, "res5": 32}


# Float64 holds the positions in float32, as the official code does.
TOLERANCES = {torch.float64: 1e-9, torch.float32: 5e-5}


class Outputs(NamedTuple):
    """What the head says of the golden features."""

    pixels: PixelDecoderOutput
    predictions: list[MaskPrediction]
    tolerance: float


class Case:
    """The golden head with its inputs, predictions and truth."""

    def __init__(self, golden: ModuleType) -> None:
        path = golden.path("seg_mask2former_head")
        self.meta, self.keys, self.arrays = golden.load(path)
        state = golden.make_state_dict(self.keys)
        assert golden.check_weights(self.keys, self.arrays, state) < 1e-6
        args = self.meta["args"]
        shapes = {
            name: ShapeSpec(channels=channels, stride=stride)
            for (name, stride), channels in zip(STRIDES.items(), args["in_channels"], strict=True)
        }
        self.num_classes = args["num_things_classes"] + args["num_stuff_classes"]
        decoder = MaskedTransformerDecoder(
            num_classes=self.num_classes, num_queries=args["num_queries"]
        )
        # In training mode all layers' predictions are returned; nothing in it is random.
        self.head = Mask2FormerHead(MSDeformAttnPixelDecoder(shapes), decoder).train()
        table = NameTable(mask2former_head("", ""))
        self.head.load_state_dict({table.to_ours(name): t for name, t in state.items()})
        self.features = {
            name: torch.from_numpy(golden.make_input(self.meta["feature_seed"] + i, shape))
            for i, (name, shape) in enumerate(zip(STRIDES, self.meta["levels"], strict=True))
        }

    def run(self, dtype: torch.dtype) -> "Outputs":
        self.head.to(dtype)
        with torch.no_grad():
            pixels = self.head.pixel_decoder(
                {name: x.to(dtype) for name, x in self.features.items()}
            )
            return Outputs(pixels, self.head.predictor(*pixels), TOLERANCES[dtype])

    def targets(self) -> list[MaskTargets]:
        out = []
        for i, labels in enumerate(self.meta["gt_labels"]):
            masks = np.unpackbits(self.arrays[f"gt_masks{i}"])
            masks = torch.from_numpy(masks.reshape(len(labels), *self.meta["image"]))
            out.append(MaskTargets(torch.tensor(labels), masks.bool()))
        return out

    def random_points(self, num_masks: int, num_points: int, device: torch.device) -> Tensor:
        points = torch.from_numpy(self.arrays[f"rand_{num_points}"])
        return points.to(device).expand(num_masks, -1, -1)

    def criterion(self) -> SetCriterion:
        train_cfg = self.meta["args"]["train_cfg"]
        num_points = train_cfg["num_points"]
        return SetCriterion(
            num_classes=self.num_classes,
            matcher=HungarianMatcher(num_points=num_points, random_points=self.random_points),
            oversample_ratio=train_cfg["oversample_ratio"],
            importance_sample_ratio=train_cfg["importance_sample_ratio"],
        )


@pytest.fixture(scope="module")
def case(golden: ModuleType) -> Case:
    return Case(golden)


@pytest.fixture(scope="module", params=TOLERANCES, ids=["float64", "float32"])
def outputs(request: pytest.FixtureRequest, case: Case) -> Outputs:
    return case.run(request.param)


def test_pixel_decoder(case: Case, outputs: Outputs, golden: ModuleType) -> None:
    maps = {f"memory{i}": x for i, x in enumerate(outputs.pixels.memories)}
    for name, x in {"mask_feature": outputs.pixels.mask_features, **maps}.items():
        error = golden.compare(case.arrays, "r0", name, x)["max_abs"]
        assert error < outputs.tolerance, name


def test_predictions_of_all_layers(case: Case, outputs: Outputs, golden: ModuleType) -> None:
    assert len(outputs.predictions) == 10
    for i, prediction in enumerate(outputs.predictions):
        for name, x in zip(("cls", "mask"), prediction, strict=True):
            error = golden.compare(case.arrays, "r0", f"{name}{i}", x)["max_abs"]
            assert error < outputs.tolerance, f"{name}{i}"


def test_losses_of_all_layers(case: Case, outputs: Outputs, golden: ModuleType) -> None:
    losses = case.criterion()(outputs.predictions, case.targets())
    assert len(losses) == 30
    for name, loss in losses.items():
        kind, _, layer = name.removeprefix("loss_").partition("_")
        layer = f"d{layer}." if layer else ""
        official = f"loss.{layer}loss_{'cls' if kind == 'ce' else kind}"
        error = golden.compare(case.arrays, "r0", official, loss.reshape(1))["max_abs"]
        assert error < outputs.tolerance, name


def test_matching(case: Case, outputs: Outputs) -> None:
    matcher = case.criterion().matcher
    final = outputs.predictions[-1]
    for i, target in enumerate(case.targets()):
        labels = torch.full((final.class_logits.shape[1],), case.num_classes)
        masks = target.masks.to(final.mask_logits.dtype)
        queries, segments = matcher(
            final.class_logits[i], final.mask_logits[i], target.classes, masks
        )
        labels[queries] = target.classes[segments]
        assert labels.tolist() == case.arrays["matched_labels"][i].tolist()
