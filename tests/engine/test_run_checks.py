from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig

from vitadapter.engine.overrides import apply_overrides
from vitadapter.engine.run_checks import SetupError, check_device, check_run, setup_errors


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.init_checkpoint=/nowhere/w.pth", r"/nowhere/w\.pth.*train\.init_checkpoint="),
        ("train.init_checkpoint=5", r"train\.init_checkpoint must .*got 5"),
        ("train.init_allow_partial=1", r"train\.init_allow_partial must be True or False, got 1"),
        ("train.amp.enabled=True", r"set train\.amp\.enabled=False"),
        ("train.max_iter=many", r"train\.max_iter must .*'many'"),
        ("train.max_iter=0", r"train\.max_iter must be a positive integer, got 0"),
        ("train.max_iter=true", r"train\.max_iter must .*got True"),
        ("~train.max_iter", r"train\.max_iter must .*no such key"),
        ("train.output_dir=''", r"train\.output_dir must be the name of a folder, got ''"),
        ("train.output_dir=5", r"train\.output_dir must be the name of a folder, got 5"),
        ("train.output_dir=null", r"train\.output_dir must .*got None"),
        (f"train.output_dir={__file__}", r"train\.output_dir must be the name of a folder"),
        ("train.device=cuda", r"set train\.device=cpu"),
        ("train.device=gpu", r"train\.device must be .*got 'gpu'"),
        ("train.device=0", r"train\.device must be .*got 0"),
        ("train.log_period=0", r"train\.log_period must be a positive integer, got 0"),
        ("train.log_period=2.5", r"train\.log_period must .*2\.5"),
        ("train.eval_period=-1", r"train\.eval_period must be 0 or .*got -1"),
        ("train.checkpointer.period=0", r"train\.checkpointer\.period must .*got 0"),
        ("train.checkpointer.max_to_keep=0", r"train\.checkpointer\.max_to_keep must .*got 0"),
        ("train.seed=null", r"train\.seed must be an integer.*got None"),
        ("train.seed=1.5", r"train\.seed must .*got 1\.5"),
        ("train.seed=-2", r"train\.seed must .*got -2"),
        ("train.seed=2147483648", r"train\.seed must be an integer below 2\*\*31 .*got 2147483648"),
        ("train.device=meta", r"train\.device=meta but PyTorch cannot compute on it"),
        ("train.accumulate_steps=0", r"train\.accumulate_steps must .*got 0"),
        ("train.accumulate_steps=1.5", r"train\.accumulate_steps must .*got 1\.5"),
        ("train.accumulate_steps=4", r"positive multiple of train\.accumulate_steps=4 .*got 2"),
        ("dataloader.train.total_batch_size=0", r"total_batch_size must be .*got 0"),
        ("train.amp.enabled=1", r"train\.amp\.enabled must be True or False, got 1"),
        ("train.amp.dtype=half", r"train\.amp\.dtype must be float16 or bfloat16, got 'half'"),
        ("train.amp.init_scale=0", r"train\.amp\.init_scale must be a positive number, got 0"),
        ("train.ema.enabled=maybe", r"train\.ema\.enabled must be .*got 'maybe'"),
        ("train.ema.decay=1", r"train\.ema\.decay must be a number from 0 to below 1, got 1"),
        ("train.ema.decay=0.999x", r"train\.ema\.decay must .*got '0\.999x'"),
        ("train.ema.ramp_iters=-1", r"train\.ema\.ramp_iters must .*got -1"),
        ("train.ema.ramp_itres=1", r"no key 'train\.ema\.ramp_itres'.*train\.ema\.ramp_iters"),
        (
            "train.best_checkpoint.metric=''",
            r"metric must be the name of .*segm/AP.*got ''",
        ),
        ("train.best_checkpoint.metric=3", r"train\.best_checkpoint\.metric must .*got 3"),
        (
            "model.roi_heads.mask_head=null",
            r"mask_in_features=.* set that to null too",
        ),
        ("dataloader.train.dataset.masks=False", r"dataset\.masks\) leaves the mask head"),
        ("model.roi_heads.num_classes=3", r"is \$\{dataset\.num_classes\}.*num_classes=3"),
        ("train.best_checkpoint.mode=most", r"mode must be max or min, got 'most'"),
    ],
)
def test_each_rule(cfg: DictConfig, override: str, message: str, monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    check_run(cfg)
    with pytest.raises(ValueError, match=message):
        check_run(apply_overrides(cfg, [override]))


@pytest.mark.parametrize(
    "override",
    [
        "train.checkpointer.max_to_keep=null",
        "~train.checkpointer.max_to_keep",
        "train.eval_period=0",
        "train.seed=-1",
        "~train.seed",
        "train.init_checkpoint=null",
        "train.init_checkpoint=https://host/weights.pth",
        "train.init_checkpoint=hf://org/repo/model.safetensors",
        "train.init_checkpoint=timm://vit_small_patch14_dinov2",
        "train.init_allow_partial=True",
        "~train.init_allow_partial",
        "train.accumulate_steps=2",
        "train.amp={enabled: True, dtype: bfloat16}",
        "train.ema={enabled: True, decay: 0, ramp_iters: 0}",
        "train.best_checkpoint={metric: bbox/AP50, mode: min}",
        "~train.accumulate_steps",
        "~train.amp.dtype",
        "~train.ema",
        "~train.ema.decay",
        "~train.best_checkpoint",
    ],
)
def test_what_is_allowed(cfg: DictConfig, override: str) -> None:
    check_run(apply_overrides(cfg, [override]))


def test_the_home_folder_is_expanded(cfg: DictConfig, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "w.pth").write_bytes(b"weights")
    cfg.train.output_dir, cfg.train.init_checkpoint = "~/run", "~/w.pth?matching_heuristics=True"
    check_run(cfg)
    assert cfg.train.output_dir == f"{tmp_path}/run"
    assert cfg.train.init_checkpoint == f"{tmp_path}/w.pth?matching_heuristics=True"
    assert cfg.dataloader.evaluator.output_dir == f"{tmp_path}/run/inference"
    cfg.train.output_dir = "~nobody of this name/run"
    check_run(cfg)
    assert cfg.train.output_dir == "~nobody of this name/run"


def test_a_used_folder_is_not_overwritten(cfg: DictConfig) -> None:
    folder = Path(cfg.train.output_dir)
    folder.mkdir()
    (folder / "last_checkpoint").write_text("model_final.pth")
    with pytest.raises(ValueError, match=r"already holds checkpoints.*--resume.*output_dir="):
        check_run(cfg)
    cfg.train.init_checkpoint = "/nowhere/w.pth"  # not needed any more
    check_run(cfg, resume=True)


def test_evaluation_needs_weights_and_an_evaluator(cfg: DictConfig, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"--eval-only needs weights.*train\.init_checkpoint="):
        check_run(cfg, eval_only=True)
    cfg.train.init_checkpoint = str(tmp_path / "w.pth")
    (tmp_path / "w.pth").write_bytes(b"weights")
    cfg.train.amp.enabled = True  # of no importance
    check_run(cfg, eval_only=True)
    cfg.dataloader.evaluator = None
    with pytest.raises(ValueError, match=r"--eval-only needs dataloader\.evaluator"):
        check_run(cfg, eval_only=True)


def test_devices(monkeypatch) -> None:
    check_device("cpu")
    with pytest.raises(ValueError, match="'gpu'"):
        check_device("gpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="finds no GPU"):
        check_device("cuda:0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    check_device("cuda:1")
    with pytest.raises(ValueError, match="cuda:2 but PyTorch finds 2 GPUs, counted from 0"):
        check_device("cuda:2")


def test_errors_of_the_set_up_are_marked() -> None:
    with pytest.raises(SetupError, match="wrong"), setup_errors():
        raise ValueError("wrong")
    with pytest.raises(SetupError, match=r"a\.b: Interpolation key 'c' not found"), setup_errors():
        DictConfig({"a": {"b": "${c}"}}).a.b  # noqa: B018
    with pytest.raises(KeyError), setup_errors():
        raise KeyError("a fault, not a mistake")
