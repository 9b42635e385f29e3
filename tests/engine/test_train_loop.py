import json
import multiprocessing
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import pytest
import torch
from detectron2.layers import NaiveSyncBatchNorm
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import DictConfig
from small_trainer import SmallModel, batches, distributed, error_of, run, samples
from torch import nn
from training_samples import act, last, load, metrics_of, spoil_image

from vitadapter.data.dataset_mapper import DatasetMapper
from vitadapter.engine import train_loop
from vitadapter.engine.checkpoint import find_not_finite
from vitadapter.engine.failures import share_failure
from vitadapter.engine.overrides import apply_overrides
from vitadapter.engine.run_checks import SetupError
from vitadapter.engine.train_loop import AccumulatingTrainer
from vitadapter.engine.trainer import do_train
from vitadapter.solver import ClippedAdamW

OPTIMIZERS = {
    "momentum": lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9),
    # So tight that every gradient is clipped: the bound holds for the sum, not for the parts.
    "clipped": lambda params: ClippedAdamW(params, lr=0.01, max_norm=0.1),
}


def weights_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.named_parameters()}


def trained_in_full_batches(build: Callable, size: int, iterations: int) -> SmallModel:
    """The textbook loop."""
    model = SmallModel()
    optimizer = build(model.parameters())
    for batch in batches(samples(size * iterations), size):
        optimizer.zero_grad()
        sum(model(batch).values()).backward()
        optimizer.step()
    return model


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("steps", [1, 2, 4])
def test_micro_batches_train_as_one_batch(name: str, steps: int) -> None:
    model = SmallModel()
    trainer = AccumulatingTrainer(
        model,
        batches(samples(24), 8 // steps),
        OPTIMIZERS[name](model.parameters()),
        accumulate_steps=steps,
    )
    storage = run(trainer, 3)
    expected = trained_in_full_batches(OPTIMIZERS[name], 8, 3)
    torch.testing.assert_close(weights_of(model), weights_of(expected), atol=1e-6, rtol=1e-5)
    assert int(model.seen) == 24
    # Logged is the mean, of the losses that a whole batch would have.
    before_last = trained_in_full_batches(OPTIMIZERS[name], 8, 2)
    losses = {key: value.item() for key, value in before_last(samples(24)[16:]).items()}
    logged = {key: value for key, (value, _) in storage.latest().items() if "loss" in key}
    assert logged == pytest.approx({**losses, "total_loss": sum(losses.values())}, rel=1e-5)


def test_distributed_micro_batches(tmp_path: Path) -> None:
    # This process is the first: importing PyTorch in a second one is what takes the time.
    other = multiprocessing.get_context("spawn").Process(target=distributed, args=(1, tmp_path))
    other.start()
    try:
        distributed(0, tmp_path)
    finally:
        other.join()
    reports = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)]
    expected = trained_in_full_batches(lambda p: torch.optim.SGD(p, lr=0.1), 4, 2)
    for report in reports:
        found = {n: torch.tensor(report["weights"][n]) for n in weights_of(expected)}
        torch.testing.assert_close(found, weights_of(expected), atol=1e-6, rtol=1e-5)
        # The last two before the NaN loss and the infinite gradient were seen.
        assert report["reductions"] == 2 + 2
        assert report["unchanged"]
    measured = {"images_per_second", "memory_mb"}
    assert reports[0]["losses"].keys() == {"loss_cls", "loss_box", "total_loss"} | measured
    # The fault of one process stops both, and they say the same of it.
    assert reports[0]["messages"][:3] == reports[1]["messages"][:3]
    nan, gradient, diverged, data, forward = reports[0]["messages"]
    assert nan.endswith("(loss_cls=nan, loss_box=nan) at iteration 0, images: 1.png")
    assert diverged.endswith("contain Inf/NaN. at iteration 0, images: 1.png")
    # Shared by the processes, it may be any image's.
    assert gradient.startswith("the gradient became infinite or NaN (of ")
    assert gradient.endswith("at iteration 0, images: 0.png, 1.png, 0.png, 1.png")
    # Other errors have their traceback.
    for heard, reason in zip((data, forward), reports[1]["messages"][3:], strict=True):
        first, *traceback = heard.splitlines()
        assert first.startswith("process 1 on ")
        assert first.endswith(f" failed: RuntimeError: {reason}")
        assert traceback[0] == "Traceback (most recent call last):"
        assert traceback[-1] == f"RuntimeError: {reason}"
    assert data.endswith("a worker has died")
    assert "size of tensor" in forward


