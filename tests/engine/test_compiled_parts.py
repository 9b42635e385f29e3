"""Training with `train.compile`: what is compiled, how often, and that nothing else changes."""

import copy
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import exported_models
import pytest
import torch
from compiled_programs import Programs, modules_compiled_by
from detector_samples import tiny_config as tiny_experiment
from detectron2.modeling import ViT as Detectron2ViT
from omegaconf import DictConfig
from torch import Tensor, nn
from training_samples import load, metrics_of

from benchmarks.interleaved import saved_bytes
from vitadapter.engine.compiled_parts import EagerModel, compile_parts
from vitadapter.engine.trainer import do_train
from vitadapter.modeling.backbone import BEiT, TimmViT, UniPerceiver, ViT, ViTAdapter
from vitadapter.modeling.backbone.interaction import DepthwiseConv, Extractor, Injector
from vitadapter.ops import MSDeformAttn


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture
def programs(request: pytest.FixtureRequest) -> Iterator[Programs]:
    """Counts what parts are compiled into; parametrised by the backend."""
    programs = Programs(getattr(request, "param", "eager"))
    with modules_compiled_by(programs):
        yield programs


with_backward = pytest.mark.parametrize("programs", ["aot_eager"], indirect=True)


WINDOWS = dict(window_size=3, window_block_indexes=[0, 2])
SMALL = dict(embed_dim=32, depth=8, num_heads=2)
NETS = {
    "ViT": partial(ViT, **SMALL, **WINDOWS, drop_path_rate=0.2),
    "ViT with relative positions": partial(ViT, **SMALL, **WINDOWS, use_rel_pos=True),
    "ViT with residual blocks": partial(ViT, **SMALL, residual_block_indexes=[3, 7]),
    "BEiT": partial(BEiT, img_size=64, **SMALL, **WINDOWS, layer_scale_init=0.1),
    "UniPerceiver": partial(UniPerceiver, **SMALL, **WINDOWS),
    "TimmViT": partial(TimmViT, "vit_small_patch16_224", **SMALL, **WINDOWS, drop_path_rate=0.2),
    "Detectron2's": partial(Detectron2ViT, **SMALL, **WINDOWS, use_rel_pos=False),
}
# With and without padding to whole windows of 3 tokens; also squares.
SIZES = [(32 * h, 32 * w) for h in (4, 2, 6) for w in (5, 4, 3)]


def adapter_of(net: nn.Module, **options: object) -> ViTAdapter:
    torch.manual_seed(0)
    options = {"num_interactions": 2, "num_extra_extractors": 1} | options
    model = ViTAdapter(
        net, conv_dim=8, deform_num_heads=2, norm="BN", injector_gamma_init=0.5, **options
    )
    for module in model.modules():  # the initial zeros would hide the attention
        if isinstance(module, MSDeformAttn):
            nn.init.normal_(module.sampling_offsets.weight, std=0.02)
            nn.init.normal_(module.attention_weights.weight, std=0.1)
    return model


def without_drop_path(model: nn.Module) -> nn.Module:
    """The same, in training mode except for what is random."""
    for module in model.modules():
        if "DropPath" in type(module).__name__:
            module.eval()
    return model


def gradients(model: nn.Module, images: Tensor) -> tuple[list[Tensor], dict[str, Tensor]]:
    model.zero_grad()
    outputs = [*model(images).values()]
    torch.manual_seed(1)
    sum((x.float() * torch.randn(x.shape)).sum() for x in outputs).backward()
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return outputs, found


def assert_equal(model: nn.Module, plain: nn.Module, images: Tensor, tolerance: float) -> None:
    (found, grads), (expected, plain_grads) = gradients(model, images), gradients(plain, images)
    assert grads.keys() == plain_grads.keys()
    pairs = [*zip(found, expected, strict=True), *((grads[n], plain_grads[n]) for n in grads)]
    for x, y in pairs:
        scale = max(1.0, y.detach().abs().max().item())
        torch.testing.assert_close(x, y, rtol=0, atol=tolerance * scale)


# With "aot_eager", conditions of the backward pass count as well, which takes seconds.
@pytest.mark.parametrize(
    ("net", "backend"), [(net, "aot_eager" if net in ("ViT", "BEiT") else "eager") for net in NETS]
)
def test_one_program_of_each_kind_of_part_for_all_sizes(net: str, backend: str) -> None:
    programs = Programs(backend)
    model = adapter_of(NETS[net]()).train()
    plain = without_drop_path(copy.deepcopy(model))
    with modules_compiled_by(programs):
        compile_parts(model)
    without_drop_path(model)
    assert_equal(model, plain, torch.randn(2, 3, *SIZES[0]), 1e-4)
    first = programs.number
    around = [m for m in plain.modules() if isinstance(m, Injector | Extractor)]
    parts = len(plain.net.blocks) + len(around)
    assert 0 < first < parts
    for size in SIZES[1:]:
        assert_equal(model, plain, torch.randn(2, 3, *size), 1e-4)
    assert programs.number == first


@with_backward
def test_parts_may_be_computed_again(programs: Programs) -> None:
    kept = []
    for again in (False, True):
        net = ViT(embed_dim=32, depth=2, num_heads=2, use_act_checkpoint=again)
        model = adapter_of(net, use_act_checkpoint=again).train()
        plain = copy.deepcopy(model)
        compile_parts(model)
        images = torch.randn(2, 3, 96, 128)
        assert_equal(model, plain, images, 1e-4)
        kept.append(saved_bytes(partial(model, images), model.parameters()))
    assert programs.number > 0
    assert kept[1] < 0.6 * kept[0]


