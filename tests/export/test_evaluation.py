"""Which exported files a config can evaluate."""

import dataclasses

import pytest
from exported_models import build, predictor_of
from omegaconf import DictConfig, OmegaConf

from vitadapter.export.description import Description, describe
from vitadapter.export.evaluation import check_fits
from vitadapter.export.graphs import graph_of


@pytest.fixture(scope="module")
def detector() -> Description:
    model = build("atss")
    return describe(predictor_of(model), graph_of(model), None)


@pytest.fixture(scope="module")
def segmenter(detector: Description) -> Description:
    names = dict(thing_classes=None, thing_ids=None, stuff_classes=["road", "sky"])
    return dataclasses.replace(detector, outputs=["sem_seg"], **names)


def _config(num_classes: int = 2, **test: object) -> DictConfig:
    return OmegaConf.create(
        {
            "dataset": {"test": {"name": "streets", **test}, "num_classes": num_classes},
            "dataloader": {"test": {"mapper": {"image_format": "RGB"}}},
        }
    )


@pytest.mark.parametrize(
    ("kind", "test", "message"),
    [
        ("detector", {"label_root": "labels"}, "needs a model that answers with sem_seg, the"),
        ("detector", {"panoptic_root": "maps"}, "answers with panoptic_seg, the .* instances"),
        ("segmenter", {"json_file": None}, "needs a model that answers with instances, the .* sem"),
    ],
)
def test_other_tasks(kind: str, test: dict, message: str, request: pytest.FixtureRequest) -> None:
    cfg = _config(**test)
    if "panoptic_root" in test:
        cfg.dataset.num_things = 1
    with pytest.raises(ValueError, match=message):
        check_fits(request.getfixturevalue(kind), cfg)


def test_other_classes(segmenter: Description, tmp_path) -> None:
    names = tmp_path / "names.txt"
    cfg = _config(label_root="labels")
    cfg.dataset.class_names = str(names)
    check_fits(segmenter, cfg)  # two numbers, as the names are not known
    names.write_text("road\nsky\n")
    check_fits(segmenter, cfg)
    names.write_text("road\nwater\n")
    with pytest.raises(ValueError, match=r"class 1 of stuff_classes is 'sky' in .* 'water' in"):
        check_fits(segmenter, cfg)
    with pytest.raises(ValueError, match="has 2 stuff_classes, the test data streets has 3"):
        check_fits(segmenter, _config(3, label_root="labels"))


@pytest.mark.parametrize("setting", ["tta.enabled=True", "amp_dtype=bfloat16"])
def test_what_only_the_model_can_do(segmenter: Description, setting: str) -> None:
    cfg = _config(label_root="labels")
    cfg.merge_with(OmegaConf.from_dotlist([f"train.inference.{setting}"]))
    with pytest.raises(ValueError, match=f"got train.inference.{setting}"):
        check_fits(segmenter, cfg)
