"""`train.compile`: what it compiles, that nothing else changes, and what it refuses."""

import copy

import pytest
import torch
from omegaconf import DictConfig
from torch import nn

from vitadapter.engine import trainer as trainer_module
from vitadapter.engine.compiling import check_compiler, compile_backbone
from vitadapter.engine.run_checks import check_run
from vitadapter.engine.trainer import do_train


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(4, 6), nn.Tanh())
        self.head = nn.Linear(6, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.backbone(x))


def test_names_outputs_and_gradients_stay_the_same() -> None:
    torch._dynamo.reset()
    model = Model()
    plain, x = copy.deepcopy(model), torch.randn(5, 4)
    compile_backbone(model, backend="eager")
    assert list(model.state_dict()) == list(plain.state_dict())
    for dtype in (torch.float32, torch.bfloat16):
        with torch.autocast("cpu", dtype, enabled=dtype is not torch.float32):
            outputs = [each(x) for each in (model, plain)]
        torch.testing.assert_close(*outputs)
    for each in (model, plain):
        each(x).sum().backward()
    torch.testing.assert_close(
        [p.grad for p in model.parameters()], [p.grad for p in plain.parameters()]
    )
    # As the average of the weights is one, which is only evaluated.
    assert copy.deepcopy(model).backbone._compiled_call_impl is None


def test_training_compiles_the_backbone(cfg: DictConfig, monkeypatch) -> None:
    compiled = []
    monkeypatch.setattr(trainer_module, "compile_backbone", compiled.append)
    cfg.train.max_iter = 1
    cfg.train.compile = True
    do_train(cfg)
    (model,) = compiled
    assert isinstance(model.backbone, nn.Module)


def test_a_model_without_a_backbone() -> None:
    with pytest.raises(ValueError, match=r"compiles model\.backbone, which Linear lacks"):
        compile_backbone(nn.Linear(2, 2))


def test_a_missing_compiler_is_told_before_training(cfg: DictConfig, monkeypatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    cfg.train.compile = True
    with pytest.raises(ValueError, match=r"needs a C\+\+ compiler .* no 'no-such-compiler'"):
        check_run(cfg)
    check_compiler("cuda")  # there, Triton compiles


def test_sharded_weights_are_refused(cfg: DictConfig) -> None:
    cfg.train.compile = True
    cfg.train.parallel = "fsdp2"
    with pytest.raises(ValueError, match=r"needs train\.parallel=ddp, got train\.parallel=fsdp2"):
        check_run(cfg)


def test_the_setting_is_a_bool(cfg: DictConfig) -> None:
    cfg.train.compile = "yes"
    with pytest.raises(ValueError, match=r"train\.compile must be True or False, got 'yes'"):
        check_run(cfg)
