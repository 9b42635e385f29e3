import pytest
import torch
from fvcore.nn import sigmoid_focal_loss
from torch.nn import functional as F

from vitadapter.modeling.dense.gfl import distribution_focal_loss, quality_focal_loss

LOGITS = torch.linspace(-4, 4, 24).view(4, 6)


@pytest.mark.parametrize("gamma", [1.0, 2.0])
def test_quality_focal_loss_of_yes_and_no_is_the_focal_loss(gamma: float) -> None:
    labels = (torch.arange(24).view(4, 6) % 3 == 0).float()
    expected = sigmoid_focal_loss(LOGITS, labels, alpha=-1, gamma=gamma)
    torch.testing.assert_close(quality_focal_loss(LOGITS, labels, beta=gamma), expected)


def test_quality_focal_loss_is_zero_at_the_quality() -> None:
    quality = torch.tensor([0.2, 0.5, 0.9])
    assert quality_focal_loss(quality.logit(), quality).abs().max() < 1e-10
    assert (quality_focal_loss(quality.logit() + 1, quality) > 1e-3).all()


def test_quality_is_not_trained() -> None:
    quality = torch.full((4, 6), 0.5, requires_grad=True)
    logits = LOGITS.clone().requires_grad_()
    quality_focal_loss(logits, quality).sum().backward()
    assert quality.grad is None
    assert logits.grad.abs().sum() > 0


def test_distribution_focal_loss_at_a_bin_is_cross_entropy() -> None:
    target = torch.tensor([0.0, 3.0, 4.0, 2.0])
    expected = F.cross_entropy(LOGITS, target.long(), reduction="none")
    torch.testing.assert_close(distribution_focal_loss(LOGITS, target), expected)


def test_distribution_focal_loss_is_least_for_the_two_bins_beside() -> None:
    """Gradient descent ends where the expectation is the target (paper, equation 7)."""
    logits = torch.zeros(1, 6, requires_grad=True)
    target = torch.tensor([2.3])
    optimizer = torch.optim.Adam([logits], lr=0.1)
    for _ in range(500):
        optimizer.zero_grad()
        distribution_focal_loss(logits, target).sum().backward()
        optimizer.step()
    probabilities = logits.softmax(1)[0].detach()
    assert float(probabilities @ torch.arange(6.0)) == pytest.approx(2.3, abs=0.02)
    assert float(probabilities[2]) == pytest.approx(0.7, abs=0.02)
