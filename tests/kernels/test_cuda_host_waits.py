"""The CUDA operators never wait for the device, so that CUDA graphs can capture them.

The emulated device runs the operators' own host code. The runtime's functions that wait
(``cudaMemcpy``, ``cudaStreamSynchronize``, ...) do not exist there, so that calls do not compile.
PyTorch's operators that wait are looked for among those that the host code calls.
"""

from collections.abc import Callable

import pytest
import torch
from cuda_emulation_cases import PYRAMID, Case, deterministic, gradients
from torch._ops import _OpNamespace

# A tensor's value on the host, shapes that depend on values, and copies, which wait for the device
# if they come from the host's pageable memory. In float32, nothing has to be copied.
WAITING = {"_local_scalar_dense", "item", "is_nonzero", "equal", "nonzero", "masked_select"}
WAITING |= {"copy_", "_to_copy", "clone"}
# More levels than the parameters of a kernel hold.
WIDE = ((2, 1), (1, 2), (1, 1)) * 50


def called(function: Callable[[], object]) -> set[str]:
    """The operators of PyTorch that a function calls, those inside of others included."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        function()
    return {event.name.removeprefix("aten::") for event in profile.events()}


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: x.item(),
        lambda x: bool(x),
        lambda x: x.nonzero(),
        lambda x: torch.tensor([1.0]).to(x.device, copy=True),
        lambda x: x.copy_(torch.tensor(1.0)),
        lambda x: x.view(1)[x.view(1) > 0],
    ],
    ids=["item", "bool", "nonzero", "to", "copy_", "mask"],
)
def test_waiting_is_seen(wait: Callable[[torch.Tensor], object]) -> None:
    assert called(lambda: wait(torch.ones(()))) & WAITING


@pytest.mark.parametrize("shapes", [PYRAMID, WIDE], ids=["usual", "wide"])
@pytest.mark.parametrize("fused", [False, True])
def test_operators_do_not_wait(
    emulated: _OpNamespace, fused: bool, shapes: tuple[tuple[int, int], ...]
) -> None:
    case = Case(fused=fused, shapes=shapes, points=1, queries=3)
    names = called(lambda: gradients(emulated, case))
    with deterministic():
        names |= called(lambda: gradients(emulated, case))
    assert any(name.endswith("ms_deform_attn_fused_backward") for name in names) == fused
    assert "empty" in names, "what is called inside of the operators is not seen"
    assert not names & WAITING
