import argparse
import contextlib
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import instantiate
from killed_runs import Kill, KilledRun, wait_for_group
from omegaconf import OmegaConf
from tools import lazyconfig_train_net as train_net

from vitadapter.checkpoint.reading import read_checkpoint_file
from vitadapter.commands import convert, train
from vitadapter.engine.overrides import load_config

pytestmark = pytest.mark.usefixtures("restored_logging")


def test_trains_resumes_and_evaluates(
    tiny_config: Path, overrides: list[str], tmp_path: Path
) -> None:
    arguments = ["--config-file", str(tiny_config)]
    train.script([*arguments, *overrides, "train.max_iter=2"])
    output = tmp_path / "output"
    assert (output / "config.yaml").is_file()
    config = (output / "config.yaml").read_bytes()
    with pytest.raises(SystemExit, match=r"^error: .*--resume"):
        train.script([*arguments, *overrides, "train.seed=9"])
    assert (output / "config.yaml").read_bytes() == config
    train.script([*arguments, "--resume", *overrides, "train.max_iter=3"])
    state = torch.load(output / "model_final.pth", weights_only=True)
    assert state["trainer"]["iteration"] == 2
    log = (output / "log.txt").read_text()
    assert "Starting training from iteration 2" in log
    assert "eta: 0:00:0" in log

    weights = f"train.init_checkpoint={output}/model_final.pth"
    elsewhere = f"train.output_dir={tmp_path / 'evaluated'}"
    train.script([*arguments, "--eval-only", *overrides, weights, elsewhere])
    names = ("output", "evaluated")
    files = [tmp_path / name / "inference" / "coco_instances_results.json" for name in names]
    trained, evaluated = (json.loads(file.read_text()) for file in files)
    assert trained
    assert trained == evaluated


def test_the_commands_train_and_evaluate(
    tiny_config: Path, overrides: list[str], tmp_path: Path
) -> None:
    train.train(
        [
            *(str(tiny_config), *overrides[:2], "--num-gpus", "1", *overrides[2:]),
            *("train.max_iter=1", "train.report=True"),
        ]
    )
    output = tmp_path / "output"
    assert (output / "report" / "index.html").is_file()
    evaluated = [f"train.output_dir={tmp_path / 'evaluated'}", "--weights"]
    train.evaluate([str(tiny_config), *overrides, *evaluated, str(output / "model_final.pth")])
    names = ("output", "evaluated")
    files = [tmp_path / name / "inference" / "coco_instances_results.json" for name in names]
    first, second = (json.loads(file.read_text()) for file in files)
    assert first == second


def test_a_checkpoint_is_evaluated_and_trained_further_without_its_config(
    tiny_config: Path, overrides: list[str], tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    train.train([str(tiny_config), *overrides, "train.max_iter=1"])
    output = Path("output")
    before = (output / "config.yaml").read_bytes()
    train.evaluate(["output/model_final.pth"])
    folders = (output, output / "output/model_final")
    files = [folder / "inference/coco_instances_results.json" for folder in folders]
    first, second = (json.loads(file.read_text()) for file in files)
    assert first == second
    assert (output / "config.yaml").read_bytes() == before
    train.train(["output/model_final.pth", "train.output_dir=further", "train.max_iter=2"])
    content = torch.load("further/model_final.pth", weights_only=True)
    assert content["trainer"]["iteration"] == 1
    assert "init_checkpoint: output/model_final.pth" in content["config"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["COCO/mask_rcnn_vit_adapter_s_diet_3x"], "COCO/mask_rcnn_vit_adapter_s_deit_3x"),
        (["no_config.py"], "no_config.py does not exist"),
        (["."], "is a folder"),
    ],
)
def test_a_config_that_is_not_there(arguments: list[str], message: str, capsys) -> None:
    with pytest.raises(SystemExit) as stopped:
        train.train(arguments)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_published_weights_are_those_of_an_experiment(tiny_config: Path, capsys) -> None:
    with pytest.raises(SystemExit):
        train.evaluate([str(tiny_config)])
    assert "--weights FILE takes your own" in capsys.readouterr().err