@pytest.mark.parametrize("of", ["net", "adapter"])
def test_refuses_a_level_that_programs_do_not_follow(of: str) -> None:
    levels = {name: "layers" if name == of else False for name in ("net", "adapter")}
    net = ViT(embed_dim=32, depth=2, num_heads=2, use_act_checkpoint=levels["net"])
    with pytest.raises(ValueError, match=r'use_act_checkpoint="layers" .* take True or False'):
        compile_parts(adapter_of(net, use_act_checkpoint=levels["adapter"]))


@pytest.mark.parametrize("changes", [{"dilation": 2, "padding": 2}, {"padding_mode": "reflect"}])
def test_a_convolution_of_the_user_stays_as_it_is(changes: dict, programs: Programs) -> None:
    model = adapter_of(ViT(embed_dim=32, depth=2, num_heads=2)).train()
    for module in model.modules():
        if isinstance(module, DepthwiseConv):
            dim = module.dwconv.in_channels
            module.dwconv = nn.Conv2d(dim, dim, 3, groups=dim, **{"padding": 1} | changes)
    plain = copy.deepcopy(model)
    compile_parts(model)
    assert_equal(model, plain, torch.randn(2, 3, 128, 128), 1e-4)


def test_inductor_compiles_what_changes_size() -> None:
    net = ViT(embed_dim=32, depth=1, num_heads=2, window_size=3, window_block_indexes=[0])
    model = adapter_of(net, num_interactions=1, num_extra_extractors=0).train()
    plain = copy.deepcopy(model)
    compile_parts(model)
    assert_equal(model, plain, torch.randn(2, 3, 96, 128), 1e-4)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for size in ((128, 96), (160, 224)):
            assert_equal(model, plain, torch.randn(2, 3, *size), 1e-4)


def test_encoder_of_mask2former(programs: Programs) -> None:
    model = exported_models.build("mask2former").requires_grad_(True)
    plain = copy.deepcopy(model)
    compile_parts(model)
    for number, size in enumerate(SIZES[:5]):
        features = plain.backbone(torch.randn(1, 3, *size))
        found, expected = (m.sem_seg_head.pixel_decoder(features) for m in (model, plain))
        torch.testing.assert_close(found.mask_features, expected.mask_features)
        if number == 0:
            first = programs.number
    assert programs.number == first > 0


def test_drop_path_is_that_of_timm(programs: Programs) -> None:
    model = adapter_of(ViT(embed_dim=32, depth=2, num_heads=2, drop_path_rate=0.25))
    compile_parts(model)
    drop_path = model.net.blocks[1].drop_path
    x = torch.ones(4000, 2, 3, dtype=torch.bfloat16)
    kept = drop_path.train()(x)
    assert kept.dtype == x.dtype
    assert ((kept == 0) | (kept == torch.tensor(1 / 0.75, dtype=x.dtype))).all()
    assert (kept[:, :1, :1] == kept).all()
    assert abs((kept[:, 0, 0] == 0).float().mean().item() - 0.25) < 0.03
    assert torch.equal(drop_path.eval()(x), x)


def test_refuses_a_model_without_parts() -> None:
    with pytest.raises(ValueError, match=r"train.compile=True, but the model has no part"):
        compile_parts(nn.Sequential(nn.Linear(2, 2)))


def test_evaluation_runs_nothing_compiled(programs: Programs) -> None:
    model = adapter_of(ViT(embed_dim=32, depth=2, num_heads=2)).eval()
    compile_parts(model)
    with torch.no_grad():
        EagerModel(model)(torch.randn(1, 3, 64, 64))
        assert programs.number == 0
        model(torch.randn(1, 3, 64, 64))
    assert programs.number > 0


def compiled(cfg: DictConfig, folder: Path) -> DictConfig:
    cfg = copy.deepcopy(cfg)
    cfg.train.compile = True
    cfg.train.output_dir = str(folder)
    return cfg


@with_backward
def test_a_run_equals_one_that_is_not_compiled(
    cfg: DictConfig, programs: Programs, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cfg.model = tiny_experiment("mask_rcnn").model  # on a ViTAdapter
    cfg.train.seed = 3
    cfg.train.amp.enabled, cfg.train.amp.dtype = True, "bfloat16"
    cfg.train.ema.enabled = True
    cfg.train.accumulate_steps = 2
    cfg.train.eval_period = 2
    do_train(cfg)
    assert programs.number == 0
    other = compiled(cfg, tmp_path / "compiled")
    with caplog.at_level(logging.INFO, "vitadapter"):
        do_train(other)
    assert programs.number > 0
    assert "train.compile: parts that the first iterations compile: " in caplog.text
    plain, found = (load(c, "model_final.pth") for c in (cfg, other))
    assert found["model"].keys() == plain["model"].keys()
    assert found["model_ema"].keys() == plain["model_ema"].keys()
    losses = [[r["total_loss"] for r in metrics_of(c) if "total_loss" in r] for c in (cfg, other)]
    assert losses[1] == pytest.approx(losses[0], rel=0.02)
    # A checkpoint of one goes on as the other.
    other.train.compile = False
    other.train.max_iter += 1
    do_train(other, resume=True)


def test_refuses_to_train_without_a_compiler(
    tiny_config: Path, overrides: list[str], tmp_path: Path
) -> None:
    environment = {
        **os.environ,
        "CXX": str(tmp_path / "no-compiler"),
        "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache"),
    }
    command = [sys.executable, "-m", "vitadapter", "train", str(tiny_config)]
    done = subprocess.run(
        [*command, *overrides, "train.compile=True"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "train.compile=True, but PyTorch cannot compile for cpu here" in done.stderr
    assert "set train.compile=False" in done.stderr
    assert not (tmp_path / "output").exists()
