"""The page: uploads, what is shown of the predictions in them, and their files."""

import html
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import gradio as gr
import numpy as np

from vitadapter.visualization.overlays import fitted
from vitadapter.visualization.predictions import Found, Selection, Shown, draw_found, in_words

from .uploads import Answer, Answerer

__all__ = ["Page"]

_BOXES, _MASKS, _LABELS = "Boxes", "Masks", "Labels"
_LARGEST_SHOWN = 1600  # pixels of the longer side of a picture in the page; files have all
_REMEMBERED = 4  # visitors whose last answer is kept
_FORGET_EVERY, _FORGET_AFTER = 60, 300  # seconds, of the files that the page has loaded

# Gradio's button downloads the file that it has had before the click. So this one is hidden, and is
# clicked when it has its file.
_CLICK = "() => document.querySelector('#{0}').click()"

# Gradio's page does not upload a file that is too large, but says nothing.
_WATCH_SIZES = """() => {{
    const check = (files) => {{
        if ([...(files ?? [])].some((file) => file.size > {1}))
            document.querySelector('#{0}').click();
    }};
    document.addEventListener('change', (event) => check(event.target.files), true);
    document.addEventListener('drop', (event) => check(event.dataTransfer?.files), true);
    document.addEventListener('paste', (event) => check(event.clipboardData?.files), true);
}}"""


@dataclass(frozen=True)
class _Controls:
    """What the page consists of."""

    upload: gr.Image
    threshold: gr.Slider
    classes: gr.Dropdown
    shown: gr.CheckboxGroup
    picture: gr.Image
    words: gr.Textbox
    save_picture: gr.Button
    save_json: gr.Button
    files: tuple[gr.DownloadButton, gr.DownloadButton]
    too_large: gr.Button


def _lay_out(title: str, names: Sequence[str]) -> _Controls:
    gr.Markdown(f"## {title}")
    with gr.Row():
        with gr.Column(scale=1, min_width=300):
            upload = gr.Image(label="Image", buttons=[], height=280, elem_id="upload")
            threshold = gr.Slider(
                0,
                1,
                Selection.score_threshold,
                step=0.01,
                label="Score threshold",
                elem_id="threshold",
            )
            classes = gr.Dropdown(
                [(name, number) for number, name in enumerate(names)],
                value=[],
                multiselect=True,
                label="Classes",
                info="All of them, if none is chosen.",
                visible=bool(names),
                elem_id="classes",
            )
            parts = [_BOXES, _MASKS, _LABELS]
            shown = gr.CheckboxGroup(parts, value=parts, label="Draw", elem_id="shown")
        with gr.Column(scale=2, min_width=400):
            picture = gr.Image(
                label="Predictions", buttons=["fullscreen"], interactive=False, elem_id="picture"
            )
            words = gr.Textbox(label="Found", max_lines=8, interactive=False, elem_id="words")
            with gr.Row():
                save_picture = gr.Button("Download the picture", interactive=False)
                save_json = gr.Button("Download the results (JSON)", interactive=False)
            files = (
                gr.DownloadButton(visible="hidden", elem_id="picture-file"),
                gr.DownloadButton(visible="hidden", elem_id="json-file"),
            )
            too_large = gr.Button(visible="hidden", elem_id="too-large")
    return _Controls(
        upload, threshold, classes, shown, picture, words, save_picture, save_json, files, too_large
    )


def _parts_of(found: Found) -> list[str]:
    """What can be drawn of it."""
    if found.instances is None:
        return [_MASKS, _LABELS]
    return [_BOXES, *([_MASKS] if found.instances.has("pred_masks") else []), _LABELS]


def _for_page(image: np.ndarray) -> np.ndarray:
    return fitted(image, _LARGEST_SHOWN) if max(image.shape) > _LARGEST_SHOWN else image


def _say(message: str) -> None:
    """Shows a message until it is closed."""
    gr.Warning(html.escape(message), duration=None)


