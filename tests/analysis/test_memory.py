"""Predicted memory, against real steps on the CPU as PyTorch's profiler sees them."""

from collections import Counter
from collections.abc import Iterator

import pytest
import torch
from detector_samples import DETECTORS, tiny_config
from detectron2.config import instantiate
from detectron2.utils import comm
from omegaconf import DictConfig
from project_configs import SEGMENTATION_CONFIGS, load, net_wrapper, shrink_mask2former
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.testing._internal.distributed.fake_pg import FakeStore

from vitadapter.analysis import Workload, estimate_memory, training_peak
from vitadapter.analysis.measurement import profiled_peak
from vitadapter.analysis.memory import PARALLEL, Layout, _layout
from vitadapter.analysis.steps import Steps
from vitadapter.engine.parallel import sharded_groups

DINOV3_FROZEN = "mask2former_vit_adapter_l_dinov3_frozen_512_80k"
WORKLOAD = Workload((96, 128), 2, 8)  # batch norm needs two


def small_config(name: str) -> DictConfig:
    cfg = tiny_config(name) if name in DETECTORS else tiny_segmenter(name)
    # In half precision some processors unfold the inputs of convolutions, which takes memory.
    cfg.train.amp.enabled = False
    return cfg


def tiny_segmenter(name: str) -> DictConfig:
    cfg = load(next(path for path in SEGMENTATION_CONFIGS if path.stem == name))
    wrapper = net_wrapper(cfg)
    wrapper.net.update(embed_dim=32, depth=4, num_heads=2)
    wrapper.deform_num_heads = 4
    if name.startswith("mask2former"):
        shrink_mask2former(cfg)
    else:
        cfg.model.sem_seg_head.head.channels = 16
        cfg.model.sem_seg_head.auxiliary_head.channels = 16
    return cfg


def measured_peak(cfg: DictConfig, workload: Workload) -> int:
    torch.manual_seed(0)
    steps = Steps(cfg, workload.images(cfg))
    before = steps.live_bytes
    return before + profiled_peak(steps.run_training)


@pytest.mark.parametrize(
    "name",
    [
        "mask_rcnn",
        "atss",
        "upernet_vit_adapter_t_deit_160k",
        "mask2former_vit_adapter_s_dinov2_finetune",
    ],
)
def test_training_takes_what_is_predicted(name: str) -> None:
    cfg = small_config(name)
    predicted = training_peak(cfg, WORKLOAD, on_gpu=False)
    assert predicted.total() == pytest.approx(measured_peak(cfg, WORKLOAD), rel=0.1)
    assert predicted["optimizer"] == pytest.approx(2 * predicted["parameters"], rel=0.01)


@pytest.mark.parametrize("name", ["atss", "upernet_vit_adapter_t_deit_160k"])
def test_inference_takes_what_is_predicted(name: str) -> None:
    cfg = small_config(name)
    predicted = estimate_memory(cfg, WORKLOAD).inference
    steps = Steps(cfg, WORKLOAD.images(cfg))
    weights = sum(t.nbytes for t in (*steps.model.parameters(), *steps.model.buffers()))
    measured = weights + profiled_peak(steps.run_inference)
    assert predicted.total() == pytest.approx(measured, rel=0.1)


def test_averaged_weights_are_a_second_model() -> None:
    cfg = small_config("mask_rcnn")
    cfg.train.ema.enabled = True
    estimate = estimate_memory(cfg, WORKLOAD)
    assert estimate.training["average"] == estimate.training["parameters"]
    assert estimate.inference["activations"] > 0
    assert "average" not in estimate.inference
    assert "| 2 x 96 x 128" in estimate.table()


def test_ddp_copies_gradients_and_fsdp2_divides_what_it_can() -> None:
    peak = Counter(parameters=80, gradients=40, optimizer=160, activations=100)
    layout = Layout(trained=80, largest_group=10, largest_gradient=5, rest=20, rest_trained=15)
    assert PARALLEL["ddp"](peak, layout, 8) == peak + Counter(communication=80)
    assert PARALLEL["fsdp2"](peak, layout, 8) == {
        "parameters": 10,
        "gradients": 5,
        "optimizer": 20,
        "activations": 100,
        "communication": 20 + 2 * 10 + 15 + 5,
    }


@pytest.fixture
def eight_ranks() -> Iterator[None]:
    """This process as the first of eight, whose others do not exist."""
    distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=8)
    yield
    distributed.destroy_process_group()
    comm._get_global_gloo_group.cache_clear()


def test_a_rank_has_the_part_that_is_predicted(eight_ranks: None) -> None:
    cfg = load(next(p for p in SEGMENTATION_CONFIGS if p.stem == DINOV3_FROZEN))
    net = cfg.model.backbone.net
    net.update(model_name="vit_7b_patch16_dinov3", embed_dim=4096, depth=40, num_heads=32)
    with torch.device("meta"):
        model = instantiate(cfg.model)
    layout = _layout(model)
    whole = sum(parameter.nbytes for parameter in model.parameters())
    assert whole > 27e9
    assert layout.trained < 0.04 * whole
    mesh = init_device_mesh("cpu", (8,))
    for module in (*sharded_groups(model), model):
        fully_shard(module, mesh=mesh)
    parts = [parameter.to_local() for parameter in model.parameters()]
    assert sum(part.nbytes for part in parts) == pytest.approx(whole / 8, rel=1e-4)
    # Only a block is whole at a time.
    assert layout.largest_group + layout.rest < 0.05 * whole


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch": 0}, "batch must be a positive integer, got 0"),
        ({"objects": -1}, "objects must be a positive integer, got -1"),
        ({"size": (0, 64)}, r"a height and a width of at least 1, got \(0, 64\)"),
        ({"size": (2**14, 2**14), "batch": 2}, "at most 268435456 pixels .* 2 x 16384 x 16384"),
    ],
)
def test_mistakes_in_the_workload(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Workload(**{"size": (64, 64), "batch": 1, **arguments})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"ranks": -8}, "ranks must be a positive integer, got -8"),
        ({"parallel": "zero"}, "parallel must be ddp or fsdp2, got 'zero'"),
        ({"parallel": "fsdp2"}, "fsdp2 divides a model between at least 2 GPUs, got ranks=1"),
    ],
)
def test_mistakes_in_parallel_training(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        estimate_memory(DictConfig({}), WORKLOAD, **arguments)


def test_a_config_without_a_model() -> None:
    with pytest.raises(ValueError, match=r"needs model\.backbone"):
        training_peak(DictConfig({"train": {}}), WORKLOAD)
