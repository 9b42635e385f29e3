import itertools
import logging
import math
from pathlib import Path

import pytest
import torch
from detectron2.config import instantiate
from omegaconf import DictConfig
from small_trainer import SmallModel
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from training_samples import act, last, load, predictions_of, raise_error

from vitadapter.checkpoint.reading import read_state_dict
from vitadapter.engine.ema import WeightEMA
from vitadapter.engine.overrides import apply_overrides
from vitadapter.engine.predictor import LazyPredictor
from vitadapter.engine.trainer import do_eval_only, do_train


class SharingModel(nn.Module):
    """A weight under two names, a batch norm and a buffer of integers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.second.weight = self.first.weight
        self.norm = nn.BatchNorm1d(4)


def drift(model: nn.Module, seed: int) -> None:
    """What a training step does to a model: weights and statistics change."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))
        model.train()
        model.norm(torch.randn(8, 4))


def test_without_a_ramp_it_is_pytorchs_average() -> None:
    model = SharingModel()
    ours = WeightEMA(model, decay=0.9, ramp_iters=0)
    theirs = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    theirs.update_parameters(model)  # the first call copies
    for iteration in range(5):
        drift(model, iteration)
        ours.update(model, iteration)
        theirs.update_parameters(model)
    expected = theirs.module.state_dict()
    for name, value in ours.module.state_dict().items():
        if name == "norm.num_batches_tracked":  # theirs is an average of integers, cut off
            assert value == 5
        else:
            torch.testing.assert_close(value, expected[name], msg=name)


@pytest.mark.parametrize("ramp_iters", [1, 10, 2000])
def test_the_ramp_of_the_official_recipe(ramp_iters: int) -> None:
    """recipes.json: m_t = (1-m) exp(-(1+t)/ramp) + m; ema = (1-m_t) ema + m_t param."""
    momentum, model = 0.0001, SharingModel()
    ema = WeightEMA(model, decay=1 - momentum, ramp_iters=ramp_iters)
    tensors = {k: v.double() for k, v in model.state_dict().items() if v.is_floating_point()}
    for iteration in range(6):
        drift(model, iteration)
        ema.update(model, iteration)
        share = (1 - momentum) * math.exp(-(1 + iteration) / ramp_iters) + momentum
        for name, value in tensors.items():
            value.mul_(1 - share).add_(share * model.state_dict()[name])
    for name, value in tensors.items():
        averaged = ema.module.state_dict()[name].double()
        torch.testing.assert_close(averaged, value, atol=1e-5, rtol=1e-4, msg=name)


def test_the_average_is_apart_from_the_model() -> None:
    model = SmallModel()
    ema = WeightEMA(model, decay=0.5, ramp_iters=0)
    assert not ema.module.training
    assert not any(p.requires_grad for p in ema.module.parameters())
    assert all(p.requires_grad for p in model.parameters())
    before = model.first.weight.detach().clone()
    with torch.no_grad():
        model.first.weight.zero_()
    torch.testing.assert_close(ema.module.first.weight, before)
    ema.reset(model)
    assert not ema.module.first.weight.any()


@pytest.mark.parametrize(("decay", "ramp_iters"), [(1.0, 0), (-0.1, 0), (0.9, -1)])
def test_refused(decay: float, ramp_iters: int) -> None:
    rule = r"decay must be .* below 1, got" if ramp_iters == 0 else r"ramp_iters must be 0 .* -1"
    with pytest.raises(ValueError, match=rule):
        WeightEMA(SmallModel(), decay=decay, ramp_iters=ramp_iters)


@pytest.fixture
def averaging(cfg: DictConfig) -> DictConfig:
    """The tiny config with an average that lags."""
    return apply_overrides(cfg, ["train.ema.enabled=True", "train.ema.decay=0.8"])


def same(first: dict, second: dict) -> bool:
    return all(torch.equal(first[name], second[name]) for name in first)


