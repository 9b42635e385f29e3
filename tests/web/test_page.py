from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from web_samples import TwoBoxes, write_photo

pytest.importorskip("gradio")

from gradio import Error

from vitadapter.web.page import Page
from vitadapter.web.uploads import Answerer, Limits

EVERYTHING = ["Boxes", "Masks", "Labels"]


@pytest.fixture
def predictor() -> TwoBoxes:
    return TwoBoxes()


@pytest.fixture
def page(predictor: TwoBoxes, tmp_path: Path) -> Page:
    return Page(Answerer(predictor, Limits(), tmp_path), "cats and dogs")


def visitor(name: str = "one") -> SimpleNamespace:
    return SimpleNamespace(session_hash=name)


def upload(tmp_path: Path) -> dict[str, str]:
    return {"path": str(write_photo(tmp_path / "x.png")), "orig_name": "x.png"}


def test_choices_do_not_run_the_model_again(
    page: Page, predictor: TwoBoxes, tmp_path: Path
) -> None:
    shown, threshold, parts, picture, words, *buttons = page.answer(
        upload(tmp_path), 0.5, [], EVERYTHING, visitor()
    )
    assert shown.shape == picture.shape == (30, 40, 3)
    np.testing.assert_array_equal(shown[:, :, ::-1], predictor.images[0])
    assert threshold["visible"]
    assert parts["choices"] == ["Boxes", "Labels"]  # it predicts no masks
    assert words == "cat 0.90"
    assert all(button["interactive"] for button in buttons)
    assert page.draw(0.1, [], EVERYTHING, visitor())[1] == "cat 0.90, dog 0.40"
    assert page.draw(0.1, [1], EVERYTHING, visitor())[1] == "dog 0.40"
    assert page.draw(1, [], EVERYTHING, visitor())[1] == "nothing"
    np.testing.assert_array_equal(page.draw(0.1, [], [], visitor())[0], shown)
    assert len(predictor.images) == 1


def test_visitors_do_not_see_each_others_images(page: Page, tmp_path: Path) -> None:
    page.answer(upload(tmp_path), 0.5, [], EVERYTHING, visitor())
    picture, words, *buttons = page.draw(0.5, [], EVERYTHING, visitor("two"))
    assert picture is None
    assert words == ""
    assert not any(button["interactive"] for button in buttons)
    with pytest.raises(Error, match="upload it again"):
        page.write_json(0.5, [], EVERYTHING, visitor("two"))


def test_an_image_is_forgotten_when_it_is_removed_or_its_visitor_leaves(
    page: Page, tmp_path: Path
) -> None:
    for forget in (
        lambda: page.answer(None, 0.5, [], EVERYTHING, visitor()),
        lambda: page.forget(visitor()),
    ):
        page.answer(upload(tmp_path), 0.5, [], EVERYTHING, visitor())
        assert page.draw(0.5, [], EVERYTHING, visitor())[0] is not None
        forget()
        assert page.draw(0.5, [], EVERYTHING, visitor())[0] is None


def test_only_the_last_visitors_are_remembered(page: Page, tmp_path: Path) -> None:
    for number in range(10):
        page.answer(upload(tmp_path), 0.5, [], EVERYTHING, visitor(str(number)))
    seen = [page.draw(0.5, [], [], visitor(str(number)))[0] is not None for number in range(10)]
    assert seen == [False] * 6 + [True] * 4


def test_a_damaged_upload_shows_a_message_and_nothing_else(page: Page, tmp_path: Path) -> None:
    page.answer(upload(tmp_path), 0.5, [], EVERYTHING, visitor())
    (tmp_path / "x.png").write_text("hello")
    damaged = {"path": str(tmp_path / "x.png"), "orig_name": "<b>.png"}
    with pytest.warns(UserWarning, match=r"&lt;b&gt;\.png cannot be read: it is not an image"):
        answered = page.answer(damaged, 0.5, [], EVERYTHING, visitor())
    assert answered[0] is answered[3] is None
    assert answered[4] == ""