@pytest.mark.parametrize(
    ("norm", "asks"),
    [(nn.BatchNorm2d, True), (nn.SyncBatchNorm, False), (NaiveSyncBatchNorm, False)],
)
def test_who_stops_before_an_exchange_does_not_ask_for_another(
    norm: type[nn.Module], asks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others have begun the exchange of the heads, and would never answer."""
    shared: list[Exception | None] = []

    def share(error: Exception | None, iteration: int, images: Sequence[str] = ()) -> None:
        shared.append(error)
        share_failure(error, iteration, images)

    monkeypatch.setattr(train_loop, "share_failure", share)
    model = SmallModel()
    model.roi_heads = nn.Sequential(nn.Conv2d(2, 2, 1), norm(2))
    diverged = [{**sample, "diverged": True} for sample in samples(2)]
    trainer = AccumulatingTrainer(
        model, batches(diverged, 2), OPTIMIZERS["momentum"](model.parameters())
    )
    message = "Predicted boxes or scores contain Inf/NaN. at iteration 0, images: 0.png, 1.png"
    assert error_of(trainer) == message
    assert [error is not None for error in shared] == ([False, True] if asks else [False])


@pytest.mark.parametrize("amp_dtype", [None, torch.float16])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nothing_is_updated_by_a_loss_that_is_not_finite(
    value: float, amp_dtype: torch.dtype | None
) -> None:
    model, given = SmallModel(), samples(4)
    given[2]["target"][1] = value
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = weights_of(model)
    trainer = AccumulatingTrainer(
        model, batches(given, 2), optimizer, accumulate_steps=2, amp_dtype=amp_dtype
    )
    assert error_of(trainer) == (
        f"the loss became infinite or NaN (loss_box={value}) at iteration 0, images: 2.png, 3.png"
    )
    torch.testing.assert_close(weights_of(model), before, atol=0, rtol=0)
    assert trainer.grad_scaler.get_scale() == (512.0 if amp_dtype else 1.0)


@given(
    index=st.integers(0, 73),
    value=st.sampled_from([float("nan"), float("inf"), -float("inf"), 1e25]),
    amp_dtype=st.sampled_from([None, torch.bfloat16]),
    name=st.sampled_from(sorted(OPTIMIZERS)),
)
@settings(deadline=None, max_examples=25)
def test_nothing_is_updated_by_a_gradient_that_is_not_finite(
    index: int, value: float, amp_dtype: torch.dtype | None, name: str
) -> None:
    """1e25 is finite, but its square, which the norm and Adam need, is not."""
    model = SmallModel()
    owners = [(n, i) for n, p in model.named_parameters() for i in range(p.numel())]
    owner, offset = owners[index]

    def spoil(gradient: torch.Tensor) -> torch.Tensor:
        spoiled = gradient.clone()
        spoiled.view(-1)[offset] = value
        return spoiled

    model.get_parameter(owner).register_hook(spoil)
    optimizer = OPTIMIZERS[name](model.parameters())
    before = weights_of(model)
    trainer = AccumulatingTrainer(
        model, batches(samples(4), 2), optimizer, accumulate_steps=2, amp_dtype=amp_dtype
    )
    where = "its norm is" if value == 1e25 else f"of 1 parameters, such as {owner}"
    images = ", ".join(f"{i}.png" for i in range(4))
    assert error_of(trainer) == (
        f"the gradient became infinite or NaN ({where}) at iteration 0, images: {images}"
    )
    torch.testing.assert_close(weights_of(model), before, atol=0, rtol=0)
    assert not optimizer.state


def test_images_without_a_file_go_by_their_id() -> None:
    model, (sample,) = SmallModel(), samples(1)
    del sample["file_name"]
    sample.update(image_id=31, diverged=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    assert error_of(AccumulatingTrainer(model, [[sample]], optimizer)).endswith("images: 31")


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float16, 2e-3), (torch.bfloat16, 2e-2)], ids=str
)
def test_mixed_precision(dtype: torch.dtype, tolerance: float) -> None:
    model, seen = SmallModel(), []
    model.first.register_forward_hook(lambda module, args, out: seen.append(out.dtype))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    trainer = AccumulatingTrainer(
        model,
        batches(samples(24), 4),
        optimizer,
        accumulate_steps=2,
        amp_dtype=dtype,
        init_scale=512.0,
    )
    run(trainer, 3)
    assert set(seen) == {dtype}
    assert trainer.grad_scaler.is_enabled() == (dtype is torch.float16)
    expected = trained_in_full_batches(lambda p: torch.optim.SGD(p, lr=0.1), 8, 3)
    torch.testing.assert_close(
        weights_of(model), weights_of(expected), atol=tolerance, rtol=tolerance
    )


def half_trainer(model: SmallModel, data: Iterable, scale: float) -> AccumulatingTrainer:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return AccumulatingTrainer(
        model, data, optimizer, accumulate_steps=2, amp_dtype=torch.float16, init_scale=scale
    )


def test_an_infinite_gradient_only_lowers_the_scale() -> None:
    model = SmallModel()
    before = weights_of(model)
    trainer = half_trainer(model, batches(samples(4), 2), 2.0**40)
    run(trainer, 1)
    assert trainer.grad_scaler.get_scale() == 2.0**39
    torch.testing.assert_close(weights_of(model), before, atol=0, rtol=0)


def test_a_gradient_that_is_always_infinite_stops_training_under_float16_too() -> None:
    model = SmallModel()
    before = weights_of(model)
    model.first.weight.register_hook(lambda gradient: gradient * float("nan"))
    trainer = half_trainer(model, batches(samples(200), 2), 512.0)
    with pytest.raises(
        FloatingPointError,
        match=r"^the gradient stays infinite or NaN \(float16's loss scale fell to .*e-06\) "
        r"at iteration 26, images: 104\.png, 105\.png, 106\.png, 107\.png$",
    ):
        run(trainer, 50)
    torch.testing.assert_close(weights_of(model), before, atol=0, rtol=0)


def test_the_scale_is_resumed_where_there_is_one() -> None:
    model = SmallModel()
    state = half_trainer(model, [], 64.0).state_dict()
    resumed = half_trainer(model, [], 512.0)
    resumed.load_state_dict(state)
    assert resumed.grad_scaler.get_scale() == 64.0
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    plain = AccumulatingTrainer(model, [], optimizer)
    plain.load_state_dict(state)
    fresh = half_trainer(model, [], 512.0)
    fresh.load_state_dict(plain.state_dict())
    assert fresh.grad_scaler.get_scale() == 512.0


def test_no_micro_batches_are_refused() -> None:
    optimizer = torch.optim.SGD(SmallModel().parameters(), lr=0.1)
    with pytest.raises(ValueError, match="accumulate_steps must be a positive integer, got 0"):
        AccumulatingTrainer(SmallModel(), [], optimizer, accumulate_steps=0)


class CountingMapper(DatasetMapper):
    """Counts the images that are asked for."""

    calls = 0

    def __call__(self, dataset_dict: dict) -> dict | None:
        type(self).calls += 1
        return super().__call__(dataset_dict)


def test_a_run_counts_updates(cfg: DictConfig, monkeypatch) -> None:
    monkeypatch.setattr(CountingMapper, "calls", 0)
    cfg.dataloader.train.mapper._target_ = CountingMapper
    changes = ["train.accumulate_steps=2", "train.checkpointer.period=2", "train.eval_period=2"]
    apply_overrides(cfg, [*changes, "dataloader.train.total_batch_size=4"])
    do_train(cfg)
    assert CountingMapper.calls in range(12, 17)  # 3 updates of 4 images, and some read ahead
    rows = metrics_of(cfg)
    assert [row["iteration"] for row in rows if "total_loss" in row] == [0, 1, 2]
    assert len([row for row in rows if "bbox/AP" in row]) == 2
    lr, end = cfg.optimizer.lr, cfg.lr_multiplier.end_value
    expected = [lr * (1 + (end - 1) * i / 3) for i in range(3)]
    assert [row["lr"] for row in rows if "total_loss" in row] == pytest.approx(expected)
    assert Path(cfg.train.output_dir, "model_0000001.pth").is_file()
    steps = {
        float(m["step"]) for m in load(cfg, last(cfg))["trainer"]["optimizer"]["state"].values()
    }
    assert steps == {3.0}
    apply_overrides(cfg, ["train.max_iter=4", "train.accumulate_steps=4"])
    do_train(cfg, resume=True)
    assert load(cfg, last(cfg))["trainer"]["iteration"] == 3


def test_bfloat16_needs_no_gpu(cfg: DictConfig) -> None:
    apply_overrides(cfg, ["train.amp.enabled=True", "train.amp.dtype=bfloat16"])
    cfg.train.max_iter = 1
    assert "segm" in do_train(cfg)


@pytest.mark.parametrize("total", [3, 2])
def test_a_batch_that_does_not_divide_is_refused(cfg: DictConfig, total: int) -> None:
    cfg.dataloader.train.total_batch_size = total
    cfg.train.accumulate_steps = 4
    with pytest.raises(SetupError, match=rf"multiple of train\.accumulate_steps=4 .* got {total}"):
        do_train(cfg)
    assert not Path(cfg.train.output_dir).exists()


def test_loss_that_is_not_finite_names_iteration_and_images(cfg: DictConfig) -> None:
    act(cfg, spoil_image, at=1)
    with pytest.raises(FloatingPointError, match=r"at iteration 1, images: .*00\d\.png"):
        do_train(cfg)
    state = load(cfg, last(cfg))
    assert state["trainer"]["iteration"] == 0
    assert all(v.isfinite().all() for v in state["model"].values() if v.is_floating_point())


class NaNGradient(torch.autograd.Function):
    """The identity, whose gradient is NaN."""

    @staticmethod
    def forward(ctx: object, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: object, gradient: torch.Tensor) -> torch.Tensor:
        return gradient * float("nan")


def test_a_gradient_that_is_not_finite_leaves_the_weights_of_before(
    cfg: DictConfig, monkeypatch
) -> None:
    """The losses are finite, and so are the batch statistics; the next start goes on."""

    def spoil(sample: dict) -> None:
        forward = torch.nn.Linear.forward
        monkeypatch.setattr(
            torch.nn.Linear, "forward", lambda self, x: NaNGradient.apply(forward(self, x))
        )

    mapper = cfg.dataloader.train.mapper.copy()
    act(cfg, spoil, at=2)
    cfg.train.ema.enabled = True
    with pytest.raises(
        FloatingPointError,
        match=r"gradient became infinite or NaN \(of \d+ parameters, such as .*\) at iteration 2, "
        r"images: .*\.png",
    ):
        do_train(cfg)
    monkeypatch.undo()
    state = load(cfg, last(cfg))
    assert state["trainer"]["iteration"] == 1
    assert find_not_finite(state) is None
    cfg.dataloader.train.mapper = mapper
    do_train(cfg, resume=True)
    assert load(cfg, "model_final.pth")["iteration"] == 2


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ConnectionResetError(104, "reset"), r"num_workers lower \(ConnectionResetError: .*reset"),
        (EOFError(), r"num_workers lower \(EOFError: "),
        (RuntimeError("DataLoader worker (pid(s) 7) exited"), r"num_workers lower .*pid\(s\) 7"),
        (RuntimeError("Caught KeyError in DataLoader worker process 0."), r"^Caught KeyError"),
        (EOFError("Caught EOFError in DataLoader worker process 0."), r"^Caught EOFError"),
    ],
)
def test_what_a_worker_that_has_ended_means(error: Exception, message: str) -> None:
    def fail() -> Iterator[list[dict[str, object]]]:
        raise error
        yield

    model = SmallModel()
    trainer = AccumulatingTrainer(model, fail(), torch.optim.SGD(model.parameters(), lr=0.1))
    with pytest.raises((RuntimeError, EOFError), match=message):
        run(trainer, 1)
