import re

import pytest
from torch import distributed

from vitadapter.commands import prediction_ranks
from vitadapter.commands.prediction_ranks import Ranks
from vitadapter.engine.launch import Place


def last_bar(printed: str) -> tuple[str, str]:
    """Images done, and all of them."""
    return re.findall(r"images: .*?(\d+)/(\d+) ", printed)[-1]


def test_the_first_process_shows_what_all_have_done(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store = distributed.HashStore()
    monkeypatch.setattr(prediction_ranks, "_get_default_store", lambda: store)
    others = Ranks(Place(1, 2), group="both").progress(9)
    with others:
        others.update(2)
    assert not others.is_shown
    assert "images" not in capsys.readouterr().err
    with Ranks(Place(0, 2), group="both").progress(9) as progress:
        progress.update(3)
        others.update(4)
        progress.update()
    assert progress.is_shown
    assert last_bar(capsys.readouterr().err) == ("9", "9")


@pytest.mark.parametrize("total", [0, 1])
def test_a_single_image_has_no_bar(total: int, capsys: pytest.CaptureFixture[str]) -> None:
    with Ranks(Place()).progress(total) as progress:
        progress.update(total)
    assert capsys.readouterr().err == ""


def test_alone(capsys: pytest.CaptureFixture[str]) -> None:
    with Ranks(Place()).progress(3) as progress:
        progress.update(1)
        progress.update(2)
    assert last_bar(capsys.readouterr().err) == ("3", "3")
