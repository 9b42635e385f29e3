"""`python -m vitadapter.model_zoo`."""

import hashlib
import re
from pathlib import Path

import pytest
from file_server import FileServer

from vitadapter.model_zoo.__main__ import main
from vitadapter.model_zoo.trained_models import TRAINED_MODELS, TrainedModel

NAME = "COCO/mask_rcnn_vit_adapter_s_deit_3x"
CONTENT = b"PK\x03\x04" + bytes(100)
ENTRY = f'size=104,\nsha256="{hashlib.sha256(CONTENT).hexdigest()}",\n'


def test_list(capsys: pytest.CaptureFixture) -> None:
    assert main(["COCO/htcpp*"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 + 6
    (row,) = (line for line in lines if "htcpp_vit_adapter_l_beit_3x " in line)
    assert re.search(r"bbox/AP 58\.4, segm/AP 50\.8 \| +bbox/AP 60\.2, segm/AP 52\.2 \|", row)
    (row,) = (line for line in lines if "uniperceiver" in line)
    assert "no trained model" in row
    assert main([]) == 0
    assert len(capsys.readouterr().out.splitlines()) > 100


def test_hash(server: FileServer, tmp_path: Path, monkeypatch, capsys) -> None:
    server.files["/w.pth"] = CONTENT
    monkeypatch.setitem(TRAINED_MODELS, NAME, TrainedModel(server.url("/w.pth"), {}))
    (tmp_path / "w.pth").write_bytes(CONTENT)
    for name in (NAME, str(tmp_path / "w.pth")):
        assert main(["--hash", name]) == 0
        assert capsys.readouterr().out == ENTRY


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing*"], "no experiment matches 'nothing*'"),
        (["--hash", "COCO/mask_rcnn_vit_adapter_s_deit_4x"], "no experiment"),
        (["--hash", "COCO/mask_rcnn_vit_adapter_s_deit_1x"], "no trained model"),
    ],
)
def test_what_is_not_there(arguments: list[str], message: str, capsys) -> None:
    assert main(arguments) == 1
    assert message in capsys.readouterr().err
