import pytest
import torch
from timm.models.beit import Beit
from torch import Tensor

from vitadapter.checkpoint import convert_beit
from vitadapter.modeling.backbone import BEiT

DIM, DEPTH, HEADS = 24, 3, 2
SHARED = "rel_pos_bias.relative_position_bias_table"


def _pretrained(shared_table: bool = False) -> dict[str, Tensor]:
    """The layout of checkpoint_layouts.md section 1.4, from timm's model and its own additions."""
    model = Beit(
        img_size=64,
        embed_dim=DIM,
        depth=DEPTH,
        num_heads=HEADS,
        num_classes=7,
        init_values=0.1,
        use_abs_pos_emb=False,
        use_rel_pos_bias=not shared_table,
        use_shared_rel_pos_bias=shared_table,
    )
    state = {name: torch.randn_like(tensor.float()) for name, tensor in model.state_dict().items()}
    index = torch.zeros(17, 17, dtype=torch.int64)
    if shared_table:
        return state | {
            "rel_pos_bias.relative_position_index": index,
            "mask_token": torch.zeros(1, 1, DIM),
            "lm_head.weight": torch.zeros(5, DIM),
            # BEiTv2's decoder of the class token
            "cls_pt_layers.0.attn.qkv.weight": torch.zeros(3 * DIM, DIM),
            "norm.weight": torch.zeros(DIM),
            "norm.bias": torch.zeros(DIM),
        }
    return state | {f"blocks.{i}.attn.relative_position_index": index for i in range(DEPTH)}


def _net() -> BEiT:
    return BEiT(64, embed_dim=DIM, depth=DEPTH, num_heads=HEADS, use_cls_token=True)


def test_a_fine_tuned_file() -> None:
    state = _pretrained()
    before = dict(state)
    converted = convert_beit(state).tensors
    assert state == before
    net = _net()
    net.load_state_dict(converted, strict=True)
    assert all(converted[name] is state[name] for name in net.state_dict())


def test_a_shared_table_goes_to_every_block() -> None:
    state = _pretrained(shared_table=True)
    converted = convert_beit(state).tensors
    net = _net()
    net.add_final_norm()
    net.load_state_dict(converted, strict=True)
    tables = [converted[f"blocks.{i}.attn.relative_position_bias_table"] for i in range(DEPTH)]
    for table in tables:
        torch.testing.assert_close(table, state[SHARED], rtol=0, atol=0)
    assert len({table.data_ptr() for table in tables}) == DEPTH


@pytest.mark.parametrize(
    "missing",
    [
        "patch_embed.proj.weight",
        "blocks.0.attn.q_bias",
        "blocks.0.attn.qkv.weight",
        "blocks.0.attn.relative_position_bias_table",
    ],
)
def test_what_is_no_beit_is_refused(missing: str) -> None:
    state = _pretrained()
    del state[missing]
    with pytest.raises(ValueError, match=f"a pre-trained BEiT has.*{missing}.*among"):
        convert_beit(state)


@pytest.mark.parametrize("extra", ["level_embed", "fpn1.0.weight"])
def test_an_official_backbone_is_refused(extra: str) -> None:
    with pytest.raises(ValueError, match=f"no pyramid.*{extra}"):
        convert_beit(_pretrained() | {extra: torch.zeros(1)})


def test_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="among 0 entries"):
        convert_beit({})
