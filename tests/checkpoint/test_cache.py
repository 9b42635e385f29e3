import logging
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from vitadapter.checkpoint.cache import cache_folder, read_checkpoint
from vitadapter.engine.checkpoint import AtomicCheckpointer, load_init_checkpoint
from vitadapter.modeling.backbone import ViT, ViTBaseline

SHAPES = {
    "embedding/kernel": (16, 16, 3, 32),
    "embedding/bias": (32,),
    "Transformer/posembed_input/pos_embedding": (1, 17, 32),
    "head/bias": (5,),
}
for part, shapes in {
    "LayerNorm_0/": {"scale": (32,), "bias": (32,)},
    "LayerNorm_2/": {"scale": (32,), "bias": (32,)},
    "MlpBlock_3/Dense_0/": {"kernel": (32, 128), "bias": (128,)},
    "MlpBlock_3/Dense_1/": {"kernel": (128, 32), "bias": (32,)},
    "MultiHeadDotProductAttention_1/query/": {"kernel": (32, 2, 16), "bias": (2, 16)},
    "MultiHeadDotProductAttention_1/key/": {"kernel": (32, 2, 16), "bias": (2, 16)},
    "MultiHeadDotProductAttention_1/value/": {"kernel": (32, 2, 16), "bias": (2, 16)},
    "MultiHeadDotProductAttention_1/out/": {"kernel": (2, 16, 32), "bias": (32,)},
}.items():
    SHAPES |= {f"Transformer/encoderblock_0/{part}{name}": shape for name, shape in shapes.items()}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.setenv("VITADAPTER_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def write(path: Path, seed: int = 0) -> Path:
    rng = np.random.default_rng(seed)
    np.savez(path, **{name: rng.standard_normal(s, dtype=np.float32) for name, s in SHAPES.items()})
    return path


def load(path: Path, layer_scale_init: float | None = None) -> nn.Module:
    net = ViT(
        embed_dim=32,
        depth=1,
        num_heads=2,
        pretrain_img_size=64,
        layer_scale_init=layer_scale_init,
    )
    model = ViTBaseline(net, block_indexes=[0])
    load_init_checkpoint(AtomicCheckpointer(model), str(path))
    return model.net


def same(a: nn.Module, b: nn.Module) -> bool:
    other = b.state_dict()
    return all(torch.equal(tensor, other[name]) for name, tensor in a.state_dict().items())


def test_a_costly_conversion_is_done_once(tmp_path: Path, folder: Path, caplog) -> None:
    path = write(tmp_path / "w.npz")
    first = load(path)
    assert len(list(folder.iterdir())) == 1
    with caplog.at_level(logging.INFO, "vitadapter"):
        second = load(path)
    assert "Using the converted checkpoint" in caplog.text
    assert "(augreg)" in caplog.text
    assert "dropped: 1" in caplog.text
    assert "head/bias: head of the pre-training task" in caplog.text
    assert same(first, second)


def test_another_file_of_the_same_name_is_converted_again(tmp_path: Path, folder: Path) -> None:
    first = load(write(tmp_path / "w.npz"))
    write(tmp_path / "w.npz", seed=1)
    os.utime(tmp_path / "w.npz", (1, 1))
    assert not same(first, load(tmp_path / "w.npz"))
    assert len(list(folder.iterdir())) == 2


def test_a_copy_that_keeps_the_time_is_converted_again(tmp_path: Path, folder: Path) -> None:
    """As `cp -p` and `rsync -t` do."""
    path = write(tmp_path / "w.npz")
    times = (path.stat().st_atime_ns, path.stat().st_mtime_ns)
    first = load(path)
    path.write_bytes(write(tmp_path / "other.npz", seed=1).read_bytes())
    os.utime(path, ns=times)
    assert not same(first, load(path))


def test_layer_scale_is_1_from_the_cache_too(tmp_path: Path, folder: Path) -> None:
    path = write(tmp_path / "w.npz")
    for _ in range(2):
        assert (load(path, layer_scale_init=1e-5).blocks[0].gamma1 == 1).all()
    assert len(list(folder.iterdir())) == 1


def test_a_broken_entry_is_made_again(tmp_path: Path, folder: Path, caplog) -> None:
    path = write(tmp_path / "w.npz")
    first = load(path)
    (entry,) = folder.iterdir()
    whole = entry.read_bytes()
    for content in (b"", whole[:-10], b"nonsense"):
        entry.write_bytes(content)
        assert same(first, load(path))
        assert "is not usable" in caplog.text
        assert entry.stat().st_size == len(whole)
        caplog.clear()


def test_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch, caplog) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("VITADAPTER_CACHE", str(tmp_path / "file"))
    load(write(tmp_path / "w.npz"))
    assert "cannot be kept" in caplog.text


def test_what_is_cheap_is_not_kept(tmp_path: Path, folder: Path) -> None:
    torch.save({"a": torch.ones(1)}, tmp_path / "w.pth")
    state_dict, family = read_checkpoint(tmp_path / "w.pth")
    assert state_dict.keys() == {"a"}
    assert family is None
    assert not folder.exists()


def test_the_folder(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.delenv("VITADAPTER_CACHE", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "vitadapter"
