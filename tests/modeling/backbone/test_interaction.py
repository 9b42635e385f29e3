import torch
import torch.nn.functional as F
from torch import nn

from vitadapter.modeling.backbone.interaction import (
    ConvFFN,
    Extractor,
    Injector,
    TokenGrids,
)

CPU = torch.device("cpu")


def test_token_grids():
    grids = TokenGrids.of((4, 6), CPU)
    assert grids.vit == (4, 6)
    assert grids.pyramid == ((8, 12), (4, 6), (2, 3))
    assert grids.vit_points.shape == (1, 24, 1, 2)
    assert grids.pyramid_points.shape == (1, 96 + 24 + 6, 1, 2)
    # Row by row, (x, y), centres of the cells.
    torch.testing.assert_close(
        grids.vit_points[0, [0, 1, 6], 0],
        torch.tensor([[0.5 / 6, 0.5 / 4], [1.5 / 6, 0.5 / 4], [0.5 / 6, 1.5 / 4]]),
    )
    torch.testing.assert_close(grids.pyramid_points[:, 96:120], grids.vit_points)
    torch.testing.assert_close(grids.pyramid_points[0, -1, 0], torch.tensor([2.5 / 3, 1.5 / 2]))


def test_sampling_a_map_at_its_own_cell_centres_gives_the_map():
    grids = TokenGrids.of((4, 6), CPU)
    image = torch.randn(1, 2, 4, 6)
    points = grids.vit_points.view(1, 4, 6, 2) * 2 - 1
    torch.testing.assert_close(F.grid_sample(image, points, align_corners=False), image)


def test_conv_ffn_filters_each_level_by_itself():
    grids = TokenGrids.of((2, 4), CPU)
    ffn = ConvFFN(6, 4)
    tokens = torch.randn(2, 32 + 8 + 2, 6)
    hidden = ffn.fc1(tokens)
    maps = []
    for level, (h, w) in zip(hidden.split([32, 8, 2], dim=1), grids.pyramid, strict=True):
        conv = ffn.dwconv.dwconv
        image = F.conv2d(
            level.transpose(1, 2).reshape(2, 4, h, w).contiguous(),
            conv.weight,
            conv.bias,
            padding=1,
            groups=4,
        )
        maps.append(image.flatten(2).transpose(1, 2))
    expected = ffn.fc2(F.gelu(torch.cat(maps, dim=1)))
    torch.testing.assert_close(ffn(tokens, grids), expected)


class RecordingAttention(nn.Module):
    """Returns its query, and remembers what it was given."""

    def __init__(self, num_levels: int) -> None:
        super().__init__()
        self.num_levels = num_levels

    def forward(self, query, reference_points, value, spatial_shapes):
        self.given = query, reference_points, value, spatial_shapes
        return query


def test_injector_and_extractor_hand_the_right_sides_to_the_attention():
    grids = TokenGrids.of((2, 4), CPU)
    x, c = torch.randn(1, 8, 6), torch.randn(1, 42, 6)

    injector = Injector(6, RecordingAttention, nn.LayerNorm, gamma_init=0.5)
    branch = torch.randn(1, 42, 6)
    found, total = injector(x, c - branch, grids, branch)
    torch.testing.assert_close(total, c)
    query, points, value, shapes = injector.attn.given
    torch.testing.assert_close(query, injector.query_norm(x))
    torch.testing.assert_close(value, injector.feat_norm(c))
    assert points is grids.vit_points
    assert shapes == grids.pyramid
    assert injector.attn.num_levels == len(shapes)
    torch.testing.assert_close(found, x + 0.5 * query)

    extractor = Extractor(6, RecordingAttention, nn.LayerNorm, ffn_ratio=0, drop_path_rate=0)
    found, attended, same = extractor(c - branch, x, grids, branch)
    assert same is x
    query, points, value, shapes = extractor.attn.given
    torch.testing.assert_close(query, extractor.query_norm(c))
    torch.testing.assert_close(value, extractor.feat_norm(x))
    assert points is grids.pyramid_points
    assert shapes == (grids.vit,)
    assert extractor.attn.num_levels == len(shapes)
    torch.testing.assert_close(found, c)
    assert attended is query


def test_drop_path_drops_the_ffn_and_never_the_attention():
    torch.manual_seed(0)
    grids = TokenGrids.of((2, 2), CPU)
    extractor = Extractor(4, RecordingAttention, nn.LayerNorm, ffn_ratio=1.0, drop_path_rate=0.5)
    x, c = torch.randn(64, 4, 4), torch.randn(64, 21, 4)
    with_attention = c + extractor.query_norm(c)
    found, branch, _ = extractor.train()(c, x, grids)
    torch.testing.assert_close(found, with_attention)
    assert 16 < sum(not ffn.any() for ffn in branch) < 48
