"""Without a network: what is asked for, and what is said when it cannot be had."""

import dataclasses
import hashlib
import sys
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError

from vitadapter.checkpoint import sources
from vitadapter.checkpoint.cache import cached_path
from vitadapter.checkpoint.sources import check_source, fetch, is_remote
from vitadapter.model_zoo.trained_models import TRAINED_MODELS


@pytest.fixture
def asked(monkeypatch) -> list[tuple[str, str, str | None]]:
    """Answers downloads with a path, and remembers them."""
    calls = []

    def download(repo_id: str, filename: str, revision: str | None = None) -> str:
        calls.append((repo_id, filename, revision))
        return "/cache/file"

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    return calls


def test_a_local_path_is_left_alone() -> None:
    assert fetch("a/b.pth") == Path("a/b.pth")
    assert not is_remote("a/b.pth")
    assert is_remote("timm://vit")


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("hf://org/repo/model.safetensors", ("org/repo", "model.safetensors", None)),
        ("hf://org/repo@v1/sub/model.pth", ("org/repo", "sub/model.pth", "v1")),
        (
            "timm://vit_small_patch14_dinov2",
            ("timm/vit_small_patch14_dinov2.lvd142m", "model.safetensors", None),
        ),
        (
            "timm://vit_tiny_patch16_224.augreg_in21k",
            ("timm/vit_tiny_patch16_224.augreg_in21k", "model.safetensors", None),
        ),
    ],
)
def test_the_hub_is_asked_for(
    source: str, expected: tuple[str, str, str | None], asked: list[tuple[str, str, str | None]]
) -> None:
    assert fetch(source) == Path("/cache/file")
    assert asked == [expected]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("hf://org/file.pth", r"written hf://org/repo/file, got hf://org/file\.pth"),
        ("hf://org//file.pth", "written hf://org/repo/file"),
        ("timm://no_such_vit", "timm has no model 'no_such_vit'"),
        ("timm://vit_small_patch14_dinov2.nonsense", "nonsense"),
        ("nowhere://host/file.pth", r"nowhere://host/file\.pth cannot be downloaded"),
    ],
)
def test_bad_sources(source: str, message: str, asked: list[object]) -> None:
    with pytest.raises(ValueError, match=message):
        fetch(source)
    assert not asked


def test_without_a_network(monkeypatch) -> None:
    def download(*arguments: object, **more: object) -> str:
        raise LocalEntryNotFoundError("no connection")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    with pytest.raises(ValueError, match=r"hf://o/r/f\.pth cannot be .*no connection.*give its p"):
        fetch("hf://o/r/f.pth")


def test_without_huggingface_hub(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ValueError, match="needs huggingface_hub, which is not installed: pip"):
        fetch("hf://o/r/f.pth")


def test_other_urls_go_through_detectron2(monkeypatch, tmp_path: Path) -> None:
    (tmp_path / "w.pth").write_bytes(b"weights")
    monkeypatch.setattr(
        sources.PathManager, "get_local_path", lambda url: f"{tmp_path}/{url.split('/')[-1]}"
    )
    assert fetch("bucket://host/w.pth") == tmp_path / "w.pth"


@pytest.mark.parametrize(
    ("source", "url"),
    [
        ("https://host/w.pth", "https://host/w.pth"),
        (
            "detectron2://ViTDet/COCO/mask_rcnn_vitdet_b/f325346929/model_final_61ccd1.pkl",
            "https://dl.fbaipublicfiles.com/detectron2/ViTDet/COCO/mask_rcnn_vitdet_b/f325346929/"
            "model_final_61ccd1.pkl",
        ),
        (
            "zoo://COCO/mask_rcnn_vit_adapter_s_deit_3x",
            "https://github.com/czczup/ViT-Adapter/releases/download/v0.1.2/"
            "mask_rcnn_deit_adapter_small_fpn_3x_coco.pth.tar",
        ),
    ],
)
def test_what_is_downloaded(source: str, url: str, cache: Path) -> None:
    """Found in the cache, where nobody has to download it."""
    path = cached_path(url)
    path.parent.mkdir(mode=0o700, parents=True)
    path.write_bytes(b"PK\x03\x04")
    for folder in path.parents[: len(path.relative_to(cache).parts)]:
        folder.chmod(0o700)
    assert fetch(source) == path


def test_size_and_hash_of_the_table_count(cache: Path, monkeypatch) -> None:
    name = "COCO/mask_rcnn_vit_adapter_s_deit_3x"
    model = TRAINED_MODELS[name]
    path = cached_path(model.url)
    path.parent.mkdir(mode=0o700, parents=True)
    path.write_bytes(b"PK\x03\x04")
    known = {"size": 4, "sha256": hashlib.sha256(b"PK\x03\x04").hexdigest()}
    for change in ({}, {"size": 5}, {"sha256": "0" * 64}):
        changed = dataclasses.replace(model, **(known | change))
        monkeypatch.setitem(TRAINED_MODELS, name, changed)
        if not change:
            assert fetch(f"zoo://{name}") == path
            continue
        with pytest.raises(ValueError, match=r"is not what https.*it should"):
            fetch(f"zoo://{name}")


def test_weights_that_the_zoo_lacks() -> None:
    known = "COCO/mask_rcnn_vit_adapter_s_deit_3x"
    with pytest.raises(ValueError, match=rf"zoo has no experiment 'COCO/maskrcnn.*near.*{known}"):
        check_source("zoo://COCO/maskrcnn_vit_adapter_s_deit_3x")
    with pytest.raises(ValueError, match=rf"no trained model of COCO/.*1x has .*nearest.*{known}"):
        fetch("zoo://COCO/mask_rcnn_vit_adapter_s_deit_1x")
    for source in (f"zoo://{known}", "https://host/w.pth", "hf://nonsense"):
        check_source(source)