def test_a_stop_is_no_traceback(tiny_config: Path, overrides: list[str], monkeypatch) -> None:
    def interrupt(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "do_train", interrupt)
    with pytest.raises(SystemExit) as stopped:
        train.script(["--config-file", str(tiny_config), *overrides])
    assert stopped.value.code == 130


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train.max_itr=3"], r"'train\.max_itr'.*train\.max_iter"),
        (["dataset.num_classes=5"], r"set dataset\.num_classes=2"),
        (["train.max_iter"], "key=value"),
        (["--eval-only"], r"train\.init_checkpoint="),
        (["train.output_dir=/dev/null/run"], "/dev/null"),
        (
            ["train.inference.tta=multi_scale_flip"],
            r"group of keys \(train\.inference\.tta\.enabled, .*set these",
        ),
        (
            ["train.inference.tta={a: 1}"],
            r"no key 'train\.inference\.tta\.a' \(near keys: .*enabled",
        ),
        (["train.inference._target_=builtins.dict"], r"train\.inference must build a module"),
        (["train.inference._target_=a.b"], r"train\.inference \(a\.b with .*'a'"),
        (["model.backbone._target_=null"], r"model\.backbone \(None with .* cannot be built"),
        (["model.backbone.bottom_up._target_=os.path.join"], r"model\.backbone\.bottom_up \(os"),
        (["model.backbone.bottom_up.stem.norm=XX"], r"bottom_up\.stem \(.*norm='XX'\) .*KeyError"),
        (["+model.backbone.speed=3"], r"model\.backbone \(FPN with .*'speed'"),
        (["~model.roi_heads.box_head"], r"model\.roi_heads \(StandardROIHeads with .*'box_head'"),
        (["model.backbone.bottom_up=null"], r"model\.backbone\.bottom_up=null would put"),
        (["model.backbone.bottom_up=${nothing}"], r"bottom_up: Interpolation key 'nothing'"),
        (["model.pixel_mean=5"], r"model \(GeneralizedRCNN with pixel_mean=5.*rcnn\.py:"),
        (["~model"], "model must be a group of keys"),
        (["~dataloader"], r"dataloader\.train must be a group of keys"),
        (["optimizer.lr=-1"], r"optimizer\.lr must be 0 or a positive number, got -1"),
        (["optimizer.lr=abc"], r"optimizer\.lr must be a number, as 0\.001 is, got 'abc'"),
        (["model.roi_heads.batch_size_per_image=x"], r"must be a number, as 10000 is, got 'x'"),
        (["+optimizer.betas=[0.9]"], r"optimizer \(AdamW with .*cannot be built: ConfigIndexError"),
        (["dataloader.evaluator.output_dir=/dev/null/x"], r"Not a directory: '/dev/null/x'"),
        (["optimizer.weight_decay=null"], r"optimizer\.weight_decay must be a number, got None"),
        (["optimizer._target_=torch.optim.Adamm"], r"optimizer \(torch\.optim\.Adamm with lr="),
        (["+optimizer.betas=3"], r"optimizer \(AdamW with .*betas=3\) cannot be built: TypeError"),
        (["lr_multiplier=null"], r"lr_multiplier=null would put .*lr_multiplier\.start_value"),
        (["dataset.train.json_file=5"], r"dataloader\.train\.dataset: the file 5 does not exist"),
        (["dataloader.train.mapper.augmentations=5"], r"train\.mapper \(DatasetMapper with"),
        (
            ["dataloader.train.mapper.image_format=XYZ"],
            "must be RGB or BGR or a number of channels up to 16, got 'XYZ'",
        ),
        (["dataloader.evaluator=5"], r"dataloader\.evaluator=5 would put"),
        (["dataloader.evaluator.plot_curves=x"], r"plot_curves must be True or False, got 'x'"),
    ],
)
def test_mistakes_are_named(
    tiny_config: Path,
    overrides: list[str],
    arguments: list[str],
    message: str,
) -> None:
    options = [a for a in arguments if a.startswith("--")]
    changes = [a for a in arguments if not a.startswith("--")]
    with pytest.raises(SystemExit, match=f"(?s)^error: .*{message}") as stopped:
        train.script(["--config-file", str(tiny_config), *options, *overrides, *changes])
    assert "Traceback" not in stopped.value.code


def test_results_go_to_a_folder_of_the_configs_name(
    tiny_config: Path, overrides: list[str]
) -> None:
    others = [text for text in overrides if not text.startswith("train.output_dir=")]
    with pytest.raises(SystemExit, match=r"\./output/helpers/tiny_mask_rcnn/model_final\.pth"):
        train.script(["--config-file", str(tiny_config), "--eval-only", *others])


