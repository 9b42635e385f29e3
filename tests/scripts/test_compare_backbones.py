"""`scripts/compare_backbones.py` on tiny detectors, against models that are built and run."""

import compare_backbones
import pytest
import torch
from compare_backbones import KINDS, WHOLES, Costs, count, main, peers
from detectron2.config import instantiate
from omegaconf import DictConfig
from project_configs import count_parameters

from vitadapter.analysis import Workload

_ADAPTER = "model.backbone.bottom_up"
_NET = f"{_ADAPTER}.net"
TINY = [
    *(f"{_NET}.embed_dim=32", f"{_NET}.depth=4", f"{_NET}.num_heads=2", f"{_NET}.window_size=3"),
    *(f"{_NET}.window_block_indexes=[0,2]", f"{_NET}.layer_scale_init=null"),
    *(f"{_ADAPTER}.deform_num_heads=4", f"{_ADAPTER}.num_interactions=2"),
    *("model.backbone.out_channels=32", "model.proposal_generator.head.in_channels=32"),
    *("model.roi_heads.batch_size_per_image=16", "model.roi_heads.box_head.fc_dims=[32]"),
    *(f"model.roi_heads.{head}.input_shape.channels=32" for head in ("box_head", "mask_head")),
    *("model.roi_heads.box_predictor.input_shape.channels=32", "dataset.num_classes=3"),
    "model.roi_heads.mask_head.conv_dims=[32,32]",
    "model.proposal_generator.post_nms_topk=[50,50]",
]
NAMES = ["ViT", "ViTDet", "ViT-Adapter"]


@pytest.fixture(scope="module")
def tiny_peers() -> dict[str, DictConfig]:
    return peers("tiny", TINY)


@pytest.fixture(scope="module")
def counted(tiny_peers: dict[str, DictConfig]) -> dict[str, dict[str, Costs]]:
    return {name: count(cfg, Workload((64, 96), 2, objects=8)) for name, cfg in tiny_peers.items()}


def test_peers_have_the_same_net_heads_and_maps(tiny_peers: dict[str, DictConfig]) -> None:
    models = {name: instantiate(cfg.model).eval() for name, cfg in tiny_peers.items()}
    assert list(models) == NAMES

    def shapes(module: torch.nn.Module) -> dict[str, torch.Size]:
        return {name: tensor.shape for name, tensor in module.state_dict().items()}

    found = []
    for name, model in models.items():
        wrapper = model.backbone if name == "ViTDet" else model.backbone.bottom_up
        with torch.no_grad():
            maps = model.backbone(torch.zeros(1, 3, 64, 96))
        heads = shapes(model.proposal_generator) | shapes(model.roi_heads)
        found.append((shapes(wrapper.net), heads, {key: x.shape for key, x in maps.items()}))
    assert found == [found[0]] * 3
    assert list(found[0][2]) == ["p2", "p3", "p4", "p5", "p6"]
    assert len({count_parameters(model) for model in models.values()}) == 3


@pytest.mark.parametrize("name", NAMES)
def test_figures_of_a_batch(
    name: str, tiny_peers: dict[str, DictConfig], counted: dict[str, dict[str, Costs]]
) -> None:
    model = instantiate(tiny_peers[name].model)
    small, large = (counted[name][whole] for whole in WHOLES)
    assert small.parameters == count_parameters(model.backbone)
    assert large.parameters == count_parameters(model)
    assert 0 < small.flops < large.flops
    for kind in KINDS:
        assert 0 < small.work[kind].launches < large.work[kind].launches
        assert 0 < small.work[kind].bytes < large.work[kind].bytes
        # Weights and, in a step, their gradients are in memory.
        least = (1 if kind == "inference" else 2) * 4
        assert small.peaks[kind] > least * small.parameters
        assert large.peaks[kind] > small.peaks[kind]
    assert small.work["step"].flops > 2 * small.work["inference"].flops


def test_tables(
    tiny_peers: dict[str, DictConfig],
    counted: dict[str, dict[str, Costs]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(compare_backbones, "peers", lambda size, overrides: tiny_peers)
    known = {id(cfg): counted[name] for name, cfg in tiny_peers.items()}
    monkeypatch.setattr(compare_backbones, "count", lambda cfg, workload: known[id(cfg)])
    main(["--models", "tiny", "--rounds", "1", "--time-size", "64x96"])
    backbone, whole, rest = capsys.readouterr().out.split("\n\n")
    assert rest == ""
    for table, name in ((backbone, "tiny, backbone"), (whole, "tiny, Mask R-CNN")):
        rows = [[cell.strip() for cell in line[2:-2].split(" | ")] for line in table.splitlines()]
        assert rows[0][0] == name
        assert [row[0] for row in rows[2:]] == [*NAMES, "ViT-Adapter over ViTDet"]
        vitdet, adapter, ratio = rows[3:]
        # What has one figure, and what has one of inference and one of a step.
        assert [len(cell.split(" / ")) for cell in adapter[1:]] == [1, 1, 2, 2, 2, 2, 2]
        launches = [[int(n) for n in row[3].split(" / ")] for row in (adapter, vitdet)]
        expected = [ours / theirs for ours, theirs in zip(*launches, strict=True)]
        assert ratio[3] == " / ".join(f"{value:.2f}" for value in expected)
        assert min(expected) > 1


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        (["--rounds", "-1"], "--rounds must not be negative, got -1"),
        (["--time-size", "64x96"], "--time-size needs --rounds"),
        (["--size", "64"], "a size is HEIGHTxWIDTH in pixels, got '64'"),
    ],
)
def test_bad_options(options: list[str], rule: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(options)
    assert rule in capsys.readouterr().err


def test_bad_values() -> None:
    with pytest.raises(SystemExit, match="batch must be"):
        main(["--batch", "0"])
    with pytest.raises(SystemExit, match="no_such_key"):
        main(["--models", "tiny", "--overrides", "model.backbone.no_such_key=1"])
