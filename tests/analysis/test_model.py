"""What experiments cost, against the paper's figures."""

import json
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from vitadapter.analysis import analyze_model
from vitadapter.commands.analyze_model import main, script
from vitadapter.engine.overrides import load_config

MASK_RCNN = "COCO/mask_rcnn_vit_adapter_s_deit_1x"


def test_mask_rcnn_costs_what_the_paper_says_at_800_x_1280(shared: Path) -> None:
    tables = json.loads((shared / "reference" / "paper_tables.json").read_text())
    (paper,) = (r for r in tables["table_7"]["rows"] if r["attention"] == "Deformable")
    found = analyze_model(load_config(MASK_RCNN), (800, 1280))
    assert found.total.flops.total() / 1e9 == pytest.approx(paper["GFLOPs"], rel=0.01)
    assert found.total.parameters / 1e6 == pytest.approx(paper["params_M"], abs=0.05)
    assert list(found.parts) == [
        "backbone.bottom_up.net (ViT)",
        "backbone.bottom_up (ViTAdapter)",
        "backbone (FPN)",
        "proposal_generator (RPN)",
        "roi_heads (StandardROIHeads)",
    ]
    # Paper section 3.4 and table 10.
    assert found.parts["backbone.bottom_up (ViTAdapter)"].parameters / 1e6 == pytest.approx(
        5.8, abs=0.05
    )
    assert all(part.flops for part in found.parts.values())
    assert "torchvision::roi_align" in found.not_counted


@pytest.mark.parametrize(
    ("name", "head"),
    [
        ("COCO/atss_vit_adapter_s_deit_3x", "head (ATSSHead)"),
        ("COCO/htcpp_vit_adapter_l_beit_3x", "roi_heads (HTCROIHeads)"),
        ("COCO/cascade_mask_rcnn_vit_adapter_s_deit_3x", "roi_heads (CascadeROIHeads)"),
        ("COCO/sparse_rcnn_vit_adapter_s_deit_3x", "stages (ModuleList)"),
        ("ADE20K/upernet_vit_adapter_s_deit_160k", "sem_seg_head (HeadWithAuxiliary)"),
        ("ADE20K/mask2former_vit_adapter_s_dinov2_finetune", "sem_seg_head (Mask2FormerHead)"),
    ],
)
def test_every_kind_of_head_is_counted(name: str, head: str) -> None:
    found = analyze_model(load_config(name), (256, 320))
    assert found.has_heads
    assert found.parts[head].flops.total() > 0
    assert "other" not in found.parts


def test_a_frozen_net_is_not_trained() -> None:
    cfg = load_config(MASK_RCNN, ["model.backbone.bottom_up.freeze_net=True"])
    parts = analyze_model(cfg, (64, 64)).parts
    net = parts["backbone.bottom_up.net (ViT)"]
    assert (net.trained, net.parameters > 0) == (0, True)
    rest = [part for part in parts.values() if part is not net]
    assert [part.trained for part in rest] == [part.parameters for part in rest]


def test_heads_of_an_unknown_class_are_said_to_be_missing() -> None:
    cfg = load_config(MASK_RCNN)
    cfg.model = {"_target_": "analysis_samples.Unknown", "backbone": cfg.model.backbone}
    found = analyze_model(cfg, (64, 64))
    assert not found.has_heads
    assert "heads are not counted" in found.table()


def test_command_and_script_print_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    override = "model.backbone.bottom_up.num_interactions=2"
    main([MASK_RCNN, "--size", "64", "96", override])
    printed = capsys.readouterr().out
    script(["--config-file", MASK_RCNN, "--size", "64", "96", override])
    assert capsys.readouterr().out == printed
    assert "GFLOPs, 64 x 96" in printed
    assert "gelu (" in printed
    assert "| backbone.bottom_up (ViTAdapter) | vitadapter::ms_deform_attn_fused |" in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--size", "0", "64"], r"at least 1, got \(0, 64\)"),
        (["--size", "100000000", "64"], "at most 268435456 pixels .* got 1 x 100000000 x 64"),
        (["--batch", "2"], "--batch=2 is for --activations, --work and --measure"),
        (["--batch", "0"], "batch must be a positive integer, got 0"),
        (["--measure", "train.device=cuda:99"], "train.device=cuda:99 but PyTorch finds"),
        (["--images", "nowhere"], "must be files or folders, but nowhere does not exist"),
        (["--images", "train.seed=1"], r"--images needs .* overrides alone: \['train.seed=1'\]"),
        (["--images", ".", "model.backbon=1"], "no key 'model.backbon'"),
        (["--activations", "~train"], "train must be a group of keys"),
        (["model.backbon=1"], "no key 'model.backbon'"),
        (["model.backbone.bottom_up.num_interactions=5"], "num_interactions must be .*divides"),
    ],
)
def test_mistakes(arguments: list[str], message: str) -> None:
    with pytest.raises(SystemExit, match=message):
        main([MASK_RCNN, *arguments])


def test_a_config_without_a_backbone() -> None:
    with pytest.raises(ValueError, match=r"needs model\.backbone"):
        analyze_model(OmegaConf.create({"train": {}}), (64, 64))


def test_activations_and_measurements_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    net = ["depth=4", "embed_dim=64", "num_heads=2", "window_block_indexes=[]"]
    overrides = [f"model.backbone.bottom_up.net.{override}" for override in net]
    overrides += ["model.backbone.bottom_up.deform_num_heads=4", "train.device=cpu"]
    options = ["--size", "32", "64", "--batch", "2", "--activations", "--measure"]
    main(["ADE20K/semantic_fpn_vit_adapter_t_deit_80k", *options, *overrides])
    printed = capsys.readouterr().out
    assert "kept for the backward pass of 2 x 32 x 64 (MiB)" in printed
    assert "| backbone.bottom_up.net " in printed
    assert "2 x 32 x 64 on cpu" in printed
    for step in ("training, float32", "inference, float32", "training, bfloat16"):
        assert f"| {step}" in printed