def test_faults_in_training_keep_their_traceback(tiny_config: Path, overrides: list[str]) -> None:
    arguments = ["--config-file", str(tiny_config), *overrides]
    Path(overrides[3].partition("=")[2], "001.png").write_bytes(b"broken")  # a test image
    with pytest.raises(ValueError, match=r"test image .*001\.png"):
        train.script([*arguments, "train.max_iter=1"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--config-file is required"),
        (["--config-file", "nowhere.py"], "nowhere.py does not exist"),
    ],
)
def test_needs_a_config(arguments: list[str], message: str, capsys) -> None:
    with pytest.raises(SystemExit) as stopped:
        train.script(arguments)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def two_processes_environment() -> dict[str, str]:
    """Without GPUs, Detectron2 starts processes that talk through gloo."""
    return {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}


def stand_in(folder: Path, name: str, text: str) -> None:
    """A command of that name in the folder."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/bash\n{text}\n")
    (folder / name).chmod(0o755)


def free_job() -> int:
    """The number of a job whose port nobody uses."""
    for job in random.sample(range(10000), 100):
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", 20000 + job)):
            return job
    raise AssertionError("no port is free")


def test_two_processes_of_a_slurm_job_whose_second_is_killed(
    repository: Path, overrides: list[str], tmp_path: Path
) -> None:
    """`torchrun` starts both again, and they go on from what the first one has saved."""
    programs = tmp_path / "bin"
    stand_in(programs, "scontrol", 'echo "$SLURM_JOB_NODELIST"')
    # It passes its options on to nobody.
    stand_in(programs, "srun", 'while [[ "$1" == -* ]]; do shift; done; exec "$@"')
    stand_in(programs, "torchrun", f'exec {sys.executable} -m torch.distributed.run "$@"')
    paths = (str(repository), str(repository / "tests" / "helpers"), *sys.path)
    environment = {
        **two_processes_environment(),
        "PATH": f"{programs}:{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join(paths),
        "KILLED_ONCE": str(tmp_path / "killed"),
        "SLURM_JOB_NODELIST": "127.0.0.1",
        "SLURM_JOB_ID": str(free_job()),
        "SLURM_NNODES": "1",
        "SLURM_STEP_NUM_TASKS": "1",
        "SLURM_GPUS_ON_NODE": "2",
    }
    changes = ["train.max_iter=4", "train.accumulate_steps=2", "train.ema.enabled=True"]
    changes += ["dataloader.train.total_batch_size=4", "train.best_checkpoint.metric=bbox/AP"]
    config = str(repository / "tests" / "helpers" / "killed_once.py")
    run = subprocess.run(
        [repository / "projects/ViTAdapter/slurm/train.sbatch", config, *overrides, *changes],
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert run.returncode == 0, run.stderr
    assert (tmp_path / "killed").exists()
    assert "error: process 0 on " in run.stderr
    assert "has lost another process of the run" in run.stderr
    output = tmp_path / "output"
    state = torch.load(output / "model_final.pth", weights_only=True)
    assert state["trainer"]["iteration"] == 3
    assert state["model_ema"].keys() == state["model"].keys()
    assert (output / "model_best.pth").is_file()
    rows = [json.loads(line) for line in (output / "metrics.json").read_text().splitlines()]
    assert [row["iteration"] for row in rows if "total_loss" in row] == [0, 1, 2, 3]
    assert "bbox/AP" in rows[-1]
    log = (output / "log.txt").read_text()
    assert re.findall("Starting training from iteration (.)", log) == ["0", "1"]
    assert "World size: 2" in (output / "log.txt.rank1").read_text()
    assert not (output / "run.lock").exists()


def test_the_launcher_waits_for_two_processes_that_are_stopped(
    repository: Path, tiny_config: Path, overrides: list[str], tmp_path: Path
) -> None:
    command = [
        sys.executable,
        str(repository / "scripts" / "lazyconfig_train_net.py"),
        "--num-gpus",
        "2",
    ]
    command += ["--dist-url", "auto", "--config-file", str(tiny_config), *overrides]
    process = subprocess.Popen(
        [*command, "train.max_iter=10000"],
        env=two_processes_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    metrics, end = tmp_path / "output" / "metrics.json", time.monotonic() + 600
    while not metrics.is_file() or len(metrics.read_text().splitlines()) < 3:
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.05)
    process.terminate()  # not its children
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 143, output
    assert "Traceback" not in output
    wait_for_group(process.pid)
    name = (tmp_path / "output" / "last_checkpoint").read_text()
    state = torch.load(tmp_path / "output" / name, weights_only=True)
    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    # A forward pass that was interrupted may have logged something, too.
    assert state["iteration"] == [r for r in rows if "total_loss" in r][-1]["iteration"]


def test_killed_and_resumed(tmp_path: Path) -> None:
    """Many kills at random moments are those of `killed_runs.py` as a program."""
    run = KilledRun(tmp_path)
    for number, to_group, num_workers in ((signal.SIGKILL, True, 0), (signal.SIGTERM, False, 2)):
        assert run.kill(Kill(number, 0, to_group, num_workers, 10000, iterations=6))


FAULTY_CONFIG = """
from detectron2.config import LazyConfig
from detectron2.utils import comm
from training_samples import act, spoil_image

