"""The shell scripts, with stand-ins for the long work that they start."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = (
    "compare_segmentation.sh",
    "gpu_check.sh",
    "quickstart.sh",
    "setup_env.sh",
    "test.sh",
)
ADAPTER = "output/digits/mask_rcnn_vit_adapter_t"


def run(script: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        ["bash", script, *arguments],
        capture_output=True,
        text=True,
        env=os.environ | environment,
        timeout=600,
    )


@pytest.fixture
def tree(tmp_path: Path, repository: Path) -> Path:
    """A copy of the scripts whose `.venv/bin/python` only notes down how it is called."""
    shutil.copytree(repository / "scripts", tmp_path / "scripts")
    (tmp_path / "scripts" / "setup_env.sh").write_text("#!/bin/sh\n")
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(
        f"#!{sys.executable}\n"
        "import sys, pathlib\n"
        "if any(word in ' '.join(sys.argv) for word in pathlib.Path('fail').read_text().split()):\n"
        "    sys.exit(3)\n"
        "with open('calls', 'a') as file:\n"
        "    file.write(' '.join(sys.argv[1:]) + '\\n')\n"
        "if 'iterations_in_time' in sys.argv[1]:\n"
        "    print(123)\n"
        "for argument in sys.argv:\n"
        "    if argument.startswith('train.output_dir='):\n"
        "        pathlib.Path(argument.split('=')[1]).mkdir(parents=True, exist_ok=True)\n"
    )
    python.chmod(0o755)
    (tmp_path / "fail").write_text("")
    return tmp_path


def calls(tree: Path) -> list[str]:
    """The Python scripts called so far, without their folder; forgets them."""
    lines = (tree / "calls").read_text().splitlines()
    (tree / "calls").unlink()
    return [line.removeprefix("scripts/") for line in lines]


def test_folders_of_modules_are_packages(repository: Path) -> None:
    """Others install packages of the same names: fairscale has a `benchmarks`, which would win."""
    folders = {path.parent for path in (repository / "scripts").glob("*/*.py")}
    assert folders
    assert [folder for folder in folders if not (folder / "__init__.py").is_file()] == []


@pytest.mark.parametrize("script", SCRIPTS)
def test_syntax(script: str, repository: Path) -> None:
    path = repository / "scripts" / script
    assert subprocess.run(["bash", "-n", path], check=False).returncode == 0
    assert os.access(path, os.X_OK)


def test_quickstart_explains_itself_and_refuses_other_arguments(repository: Path) -> None:
    script = repository / "scripts" / "quickstart.sh"
    shown = run(script, "--help")
    assert shown.returncode == 0
    assert "--compare" in shown.stdout
    refused = run(script, "--comapre")
    assert refused.returncode == 2
    assert "unknown argument '--comapre'" in refused.stderr


def test_quickstart_trains_once_and_shows_every_time(tree: Path) -> None:
    script = tree / "scripts" / "quickstart.sh"
    first = run(script)
    assert first.returncode == 0, first.stderr
    made, trained, *shown = calls(tree)
    assert made.startswith("make_sample_dataset.py --output datasets/digits")
    assert trained.startswith("lazyconfig_train_net.py --resume")
    assert f"train.output_dir={ADAPTER}" in trained
    names = [call.split()[0] for call in shown]
    assert names == ["visualize_results.py", "plot_metrics.py", "compare_runs.py"]
    assert "overview.png" in first.stdout

    again = run(script)
    assert again.returncode == 0
    assert "already trained" in again.stdout
    assert [call.split()[0] for call in calls(tree)] == [made.split()[0], *names]


def test_quickstart_goes_on_after_an_interruption(tree: Path) -> None:
    script = tree / "scripts" / "quickstart.sh"
    (tree / "fail").write_text("lazyconfig_train_net.py")
    assert run(script).returncode == 3
    (tree / "fail").write_text("")
    calls(tree)
    assert run(script).returncode == 0
    assert sum("--resume" in call for call in calls(tree)) == 1


def test_quickstart_compares_for_the_same_time(tree: Path) -> None:
    script = tree / "scripts" / "quickstart.sh"
    (tree / "fail").write_text("iterations_in_time.py")
    assert run(script, "--compare").returncode == 3
    (tree / "fail").write_text("")
    calls(tree)
    # What failed half-way is measured again, not taken for a measurement.
    assert run(script, "--compare").returncode == 0
    called = calls(tree)
    for name in ("mask_rcnn_vit_t", "mask_rcnn_vitdet_t"):
        assert any(f"{name}-probe train.max_iter=60" in call for call in called)
        assert any(
            f"train.output_dir=output/digits/{name} train.max_iter=123" in call for call in called
        )
    assert called[-1].startswith("compare_runs.py ViT-T=")


def test_quickstart_analyzes_what_it_has_trained(tree: Path) -> None:
    script = tree / "scripts" / "quickstart.sh"
    assert run(script, "--compare", "--analyze").returncode == 0
    *_, features, errors = calls(tree)
    names = {"ViT-T": "mask_rcnn_vit_t", "ViTDet-T": "mask_rcnn_vitdet_t"}
    names["ViT-Adapter-T"] = "mask_rcnn_vit_adapter_t"
    assert features == " ".join(
        ["analyze_features.py datasets/digits/val --output output/digits/analysis-instance"]
        + [
            f"--run {name} output/digits/{run}/config.yaml output/digits/{run}/model_final.pth"
            for name, run in names.items()
        ]
    )
    assert errors.endswith(
        "--output output/digits/analysis-instance "
        + " ".join(
            f"--run {name} output/digits/{run}/inference/coco_instances_results.json"
            for name, run in names.items()
        )
    )

    results = tree / "output/digits/upernet_vit_adapter_t/inference/sem_seg_results.md"
    results.parent.mkdir(parents=True)
    results.write_text("")
    assert run(script, "--task", "semantic", "--analyze").returncode == 0
    *_, features = calls(tree)
    assert features.startswith("analyze_features.py")
    assert features.count("--run") == 1


def test_quickstart_starts_from_pretrained_weights(tree: Path) -> None:
    script = tree / "scripts" / "quickstart.sh"
    override = "train.init_checkpoint=deit.pth"
    assert run(script, override).returncode == 0
    (trained,) = (call for call in calls(tree) if call.startswith("lazyconfig_train_net.py"))
    assert override in trained
    # Not in the folder of the run from random weights.
    assert f"train.output_dir={ADAPTER}" not in trained
    assert "already trained" in run(script, override).stdout
    assert "already trained" not in run(script).stdout


def test_quickstart_segments(tree: Path) -> None:
    script = tree / "scripts" / "quickstart.sh"
    results = tree / "output/digits/upernet_vit_adapter_t/inference/sem_seg_results.md"
    results.parent.mkdir(parents=True)
    results.write_text("| mIoU |\n")
    shown = run(script, "--task", "semantic")
    assert shown.returncode == 0, shown.stderr
    assert "| mIoU |" in shown.stdout
    names = [call.split()[0] for call in calls(tree)]
    assert names == [
        "make_sample_dataset.py",
        "lazyconfig_train_net.py",
        "visualize_sem_seg.py",
        "plot_metrics.py",
    ]
    refused = run(script, "--task", "panoptic")
    assert refused.returncode == 2
    assert "--task must be instance or semantic, got 'panoptic'" in refused.stderr


def test_segmenters_are_compared(tree: Path) -> None:
    script = tree / "scripts" / "compare_segmentation.sh"
    for name in ("upernet", "mask2former"):
        arguments = () if name == "upernet" else ("--segmenter", name)
        for net in ("vit_s", "vit_adapter_s"):
            folder = tree / "out" / f"{name}_{net}_dinov2_finetune" / "inference"
            folder.mkdir(parents=True)
            (folder / "sem_seg_results.md").write_text(f"{name} {net}\n")
        done = run(script, *arguments, "data", "3", "weights.pth", "out", "train.max_iter=5")
        assert done.returncode == 0, done.stderr
        assert [f"{name} {net}" in done.stdout for net in ("vit_s", "vit_adapter_s")] == [True] * 2
        called = calls(tree)
        trained = [call for call in called if call.startswith("lazyconfig_train_net.py")]
        assert [
            f"/{name}_{net}_dinov2_finetune.py" in call
            for net, call in zip(("vit_s", "vit_adapter_s"), trained, strict=True)
        ] == [True, True]
        assert all(call.endswith("train.max_iter=5") for call in trained)
        assert len(called) == 4  # with pictures
    refused = run(script, "--segmenter", "fcn", "data", "3", "weights.pth", "out")
    assert refused.returncode == 2
    assert "--segmenter must be upernet or mask2former, got 'fcn'" in refused.stderr


def test_setup_refuses_an_unusable_python(tmp_path: Path, repository: Path) -> None:
    for name in ("scripts", "kernels"):
        shutil.copytree(repository / name, tmp_path / name)
    (tmp_path / "vitadapter").mkdir()
    for name in ("setup.py", "pyproject.toml", "vitadapter/install_detectron2.py"):
        shutil.copy(repository / name, tmp_path / name)
    tools = tmp_path / "tools"
    tools.mkdir()
    for tool in ("bash", "dirname", "find", "sort", "xargs", "cat", "cksum"):
        (tools / tool).symlink_to(shutil.which(tool))
    refused = run(tmp_path / "scripts" / "setup_env.sh", PATH=str(tools), PYTHON="")
    assert refused.returncode == 1
    assert "Python >= 3.10 is needed" in refused.stderr
