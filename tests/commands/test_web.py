"""`vitadapter web`: what it refuses, and how it starts and ends."""

import os
import re
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
import torch
from detectron2.config import instantiate
from omegaconf import DictConfig

from vitadapter.commands import web


def test_without_gradio_it_says_what_to_install(tiny_config: Path, monkeypatch, capsys) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert web.main([str(tiny_config)]) == 1
    assert "pip install 'vitadapter[web]'" in capsys.readouterr().err


def test_ports_are_checked(tiny_config: Path, capsys) -> None:
    with pytest.raises(SystemExit) as stopped:
        web.main([str(tiny_config), "--port", "70000"])
    assert stopped.value.code == 2
    assert "--port must be in 1..65535, got 70000" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.py"], "nowhere.py does not exist"),
        (["nowhere.onnx"], "there is no file nowhere.onnx"),
        (["nowhere.onnx", "--weights", "a.pth"], "leave out --weights"),
        (["nowhere.py", "--max-megapixels", "0"], "must be more than 0, got 0.0"),
    ],
)
def test_mistakes_are_error_lines(arguments: list[str], message: str, capsys) -> None:
    pytest.importorskip("gradio")
    assert web.main(arguments) == 1
    assert re.match(f"error: .*{message}", capsys.readouterr().err)


def test_a_signal_ends_it_without_a_trace(
    cfg: DictConfig, tiny_config: Path, overrides: list[str], repository: Path, tmp_path: Path
) -> None:
    pytest.importorskip("gradio")
    weights, temporary = tmp_path / "weights.pth", tmp_path / "temporary"
    torch.save({"model": instantiate(cfg.model).state_dict()}, weights)
    temporary.mkdir()
    arguments = [str(tiny_config), "--weights", str(weights), "--overrides", *overrides]
    process = subprocess.Popen(
        [sys.executable, "-m", "vitadapter", "web", *arguments],
        cwd=repository,
        env={**os.environ, "TMPDIR": str(temporary)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        address = re.search(r"http://127\.0\.0\.1:\d+/", process.stdout.readline())
        assert address is not None
        with urllib.request.urlopen(address[0]) as answer:
            assert answer.status == 200
        assert len(list(temporary.glob("vitadapter-web-*"))) == 1
        process.send_signal(signal.SIGTERM)
        output, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 128 + signal.SIGTERM
    assert "Traceback" not in errors
    assert output == ""
    assert list(temporary.iterdir()) == []