def spoil(sample):
    if comm.get_rank() == 1:
        spoil_image(sample)

_cfg = LazyConfig.load({tiny!r})
act(_cfg, spoil, at=2)
model, dataset, dataloader = _cfg.model, _cfg.dataset, _cfg.dataloader
optimizer, lr_multiplier, train = _cfg.optimizer, _cfg.lr_multiplier, _cfg.train
"""


@pytest.mark.parametrize(("parallel", "checkpoint"), [("ddp", ".pth"), ("fsdp2", ".dcp")])
def test_a_loss_that_is_not_finite_stops_both_processes(
    repository: Path,
    tiny_config: Path,
    overrides: list[str],
    tmp_path: Path,
    parallel: str,
    checkpoint: str,
) -> None:
    """With FSDP2, the first process waits for weights when the second one fails."""
    config = tmp_path / "faulty.py"
    config.write_text(FAULTY_CONFIG.format(tiny=str(tiny_config)))
    command = [
        sys.executable,
        str(repository / "scripts" / "lazyconfig_train_net.py"),
        "--num-gpus",
        "2",
    ]
    command += ["--dist-url", "auto", "--config-file", str(config), *overrides]
    command += [f"train.parallel={parallel}", "train.checkpointer.period=2"]
    environment = two_processes_environment()
    environment["PYTHONPATH"] = os.pathsep.join([str(repository / "tests" / "helpers"), *sys.path])
    run = subprocess.run(
        [*command, "dataloader.train.total_batch_size=2", "train.max_iter=9"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert run.returncode != 0
    logs = [(tmp_path / "output" / f"log.txt{rank}").read_text() for rank in ("", ".rank1")]
    for log in logs:
        assert "at iteration 2, images: " in log
    state = read_checkpoint_file(tmp_path / "output" / f"model_0000001{checkpoint}")
    assert state["trainer"]["iteration"] == 1
    assert all(v.isfinite().all() for v in state["model"].values() if v.is_floating_point())


def shrunk(overrides: list[str]) -> list[str]:
    """What cuts a Mask R-CNN with a ViT-Adapter down to train in a blink, as a user would."""
    net, heads, data = "model.backbone.bottom_up.net", "model.roi_heads", "dataloader"
    return [
        *overrides,
        "dataset.num_classes=2",
        *(f"{net}.{change}" for change in ("embed_dim=32", "num_heads=2", "depth=4")),
        f"{net}.img_size=64",
        f"{net}.window_block_indexes=[0,2]",
        "model.backbone.bottom_up.conv_dim=8",
        "model.backbone.bottom_up.deform_num_heads=4",
        "model.backbone.out_channels=32",
        "model.proposal_generator.head.in_channels=32",
        f"{heads}.batch_size_per_image=32",
        f"{heads}.box_head.input_shape.channels=32",
        f"{heads}.box_head.fc_dims=[32]",
        f"{heads}.box_predictor.input_shape.channels=32",
        f"{heads}.mask_head.input_shape.channels=32",
        f"{heads}.mask_head.conv_dims=[32]",
        f"{data}.train.mapper.augmentations.0.short_edge_length=[64]",
        f"{data}.test.mapper.augmentations.0.short_edge_length=64",
        f"{data}.train.total_batch_size=2",
        f"{data}.train.num_workers=0",
        f"{data}.test.num_workers=0",
        "train.device=cpu",
        "train.max_iter=2",
        "train.log_period=1",
        "lr_multiplier.warmup_iters=1",
    ]


@pytest.mark.parametrize("runner", ["ours", "Detectron2's"])
def test_a_project_config(
    repository: Path, overrides: list[str], runner: str, tmp_path: Path
) -> None:
    config = repository / "projects/ViTAdapter/configs/COCO/mask_rcnn_vit_adapter_s_deit_1x.py"
    # The weights that the config names would have to be downloaded.
    changes = [*shrunk(overrides), "train.init_checkpoint=''"]
    if runner == "ours":
        train.script(["--config-file", str(config), *changes])
    else:
        options = {"resume": False, "eval_only": False}
        train_net.main(argparse.Namespace(config_file=str(config), opts=changes, **options))
    output = tmp_path / "output"
    rows = [json.loads(line) for line in (output / "metrics.json").read_text().splitlines()]
    losses = [row for row in rows if "total_loss" in row]
    assert [row["iteration"] for row in losses] == [0, 1]
    assert all(np.isfinite(row["total_loss"]) for row in losses)
    assert [row["lr"] for row in losses] == pytest.approx([1e-7, 1e-4])  # after the warm-up
    weights = torch.load(output / "model_final.pth", weights_only=False)["model"]
    assert "backbone.bottom_up.interactions.3.injector.gamma" in weights
    assert (output / "inference" / "coco_instances_results.json").is_file()


def test_a_net_is_tuned_by_an_override(
    repository: Path, overrides: list[str], tmp_path: Path
) -> None:
    """LoRA and prompts: trained with an average of the weights, resumed, and merged."""
    config = str(repository / "projects/ViTAdapter/configs/COCO/mask_rcnn_vit_adapter_s_deit_1x.py")
    net = "model.backbone.bottom_up.net"
    prompts = "{_target_: vitadapter.modeling.backbone.VisualPrompts, num_prompts: 3}"
    lora = "{_target_: vitadapter.modeling.backbone.LoRA, rank: 2}"
    changes = [*shrunk(overrides), "optimizer.lr=0.1", "train.ema.enabled=True"]
    changes.append("dataloader.evaluator=null")
    built = instantiate(OmegaConf.select(load_config(config, changes), net))
    pretrained = built.state_dict()
    torch.save(pretrained, tmp_path / "net.pth")
    start = [f"{net}.tuning=[{lora},{prompts}]", f"train.init_checkpoint={tmp_path / 'net.pth'}"]
    train.train([config, *changes, *start])
    train.train([config, "--resume", *changes, *start, "train.max_iter=3"])

    output = tmp_path / "output"
    state = torch.load(output / "model_final.pth", weights_only=True)
    weights = {
        name.removeprefix("backbone.bottom_up.net."): value
        for name, value in state["model"].items()
        if name.startswith("backbone.bottom_up.net.")
    }
    assert all(torch.equal(weights[name], value) for name, value in pretrained.items())
    updates = [value for name, value in weights.items() if name.endswith("lora_b")]
    assert len(updates) == 8
    assert all(value.any() for value in updates)
    assert state["model"].keys() == state["model_ema"].keys()
    model = instantiate(load_config(config, [*changes, start[0]]).model)
    trained = [p.numel() for p in model.parameters() if p.requires_grad]
    total = sum(p.numel() for p in model.parameters())
    assert len(state["trainer"]["optimizer"]["state"]) == len(trained)
    log = (output / "log.txt").read_text()
    assert f"{total / 1e6:.3f} M, of which {sum(trained) / 1e6:.3f} M are trained" in log

    merged = tmp_path / "merged.pth"
    arguments = [str(output / "model_final.pth"), str(merged), "--merge-lora"]
    assert convert.main([*arguments, "--config-file", str(output / "config.yaml")]) == 0
    model.load_state_dict(state["model"])
    plain = instantiate(load_config(config, [*changes, f"{net}.tuning=[{prompts}]"]).model)
    plain.load_state_dict(torch.load(merged, weights_only=True)["model"])
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        expected, found = (m.eval().backbone(images) for m in (model, plain))
    for name, value in expected.items():
        assert (found[name] - value).abs().max() <= 1e-5 * value.abs().max()


def test_the_same_config_runs_under_detectron2s_own_script(
    tiny_config: Path, overrides: list[str], tmp_path: Path
) -> None:
    def run(*changes: str, resume: bool = False, eval_only: bool = False) -> None:
        train_net.main(
            argparse.Namespace(
                config_file=str(tiny_config),
                opts=[*overrides, *changes],
                resume=resume,
                eval_only=eval_only,
            )
        )

    run("train.max_iter=2")
    output = tmp_path / "output"
    assert torch.load(output / "model_final.pth", weights_only=False)["iteration"] == 1
    run(f"train.init_checkpoint={output}/model_final.pth", eval_only=True)
    with pytest.raises(ValueError, match=r"set dataset\.num_classes=2"):
        run("dataset.num_classes=5")
    run("train.max_iter=3", resume=True)
    assert torch.load(output / "model_final.pth", weights_only=False)["iteration"] == 2
