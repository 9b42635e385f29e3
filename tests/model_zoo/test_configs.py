"""Where the results of an experiment go."""

from pathlib import Path

import pytest

from vitadapter.model_zoo import config_file, get_config_path, load_experiment

DEFAULT = """
from vitadapter.model_zoo import get_config
train = get_config("common/train.py").train
evaluator = dict(output_dir="${train.output_dir}/inference")
"""


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    return path


def test_the_folder_follows_from_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = [write(tmp_path / f"{data}/frcnn.py", DEFAULT) for data in ("COCO", "LVIS")]
    monkeypatch.chdir(tmp_path / "COCO")
    for file in (*files, Path("../LVIS/frcnn.py"), Path("frcnn.py")):
        data = file.resolve().parent.name
        cfg = load_experiment(file)
        assert cfg.train.output_dir == f"./output/{data}/frcnn"
        assert cfg.evaluator.output_dir == f"./output/{data}/frcnn/inference"


def test_a_sibling_has_a_folder_of_its_own(tmp_path: Path) -> None:
    write(tmp_path / "COCO/a.py", DEFAULT)
    sibling = write(tmp_path / "COCO/b.py", "from .a import train")
    assert load_experiment(str(sibling)).train.output_dir == "./output/COCO/b"


def test_a_config_may_name_its_folder(tmp_path: Path) -> None:
    file = write(tmp_path / "COCO/a.py", DEFAULT + 'train.output_dir = "/runs/a"')
    assert load_experiment(file).train.output_dir == "/runs/a"
    assert load_experiment(write(tmp_path / "COCO/b.py", "model = dict(a=1)")) == {
        "model": {"a": 1}
    }


@pytest.mark.parametrize("find", [config_file, get_config_path])
def test_a_name_longer_than_file_names_may_be_is_unknown(find) -> None:
    with pytest.raises(ValueError, match=r"no config 'a+'; near names: none"):
        find("a" * 300)