def test_a_run_keeps_evaluates_and_saves_the_average(
    averaging: DictConfig, tmp_path: Path, caplog
) -> None:
    averaging.train.checkpointer.period = 1
    averaging.train.ema.ramp_iters = 3
    do_train(averaging)
    files = [load(averaging, f"model_{name}.pth") for name in ("0000000", "0000001", "final")]
    # Each step of the average follows from the files alone.
    for iteration, (before, after) in enumerate(itertools.pairwise(files), 1):
        keep = 0.8 * (1 - math.exp(-(1 + iteration) / 3))
        for name, value in after["model"].items():
            if value.is_floating_point():
                expected = keep * before["model_ema"][name] + (1 - keep) * value
                torch.testing.assert_close(after["model_ema"][name], expected)
    evaluated = predictions_of(averaging.train.output_dir)
    assert evaluated

    averaging.train.init_checkpoint = f"{averaging.train.output_dir}/model_final.pth"
    found = {}
    for enabled in (True, False):
        averaging.train.ema.enabled = enabled
        averaging.train.output_dir = str(tmp_path / f"evaluated_{enabled}")
        with caplog.at_level(logging.INFO, "vitadapter"):
            do_eval_only(averaging)
            predictor = LazyPredictor(averaging).model.state_dict()
        found[enabled] = predictions_of(averaging.train.output_dir)
        assert same(predictor, files[-1]["model_ema" if enabled else "model"])
    assert caplog.text.count("Taking the averaged weights (model_ema)") == 2
    assert found[True] == evaluated
    assert found[False] != evaluated


def test_a_file_without_an_average_is_evaluated_as_it_is(cfg: DictConfig, tmp_path: Path) -> None:
    path = tmp_path / "official.pth"
    model = instantiate(cfg.model)
    torch.save({"state_dict": model.state_dict()}, path)
    assert same(model.state_dict(), read_state_dict(path, averaged=True))
    apply_overrides(cfg, ["train.ema.enabled=True", f"train.init_checkpoint={path}"])
    do_eval_only(cfg)


def test_training_starts_from_the_plain_weights(averaging: DictConfig, tmp_path: Path) -> None:
    averaging.train.max_iter = 1
    do_train(averaging)
    plain = load(averaging, "model_final.pth")["model"]
    averaging.train.init_checkpoint = f"{averaging.train.output_dir}/model_final.pth"
    averaging.train.output_dir = str(tmp_path / "second")
    averaging.optimizer.lr = 0.0
    do_train(averaging)
    second = load(averaging, "model_final.pth")
    names = [name for name, _ in instantiate(averaging.model).named_parameters()]
    for name in names:
        assert torch.equal(second["model"][name], plain[name]), name
        torch.testing.assert_close(second["model_ema"][name], plain[name])


def test_resumed(averaging: DictConfig) -> None:
    act(averaging, raise_error, at=2)
    with pytest.raises(RuntimeError, match="out of memory"):
        do_train(averaging)
    stopped = load(averaging, last(averaging))
    averaging.train.ema.ramp_iters = 3
    averaging.train.checkpointer.period = 1
    averaging.dataloader.train.mapper.at = -1
    do_train(averaging, resume=True)
    resumed = load(averaging, "model_0000002.pth")
    keep = 0.8 * (1 - math.exp(-(1 + 2) / 3))
    for name, value in resumed["model"].items():
        if value.is_floating_point():
            expected = keep * stopped["model_ema"][name] + (1 - keep) * value
            torch.testing.assert_close(resumed["model_ema"][name], expected)


def test_switched_on_by_a_resumed_run(cfg: DictConfig, caplog) -> None:
    cfg.train.max_iter = 1
    do_train(cfg)
    plain = load(cfg, "model_final.pth")
    assert "model_ema" not in plain
    apply_overrides(cfg, ["train.max_iter=2", "train.ema={enabled: True, decay: 0.75}"])
    cfg.train.ema.ramp_iters = 0
    with caplog.at_level(logging.WARNING, "vitadapter"):
        do_train(cfg, resume=True)
    assert "model_final.pth has no averaged weights" in caplog.text
    state = load(cfg, "model_final.pth")
    for name, value in state["model"].items():
        if value.is_floating_point():
            expected = 0.75 * plain["model"][name] + 0.25 * value
            torch.testing.assert_close(state["model_ema"][name], expected)
    cfg.train.ema.enabled = False
    cfg.train.max_iter = 3
    do_train(cfg, resume=True)
    assert "model_ema" not in load(cfg, "model_final.pth")
