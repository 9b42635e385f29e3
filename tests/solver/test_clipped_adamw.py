import pytest
import torch
from torch import Tensor

from vitadapter.solver import ClippedAdamW


def _parameters(scale: float) -> list[Tensor]:
    torch.manual_seed(0)
    parameters = [torch.nn.Parameter(torch.randn(3, 2)), torch.nn.Parameter(torch.randn(4))]
    for parameter in parameters:
        parameter.grad = scale * torch.randn_like(parameter)
    return parameters


def _groups(parameters: list[Tensor]) -> list[dict[str, object]]:
    return [{"params": [parameters[0]], "lr": 0.1}, {"params": [parameters[1]]}]


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_is_adamw_of_gradients_clipped_all_together(scale: float) -> None:
    ours, theirs = _parameters(scale), _parameters(scale)
    found = ClippedAdamW(_groups(ours), lr=0.01, max_norm=0.1)
    expected = torch.optim.AdamW(_groups(theirs), lr=0.01)
    for _ in range(3):
        norm = torch.cat([p.grad.flatten() for p in theirs]).norm()
        for parameter in theirs:
            parameter.grad *= min(1.0, 0.1 / (norm.item() + 1e-6))
        found.step()
        expected.step()
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a.grad, b.grad)
            torch.testing.assert_close(a, b)


def test_clips_what_a_closure_and_a_scaler_leave() -> None:
    (parameter,) = [torch.nn.Parameter(torch.ones(2))]
    optimizer = ClippedAdamW([parameter], max_norm=0.5)

    def closure() -> float:
        loss = (100 * parameter).sum()
        loss.backward()
        return loss.item()

    assert optimizer.step(closure) == 200
    torch.testing.assert_close(parameter.grad.norm(), torch.tensor(0.5))

    optimizer.zero_grad()
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaler.scale((0.1 * parameter).sum()).backward()
    assert parameter.grad.norm() > 100
    scaler.step(optimizer)
    torch.testing.assert_close(parameter.grad, torch.full((2,), 0.1))


@pytest.mark.parametrize("max_norm", [0.0, -1.0, float("nan")])
def test_the_bound_must_be_positive(max_norm: float) -> None:
    with pytest.raises(ValueError, match=f"max_norm must be positive, got {max_norm}"):
        ClippedAdamW(_parameters(1.0), max_norm=max_norm)