class Page:
    """What the visitors of the page do.

    Args:
        answerer: of uploads.
        title: of the page.
    """

    def __init__(self, answerer: Answerer, title: str) -> None:
        self._answerer = answerer
        self._title = title
        self._answers: OrderedDict[str, Answer] = OrderedDict()

    def blocks(self) -> gr.Blocks:
        """The page for Gradio to serve."""
        cache = (_FORGET_EVERY, _FORGET_AFTER)
        with gr.Blocks(analytics_enabled=False, title=self._title, delete_cache=cache) as page:
            controls = _lay_out(self._title, self._answerer.names)
            self._listen(controls)
            page.unload(self.forget)
            js = _WATCH_SIZES.format(controls.too_large.elem_id, self._answerer.limits.bytes)
            page.load(None, js=js, api_visibility="private")
        return page

    def _listen(self, controls: _Controls) -> None:
        chosen = [controls.threshold, controls.classes, controls.shown]
        drawn = [controls.picture, controls.words, controls.save_picture, controls.save_json]
        controls.upload.input(
            self.answer,
            [controls.upload, *chosen],
            [controls.upload, controls.threshold, controls.shown, *drawn],
            preprocess=False,  # which would open the upload in a way of its own
            trigger_mode="always_last",
            show_progress_on=controls.picture,
            api_visibility="private",
        )
        gr.on(
            [controls.threshold.change, controls.classes.change, controls.shown.change],
            self.draw,
            chosen,
            drawn,
            trigger_mode="always_last",
            show_progress="hidden",
            api_visibility="private",
        )
        controls.too_large.click(self.refuse_size, api_visibility="private")
        buttons = (controls.save_picture, controls.save_json)
        writers = (self.write_picture, self.write_json)
        for button, file, write in zip(buttons, controls.files, writers, strict=True):
            written = button.click(write, chosen, file, api_visibility="private")
            written.success(None, js=_CLICK.format(file.elem_id), api_visibility="private")

    def answer(
        self,
        upload: Mapping[str, str] | None,
        threshold: float,
        classes: list[int],
        parts: list[str],
        request: gr.Request,
    ) -> list[object]:
        """Runs the model on an upload, or shows nothing if it has been removed."""
        self.forget(request)
        nothing = [None, gr.skip(), gr.skip(), *self._drawn(None, threshold, classes, parts)]
        if upload is None:
            return nothing
        try:
            answer = self._answerer.answer(Path(upload["path"]), upload.get("orig_name"))
        except ValueError as error:
            _say(str(error))
            return nothing
        self._answers[_visitor(request)] = answer
        while len(self._answers) > _REMEMBERED:
            self._answers.popitem(last=False)
        possible = _parts_of(answer.found)
        return [
            _for_page(np.ascontiguousarray(answer.image[:, :, ::-1])),
            gr.update(visible=answer.found.instances is not None),
            gr.update(choices=possible, value=[part for part in parts if part in possible]),
            *self._drawn(answer, threshold, classes, parts),
        ]

    def draw(
        self, threshold: float, classes: list[int], parts: list[str], request: gr.Request
    ) -> list[object]:
        """Draws what is chosen of the last answer."""
        return self._drawn(self._answers.get(_visitor(request)), threshold, classes, parts)

    def _drawn(
        self, answer: Answer | None, threshold: float, classes: list[int], parts: list[str]
    ) -> list[object]:
        """The picture, its words, and whether there is something to download."""
        can_save = gr.update(interactive=answer is not None)
        if answer is None:
            return [None, "", can_save, can_save]
        found = _selection(threshold, classes).of(answer.found)
        palette = self._answerer.palette
        image = np.ascontiguousarray(answer.image[:, :, ::-1])
        drawn = draw_found(image, found, palette, _shown(parts))
        return [_for_page(drawn), in_words(found, palette), can_save, can_save]

    def write_picture(
        self, threshold: float, classes: list[int], parts: list[str], request: gr.Request
    ) -> str:
        """Writes the picture that is shown, in its full size."""
        answer, selection = self._remembered(request), _selection(threshold, classes)
        return str(self._answerer.write_picture(answer, selection, _shown(parts)))

    def write_json(
        self, threshold: float, classes: list[int], parts: list[str], request: gr.Request
    ) -> str:
        """Writes the predictions that are shown."""
        answer, selection = self._remembered(request), _selection(threshold, classes)
        return str(self._answerer.write_json(answer, selection))

    def _remembered(self, request: gr.Request) -> Answer:
        answer = self._answers.get(_visitor(request))
        if answer is None:
            message = "The image is forgotten by now: upload it again."
            raise gr.Error(message, print_exception=False)
        return answer

    def refuse_size(self) -> None:
        """Says that a file is too large."""
        limit = self._answerer.limits.megabytes
        _say(f"The file has more than {limit:g} megabytes (--max-megabytes)")

    def forget(self, request: gr.Request) -> None:
        """Forgets the answer of a visitor, who has left."""
        self._answers.pop(_visitor(request), None)


def _visitor(request: gr.Request) -> str:
    return str(request.session_hash)


def _selection(threshold: float, classes: list[int]) -> Selection:
    return Selection(threshold, frozenset(classes) or None)


def _shown(parts: list[str]) -> Shown:
    return Shown(_BOXES in parts, _MASKS in parts, _LABELS in parts)
