import argparse
import json
from pathlib import Path
from types import ModuleType

import pytest
import torch

SCRIPT = "lazyconfig_train_net.py"

pytestmark = pytest.mark.usefixtures("restored_logging")


def test_trains_resumes_and_evaluates(
    script: ModuleType, tiny_config: Path, overrides: list[str], tmp_path: Path
) -> None:
    arguments = ["--config-file", str(tiny_config)]
    script.invoke_main([*arguments, *overrides, "train.max_iter=2"])
    output = tmp_path / "output"
    assert (output / "config.yaml").is_file()
    with pytest.raises(ValueError, match="--resume"):
        script.invoke_main([*arguments, *overrides])
    script.invoke_main([*arguments, "--resume", *overrides, "train.max_iter=3"])
    state = torch.load(output / "model_final.pth", weights_only=True)
    assert state["trainer"]["iteration"] == 2
    log = (output / "log.txt").read_text()
    assert "Starting training from iteration 2" in log
    assert "eta: 0:00:0" in log

    weights = f"train.init_checkpoint={output}/model_final.pth"
    elsewhere = f"train.output_dir={tmp_path / 'evaluated'}"
    script.invoke_main([*arguments, "--eval-only", *overrides, weights, elsewhere])
    names = ("output", "evaluated")
    files = [tmp_path / name / "inference" / "coco_instances_results.json" for name in names]
    trained, evaluated = (json.loads(file.read_text()) for file in files)
    assert trained
    assert trained == evaluated


def test_a_stop_is_no_traceback(
    script: ModuleType, tiny_config: Path, overrides: list[str], monkeypatch
) -> None:
    def interrupt(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(script, "do_train", interrupt)
    with pytest.raises(SystemExit) as stopped:
        script.invoke_main(["--config-file", str(tiny_config), *overrides])
    assert stopped.value.code == 130


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train.max_itr=3"], r"'train\.max_itr'.*train\.max_iter"),
        (["dataset.num_classes=5"], r"set dataset\.num_classes=2"),
        (["train.max_iter"], "key=value"),
        (["--eval-only"], r"train\.init_checkpoint="),
    ],
)
def test_mistakes_are_named(
    script: ModuleType,
    tiny_config: Path,
    overrides: list[str],
    arguments: list[str],
    message: str,
) -> None:
    options = [a for a in arguments if a.startswith("--")]
    changes = [a for a in arguments if not a.startswith("--")]
    with pytest.raises(ValueError, match=message):
        script.invoke_main(["--config-file", str(tiny_config), *options, *overrides, *changes])


def test_needs_a_config(script: ModuleType, capsys) -> None:
    with pytest.raises(SystemExit) as stopped:
        script.invoke_main([])
    assert stopped.value.code == 2
    assert "--config-file is required" in capsys.readouterr().err


def test_the_same_config_runs_under_detectron2s_own_script(
    tiny_config: Path, overrides: list[str], tmp_path: Path
) -> None:
    train_net = pytest.importorskip("tools.lazyconfig_train_net")

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
