"""Overrides in the prose of pages, such as `train.amp.enabled=True`, fit an experiment.

Those in blocks are checked by `test_page_commands.py`, with the experiment of their command.
"""

import functools
import re
from collections.abc import Iterator

import pytest
from pages import PAGES, REPOSITORY
from project_configs import PROJECT, load

from vitadapter.engine.overrides import apply_overrides

BLOCK = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"`([^`]+)`")
WORD = re.compile(r"(?:\[[^\]]*\]|[^\s\[])+")  # a list in a value may have spaces
OVERRIDE = re.compile(
    r"~?(?:train|dataset|dataloader|model|optimizer|lr_multiplier)(?:\.[\w{},]+)+\.?(?:=.*)?"
)
BRACES = re.compile(r"\{([\w,]+)\}")
# Values that stand for others; only their keys are checked.
PLACEHOLDER = re.compile(r"[A-Z]+|my_data|.*\.\.\..*|\w+\(.*")
FILES = (".py", ".json", ".sbatch")
# One experiment of each kind of model; the first that an override fits is enough.
EXPERIMENTS = (
    "COCO/mask_rcnn_vit_adapter_s_deit_3x",
    "ADE20K/upernet_vit_adapter_s_dinov2_finetune",
    "COCOPanoptic/mask2former_vit_adapter_s_dinov2_finetune",
    "COCO/htcpp_vit_adapter_l_beit_3x",
    "COCO/sparse_rcnn_vit_adapter_s_deit_3x",
    "ADE20K/semantic_fpn_vit_adapter_l_augreg_lora_80k",
    "LVIS/mask_rcnn_vit_adapter_b_mae_lsj_100ep",
)


def _expanded(word: str) -> list[str]:
    """As the shell expands `a.{b,c}=d`."""
    key, equals, value = word.partition("=")
    found = BRACES.search(key)
    if found is None:
        return [word]
    keys = [key[: found.start()] + part + key[found.end() :] for part in found[1].split(",")]
    return [each for part in keys for each in _expanded(part + equals + value)]


def _overrides(text: str) -> Iterator[str]:
    prose = BLOCK.sub("", text)
    for code in CODE.findall(prose):
        for word in WORD.findall(code):
            if OVERRIDE.fullmatch(word) and not word.endswith(FILES):
                yield from _expanded(word if "=" in word else word.rstrip("."))


@functools.cache
def _problem(override: str) -> str | None:
    """Why the override fits no experiment, None if it fits one."""
    key, equals, value = override.partition("=")
    only_key = not (equals or key.startswith("~")) or PLACEHOLDER.fullmatch(value) is not None
    tried = f"{key}=null" if only_key else override
    problem = None
    for name in EXPERIMENTS:
        try:
            apply_overrides(load(PROJECT / "configs" / f"{name}.py"), [tried])
        except ValueError as error:
            if only_key and "has no key" not in str(error):
                return None  # it is there, but may not be null
            problem = problem or str(error)
        else:
            return None
    return problem


@pytest.mark.parametrize("page", [page for page in PAGES if page != "CHANGELOG.md"])
def test_overrides_in_prose_fit_an_experiment(page: str) -> None:
    text = (REPOSITORY / page).read_text()
    problems = {override: _problem(override) for override in _overrides(text)}
    assert {override: why for override, why in problems.items() if why} == {}


def test_misspelt_overrides_are_found() -> None:
    text = "`train.max_itr=3 train.max_iter=3`, `dataset.{train,tset}.image_root=...`, `model.x`"
    found = {override: bool(_problem(override)) for override in _overrides(text)}
    assert found == {
        "train.max_itr=3": True,
        "train.max_iter=3": False,
        "dataset.train.image_root=...": False,
        "dataset.tset.image_root=...": True,
        "model.x": True,
    }
    assert _problem("train.max_iter=many")
