"""Golden files of detection heads (../shared/golden/mmdet2_*): weights, features, truths."""

from types import ModuleType

import numpy as np
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn

from vitadapter.checkpoint.official.conversion import NameTable

# README.md of the golden data; one list per image.
GT_BOXES = (
    [[10.5, 12.25, 70.0, 90.5], [60.0, 40.0, 155.5, 120.0]],
    [[5.0, 5.0, 30.0, 28.5], [40.25, 20.0, 150.0, 110.0], [100.0, 60.0, 131.0, 100.75]],
)
GT_CLASSES = ([3, 17], [0, 79, 41])
IMAGE_SIZE = (128, 160)


class StoredFeatures(Backbone):
    """A backbone that returns features which were computed before, whatever the image."""

    def __init__(self, features: dict[str, Tensor], strides: list[int]) -> None:
        super().__init__()
        self._features = features
        self._strides = strides

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return self._features

    def output_shape(self) -> dict[str, ShapeSpec]:
        return {
            name: ShapeSpec(channels=feature.shape[1], stride=stride)
            for (name, feature), stride in zip(self._features.items(), self._strides, strict=True)
        }

    @property
    def size_divisibility(self) -> int:
        return 32


class GoldenHead:
    """One file: `meta`, `arrays`, and what the official head was given."""

    def __init__(self, golden: ModuleType, name: str) -> None:
        self._golden = golden
        self.meta, keys, self.arrays = golden.load(golden.path(name))
        self.state_dict: dict[str, Tensor] = golden.make_state_dict(keys)
        assert golden.check_weights(keys, self.arrays, self.state_dict) < 1e-6

    def features(self, first_name: str, dtype: torch.dtype = torch.float32) -> StoredFeatures:
        """The levels as a backbone that counts them up from `first_name`: "p3", "p4", ..."""
        prefix, first_stage = first_name[:-1], int(first_name[-1])
        levels = {}
        for i, shape in enumerate(self.meta["levels"]):
            level = self._golden.make_input(self.meta["feature_seed"] + i, shape)
            levels[f"{prefix}{first_stage + i}"] = torch.from_numpy(level).to(dtype)
        return StoredFeatures(levels, self.meta["strides"])

    def load(
        self, module: nn.Module, rows: tuple[tuple[str, str], ...], prefixes: tuple[str, str]
    ) -> None:
        """Loads the official weights, of which `prefixes` are (theirs, ours) in a whole model."""
        table, (theirs, ours) = NameTable(rows), prefixes
        converted = {}
        for key, tensor in self.state_dict.items():
            name = table.to_ours(theirs + key)
            assert name is not None, key
            assert name.startswith(ours), key
            converted[name.removeprefix(ours)] = tensor
        module.load_state_dict(converted, strict=True)

    def difference(self, name: str, value: Tensor) -> float:
        """Largest absolute difference from the stored output."""
        return self._golden.compare(self.arrays, "r0", name, value)["max_abs"]


def batched_inputs() -> list[dict[str, object]]:
    """Images, of which only the size matters, with the ground truth of all golden heads."""
    batch = []
    for boxes, classes in zip(GT_BOXES, GT_CLASSES, strict=True):
        instances = Instances(IMAGE_SIZE)
        instances.gt_boxes = Boxes(torch.tensor(boxes))
        instances.gt_classes = torch.tensor(classes)
        batch.append({"image": torch.zeros(3, *IMAGE_SIZE), "instances": instances})
    return batch


def check_detections(head: GoldenHead, image: int, found: Instances) -> None:
    """Boxes, scores and classes after suppression, in the same order."""
    expected = head.arrays[f"r0_dets{image}"]
    assert len(found) == len(expected)
    np.testing.assert_allclose(found.scores.numpy(), expected[:, 4], atol=5e-5)
    ours = np.column_stack([found.pred_classes.numpy(), found.pred_boxes.tensor.numpy()])
    theirs = np.column_stack([head.arrays[f"det_labels{image}"], expected[:, :4]])
    np.testing.assert_allclose(ours, theirs, atol=1e-4)
