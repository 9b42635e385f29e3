"""The contenders of the operator benchmark compute the same."""

import pytest
import torch

from benchmarks.deformable_attention import Contender, ModuleProblem, OperatorProblem
from benchmarks.interleaved import saved_bytes

IMAGE = (64, 96)
CASES = [("injector", "T", 2), ("extractor", "S", 1), ("extractor", "B", 2)]


def _results(contender: Contender, grad: torch.Tensor) -> list[torch.Tensor]:
    output = contender.call()
    return [output, *torch.autograd.grad(output, contender.leaves, grad)]


@pytest.mark.parametrize(("use", "size", "batch"), CASES)
@pytest.mark.parametrize("kind", [OperatorProblem, ModuleProblem])
def test_contenders_agree_with_their_baseline(
    kind: type[OperatorProblem | ModuleProblem], use: str, size: str, batch: int
) -> None:
    problem = kind(use, size, batch, IMAGE)
    contenders = problem.contenders()
    assert len(contenders) >= 2
    results = {name: _results(contender, problem.grad) for name, contender in contenders.items()}
    for name, contender in contenders.items():
        for got, expected in zip(results[name], results[contender.baseline], strict=True):
            scale = expected.abs().max().item()
            torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-3 * scale)


def test_shapes_of_the_paper() -> None:
    injector, extractor = (OperatorProblem(use, "S", 1) for use in ("injector", "extractor"))
    assert injector.value.shape == (1, 19950, 6, 64)
    assert injector.offsets.shape == (1, 3800, 6, 3, 4, 2)
    assert extractor.value.shape == (1, 3800, 6, 64)
    assert extractor.offsets.shape == (1, 19950, 6, 1, 4, 2)
    assert not extractor.large
    assert OperatorProblem("extractor", "S", 2).large


@pytest.mark.parametrize(("use", "most"), [("injector", 0.9), ("extractor", 0.5)])
@pytest.mark.parametrize("size", ["T", "B"])
def test_module_keeps_less_than_the_unfused_one(use: str, most: float, size: str) -> None:
    contenders = ModuleProblem(use, size, 1).contenders()
    own, unfused = (
        saved_bytes(contenders[name].call, contenders[name].leaves)
        for name in ("module", "unfused module")
    )
    assert 0 < own <= most * unfused
