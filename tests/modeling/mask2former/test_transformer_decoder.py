"""Attention equals torch's; the mask of attention follows the predicted masks."""

import pytest
import torch
from torch import nn

from vitadapter.modeling.mask2former.transformer_decoder import MaskedAttention, attention_mask


@pytest.mark.parametrize("masked", [False, True])
def test_equals_torch(masked: bool) -> None:
    torch.manual_seed(0)
    ours = MaskedAttention(16, 4).double()
    theirs = nn.MultiheadAttention(16, 4, batch_first=True).double()
    theirs.load_state_dict(ours.state_dict())
    query, key, value = (torch.randn(2, n, 16).double() for n in (5, 9, 9))
    mask = None
    if masked:
        mask = torch.rand(2, 5, 9) > 0.5
        mask[..., 0] = True
    repeated = None if mask is None else ~mask.repeat_interleave(4, dim=0)
    expected, _ = theirs(query, key, value, attn_mask=repeated)
    torch.testing.assert_close(ours(query, key, value, mask), expected)


def test_initial_values_are_torchs() -> None:
    torch.manual_seed(0)
    ours = MaskedAttention(64, 4)
    torch.manual_seed(0)
    theirs = nn.MultiheadAttention(64, 4)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    for name, tensor in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name].std(), tensor.std(), rtol=0.05, atol=0)


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(ValueError, match="num_heads=3, embed_dim=16"):
        MaskedAttention(16, 3)


def test_a_query_looks_inside_its_mask_or_everywhere() -> None:
    logits = torch.full((1, 3, 4, 4), -5.0)
    logits[0, 0, :2, :2] = 5.0
    logits[0, 2] = float("nan")  # a diverged query must not turn others' attention into NaN
    mask = attention_mask(logits.requires_grad_(), (2, 2))
    assert mask.tolist() == [[[True, False, False, False], [True] * 4, [True] * 4]]
    assert not mask.requires_grad
