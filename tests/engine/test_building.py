"""Parts of a config that cannot be built, and what is said of them."""

import pytest
import torch
from detectron2.config import LazyCall as L
from detectron2.data import DatasetCatalog
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationKeyError

from vitadapter.engine.building import build


def refuse(number: int) -> None:
    raise ValueError(f"number must be even, got {number}")


def fail(number: int) -> None:
    if number % 2:
        raise RuntimeError


def stack(first: torch.nn.Module) -> torch.nn.Module:
    return torch.nn.Sequential(first)


def network() -> DictConfig:
    inner = L(torch.nn.Linear)(in_features=2, out_features="${width}")
    layers = L(stack)(first=inner)
    return DictConfig({"net": layers, "width": 3}, flags={"allow_objects": True})


def test_builds_as_detectron2_does() -> None:
    built = build(network().net, "net")
    assert built[0].weight.shape == (3, 2)
    assert build(5, "number") == 5
    assert build(None, "nothing") is None


def test_names_the_innermost_part_and_its_values() -> None:
    cfg = network()
    cfg.width = "wide"
    with pytest.raises(
        ValueError,
        match=r"^net\.first \(Linear with in_features=2, out_features='wide'\) cannot be "
        r"built: TypeError: .*linear\.py:\d+\)$",
    ):
        build(cfg.net, "net")


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (L(refuse)(number=3), r"^part: number must be even, got 3$"),
        (L(fail)(number=3), r"\(fail with number=3\) .*: RuntimeError: raise RuntimeError \("),
        ({"_target_": "no.such"}, r"^part \(no\.such\) cannot be built: ImportError: .*'no'"),
        ({"_target_": 3}, r"^part \(3\) cannot be built: AssertionError"),
        (L(DatasetCatalog.get)(name="x"), r"cannot be built: KeyError: .*'x' is not registered"),
    ],
)
def test_every_error_is_one_of_the_config(part: DictConfig, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(OmegaConf.create(part, flags={"allow_objects": True}), "part")


def test_an_interpolation_names_its_own_key() -> None:
    cfg = network()
    del cfg.width
    with pytest.raises(InterpolationKeyError, match="width"):
        build(cfg.net, "net")


def test_an_interruption_is_no_mistake() -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(L(interrupt)(), "part")
