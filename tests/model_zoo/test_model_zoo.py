"""Configs and predictors by name, with weights from a server on this machine."""

import io
import zipfile

import numpy as np
import pytest
import torch
from detectron2.config import instantiate
from file_server import FileServer, cut_after

from vitadapter import model_zoo
from vitadapter.checkpoint.official.conversion import export_official
from vitadapter.checkpoint.official.layouts import MASK_RCNN
from vitadapter.engine.predictor import LazyPredictor
from vitadapter.model_zoo.trained_models import TRAINED_MODELS, TrainedModel

NAME = "COCO/mask_rcnn_vit_adapter_t_deit_1x"
SMALL_IMAGES = "dataloader.test.mapper.augmentations.0.short_edge_length=96"


def test_shared_configs_and_experiments() -> None:
    assert "optimizer" not in model_zoo.get_config("common/models/mask_rcnn_vit_adapter.py")
    first = model_zoo.get_config(NAME)
    assert first.train.output_dir == f"./output/{NAME}"
    assert first.train.init_checkpoint.startswith("timm://")
    first.train.max_iter = 1
    second = model_zoo.get_config(f"{NAME}.py", trained=True)
    assert second.train.init_checkpoint == f"zoo://{NAME}"
    assert second.train.max_iter != 1
    assert model_zoo.get_config("common/models/mask_rcnn_fpn.py")  # Detectron2's


def test_list() -> None:
    everything = model_zoo.list()
    assert NAME in everything
    assert everything == sorted(everything)
    assert all(model_zoo.get_config_path(name).is_file() for name in everything)
    dinov3 = model_zoo.list("*dinov3*")
    assert set(dinov3) == {name for name in everything if "dinov3" in name}
    assert model_zoo.list(f"{NAME}.py") == [NAME]
    assert model_zoo.list("nothing*") == []


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("COCO/mask_rcnn_vit_adaptor_t_deit_1x", rf"no config .*near names: {NAME}"),
        ("common/models/nothing.py", r"no shared config .*common/models/vit\.py.*Detectron2's"),
    ],
)
def test_unknown_names(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model_zoo.get_config(name)


def test_trained_where_nothing_is_trained() -> None:
    for name in ("common/models/vit.py", "COCO/mask_rcnn_vit_adapter_s_deit_1x"):
        with pytest.raises(ValueError, match=r"no experiment|no trained model"):
            model_zoo.get_config(name, trained=True)


@pytest.fixture
def served(server: FileServer, monkeypatch: pytest.MonkeyPatch) -> torch.nn.Module:
    """The model whose weights are served as the official release has them, in a zip archive."""
    torch.manual_seed(0)
    model = instantiate(model_zoo.get_config(NAME).model).eval()
    file, archive = io.BytesIO(), io.BytesIO()
    weights = export_official(model.state_dict(), MASK_RCNN)
    torch.save({"meta": {"epoch": 12}, "state_dict": weights}, file)
    with zipfile.ZipFile(archive, "w") as opened:
        opened.writestr("mask_rcnn.pth.tar", file.getbuffer())
    server.files["/w.zip"], server.tags["/w.zip"] = archive.getvalue(), '"1"'
    size = len(file.getbuffer())
    entry = TrainedModel(server.url("/w.zip"), TRAINED_MODELS[NAME].published, size)
    monkeypatch.setitem(TRAINED_MODELS, NAME, entry)
    return model


def test_a_predictor_in_one_line(served: torch.nn.Module, server: FileServer) -> None:
    """Downloaded over a connection that breaks, unpacked, converted, loaded; once."""
    server.faults = [cut_after(1_000_000)]
    image = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    predictor = model_zoo.predictor(NAME, overrides=[SMALL_IMAGES], device="cpu")
    assert isinstance(predictor, LazyPredictor)
    for name, tensor in served.state_dict().items():
        assert torch.equal(predictor.model.state_dict()[name], tensor), name
    assert predictor(image)["instances"].image_size == (64, 96)
    assert predictor.metadata.thing_classes[0] == "person"
    assert server.ranges == ["", "bytes=1000000-"]
    model_zoo.predictor(f"{NAME}.py", device="cpu")
    assert len(server.ranges) == 2


def test_a_wrong_override() -> None:
    with pytest.raises(ValueError, match=r"the config has no key 'model\.backbon'"):
        model_zoo.predictor(NAME, overrides=["model.backbon=1"])
