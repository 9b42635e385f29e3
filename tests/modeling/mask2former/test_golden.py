"""The head and its losses equal those of the official release under converted weights."""

from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from detectron2.layers import ShapeSpec
from torch import Tensor

from vitadapter.checkpoint.name_table import NameTable
from vitadapter.checkpoint.official_mask2former import mask2former_head
from vitadapter.modeling.mask2former import (
    HungarianMatcher,
    Mask2FormerHead,
    MaskedTransformerDecoder,
    MaskPrediction,
    MSDeformAttnPixelDecoder,
    SetCriterion,
)
from vitadapter.modeling.mask2former.targets import MaskTargets

STRIDES = {"res2": 4, "res3": 8, "res4": 16, "res5": 32}


class Case:
    """The golden head with its inputs, predictions and truth."""

    def __init__(self, golden: ModuleType, shared: Path) -> None:
        path = shared / "golden" / "seg_mask2former_head.npz"
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

    def predictions(self, dtype: torch.dtype) -> list[MaskPrediction]:
        self.head.to(dtype)
        with torch.no_grad():
            return self.head({name: x.to(dtype) for name, x in self.features.items()})

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
            num_points=num_points,
            oversample_ratio=train_cfg["oversample_ratio"],
            importance_sample_ratio=train_cfg["importance_sample_ratio"],
            random_points=self.random_points,
        )


@pytest.fixture(scope="module")
def case(golden: ModuleType, shared: Path) -> Case:
    return Case(golden, shared)


@pytest.fixture(scope="module", params=[torch.float64, torch.float32], ids=["f64", "f32"])
def predictions(request: pytest.FixtureRequest, case: Case) -> list[MaskPrediction]:
    return case.predictions(request.param)


def _tolerance(predictions: list[MaskPrediction]) -> float:
    return 1e-9 if predictions[0].mask_logits.dtype == torch.float64 else 5e-5


def test_predictions_of_all_layers(
    case: Case, predictions: list[MaskPrediction], golden: ModuleType
) -> None:
    assert len(predictions) == 10
    errors = {
        f"{name}{i}": golden.compare(case.arrays, "r0", f"{name}{i}", x)["max_abs"]
        for i, prediction in enumerate(predictions)
        for name, x in zip(("cls", "mask"), prediction, strict=True)
    }
    assert max(errors.values()) < _tolerance(predictions), errors


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_pixel_decoder(case: Case, dtype: torch.dtype, golden: ModuleType) -> None:
    case.head.to(dtype)
    with torch.no_grad():
        output = case.head.pixel_decoder({name: x.to(dtype) for name, x in case.features.items()})
    tolerance = 1e-9 if dtype == torch.float64 else 5e-5
    maps = {f"memory{i}": x for i, x in enumerate(output.memories)}
    for name, x in {"mask_feature": output.mask_features, **maps}.items():
        assert golden.compare(case.arrays, "r0", name, x)["max_abs"] < tolerance, name


def test_losses_of_all_layers(
    case: Case, predictions: list[MaskPrediction], golden: ModuleType
) -> None:
    losses = case.criterion()(predictions, case.targets())
    assert len(losses) == 30
    errors = {}
    for name, loss in losses.items():
        kind, _, layer = name.removeprefix("loss_").partition("_")
        layer = f"d{layer}." if layer else ""
        official = f"loss.{layer}loss_{'cls' if kind == 'ce' else kind}"
        result = golden.compare(case.arrays, "r0", official, loss.reshape(1))
        errors[name] = result["max_abs"]
    assert max(errors.values()) < _tolerance(predictions), errors


def test_matching(case: Case, predictions: list[MaskPrediction]) -> None:
    matcher = case.criterion().matcher
    final = predictions[-1]
    for i, target in enumerate(case.targets()):
        labels = torch.full((final.class_logits.shape[1],), case.num_classes)
        masks = target.masks.to(final.mask_logits.dtype)
        queries, segments = matcher(
            final.class_logits[i], final.mask_logits[i], target.classes, masks
        )
        labels[queries] = target.classes[segments]
        assert labels.tolist() == case.arrays["matched_labels"][i].tolist()
