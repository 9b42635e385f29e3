"""Batch norms that PyTorch would refuse in the first iteration."""

import pytest
import torch
from detectron2.layers import ShapeSpec
from omegaconf import DictConfig

from vitadapter.engine import batch_norm_checks
from vitadapter.engine.batch_norm_checks import check_batch_norms
from vitadapter.engine.trainer import do_train
from vitadapter.modeling.semantic import UPerHead


def uper_head(
    norm: str = "BN", pool_scales: tuple[int, ...] = (1, 2), channels: int = 32
) -> UPerHead:
    shapes = {f"res{i}": ShapeSpec(channels=4, stride=2**i) for i in (2, 3)}
    return UPerHead(shapes, num_classes=2, channels=channels, norm=norm, pool_scales=pool_scales)


def refusal(head: UPerHead, batch_size: int) -> str:
    """What the check says; empty if nothing."""
    try:
        check_batch_norms(torch.nn.ModuleDict({"head": head}), "cuda", batch_size)
    except ValueError as error:
        return str(error)
    return ""


def failure(head: UPerHead, batch_size: int) -> str:
    """What PyTorch says in the forward pass; empty if nothing."""
    maps = {"res2": torch.rand(batch_size, 4, 8, 8), "res3": torch.rand(batch_size, 4, 4, 4)}
    try:
        head.fuse(maps)
    except ValueError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("norm", ["BN", "SyncBN", "naiveSyncBN", "GN", "FrozenBN", ""])
@pytest.mark.parametrize("pool_scales", [(1, 2), (2, 3)])
@pytest.mark.parametrize("batch_size", [1, 2])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("channels", [32, 64])
def test_what_pytorch_refuses_is_refused_at_the_start(
    norm: str, pool_scales: tuple[int, ...], batch_size: int, training: bool, channels: int
) -> None:
    head = uper_head(norm, pool_scales, channels).train(training)
    refused, failed = refusal(head, batch_size), failure(head, batch_size)
    assert bool(refused) == bool(failed)
    if refused:
        assert "more than 1 value per channel" in failed
        assert refused.startswith("the norm head.ppm.projections.0.norm (")
        assert "at least 2 images at a time, got 1 " in refused
        assert "model.head.norm=GN" in refused


def test_synchronised_norms_see_the_images_of_all_processes(monkeypatch) -> None:
    monkeypatch.setattr(batch_norm_checks.comm, "get_world_size", lambda: 2)
    assert refusal(uper_head("BN"), 1)
    assert not refusal(uper_head("SyncBN"), 1)
    assert not refusal(uper_head("naiveSyncBN"), 1)


def test_a_batch_of_unknown_size_is_not_refused() -> None:
    check_batch_norms(uper_head(), "cuda", None)


def test_synchronised_norms_need_gpus(cfg: DictConfig, monkeypatch) -> None:
    cfg.model.backbone.bottom_up.stem.norm = "SyncBN"
    cfg.train.max_iter = 1
    do_train(cfg)  # in one process there is nothing to synchronise
    model = uper_head("SyncBN")
    monkeypatch.setattr(batch_norm_checks.comm, "get_world_size", lambda: 2)
    check_batch_norms(model, "cuda", 2)
    with pytest.raises(ValueError, match=r"SyncBN.*ppm\..*2 processes.*norm=naiveSyncBN"):
        check_batch_norms(model, "cpu", 2)
