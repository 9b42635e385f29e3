"""Outputs and gradients of the official release, reproduced from converted weights."""

from collections.abc import Callable
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import nn

from vitadapter.checkpoint import convert_official_backbone

CASES = [
    "det_vit_tiny",
    "det_vit_tiny_no_layer_scale",
    "det_vit_tiny_no_window",
    "det_vit_small",
    "det_mae_base_d4",
    "det_dinov2_small",
    "seg_vit_tiny",
    "seg_vit_small",
    "det_vit_baseline_tiny",
    "det_vit_baseline_residual_d4",
    "seg_vit_baseline_tiny",
    "det_beit_toy_d4_old",
    "det_beit_toy_d4_new",
    "seg_beit_base_d4_224",
    "seg_beit_toy_d4_rect",
    "det_uniperceiver_large_d4",
]
WITH_GRADIENTS = [
    "det_vit_tiny",
    "det_vit_tiny_no_layer_scale",
    "det_mae_base_d4",
    "seg_vit_tiny",
    "det_vit_baseline_tiny",
    "det_vit_baseline_residual_d4",
    "seg_vit_baseline_tiny",
    "det_beit_toy_d4_old",
    "det_beit_toy_d4_new",
    "seg_beit_toy_d4_rect",
]
Build = Callable[[dict], nn.Module]


def load(golden: ModuleType, case: str, build_golden: Build):
    meta, keys, arrays = golden.load(golden.path(case))
    official = golden.make_state_dict(keys, meta["window"])
    assert golden.check_weights(keys, arrays, official) < 1e-5
    model = build_golden(meta).eval()
    model.load_state_dict(convert_official_backbone(official).tensors)
    return meta, keys, arrays, model


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 5e-5), (torch.float64, 1e-9)])
@pytest.mark.parametrize("case", CASES)
def test_outputs(golden, build_golden, case, dtype, tolerance):
    meta, _, arrays, model = load(golden, case, build_golden)
    model.to(dtype)
    for run in meta["runs"]:
        images = torch.from_numpy(golden.make_input(run["input_seed"], run["input_shape"]))
        with torch.no_grad():
            outputs = model(images.to(dtype))
        assert list(outputs) == ["res2", "res3", "res4", "res5"]
        for i, output in enumerate(outputs.values(), start=1):
            assert golden.compare(arrays, run["prefix"], f"f{i}", output)["max_abs"] < tolerance


@pytest.mark.parametrize("case", WITH_GRADIENTS)
def test_gradients(golden, build_golden, case):
    meta, keys, arrays, model = load(golden, case, build_golden)
    assert meta["gradients"], "the case has lost its gradients"
    model.double()
    run = meta["runs"][0]
    images = torch.from_numpy(golden.make_input(run["input_seed"], run["input_shape"]))
    outputs = model(images.double()).values()
    weights = [golden.make_input(9001 + j, output.shape) for j, output in enumerate(outputs)]
    sum(
        (output * torch.from_numpy(weight).double()).sum()
        for output, weight in zip(outputs, weights, strict=True)
    ).backward()

    ours = dict(model.named_parameters())
    # The converted entries with the official ones' places instead of their values.
    official = {name: torch.tensor(i) for i, (name, *_) in enumerate(keys)}
    checked = 0
    for name, place in convert_official_backbone(official).tensors.items():
        expected = arrays["r0_param_grads"][place]
        if np.isnan(expected[0]):
            assert name not in ours
            continue
        grad = ours[name].grad
        found = [grad.abs().sum().item(), (grad * ours[name]).sum().item()]
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-9 * max(1.0, expected[0]))
        checked += 1
    assert checked == len(ours)
