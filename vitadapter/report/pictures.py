"""The pictures of a report: small copies of images, label maps in colours, outlines of masks."""

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

__all__ = ["PICTURE_FOLDERS", "Pictures", "outlines"]

PICTURE_FOLDERS = ("images", "masks", "truth", "predicted", "errors")
"""The folders of a report that pictures go to, by their kind."""

_LONGEST = 640  # pixels of the longer side of a copy
_QUALITY = 88  # of JPEG
_PALETTE_SIZE = 256


def outlines(mask: np.ndarray) -> list[list[int]]:
    """The outlines of a mask (H, W) and of its holes: lists x, y, x, y, ... in pixels."""
    found, _ = cv2.findContours(
        np.ascontiguousarray(mask, dtype=np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE
    )
    simple = [cv2.approxPolyDP(contour, 0.6, True).reshape(-1) for contour in found]
    return [contour.tolist() for contour in simple if len(contour) >= 6]


class Pictures:
    """Writes pictures below the folder of a report.

    Args:
        folder: of the report.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._made: set[Path] = set()

    def _path(self, kind: str, number: int, suffix: str) -> tuple[Path, str]:
        """The path of a picture, and what the page calls it."""
        folder = self._folder / kind / f"{number // 1000:03d}"
        if folder not in self._made:
            folder.mkdir(parents=True, exist_ok=True)
            self._made.add(folder)
        path = folder / f"{number:06d}{suffix}"
        return path, path.relative_to(self._folder).as_posix()

    @staticmethod
    def _size(shape: Sequence[int]) -> tuple[int, int]:
        """(width, height) of the copy of an image (H, W, ...)."""
        scale = min(1.0, _LONGEST / max(shape[:2]))
        return max(1, round(shape[1] * scale)), max(1, round(shape[0] * scale))

    def add_image(self, number: int, image: np.ndarray) -> str:
        """Copies an image (H, W, 3) RGB, with a longer side of at most 640 pixels.

        Args:
            number: of the image in the report.
            image: it.

        Returns:
            The path of the copy in the report.
        """
        path, name = self._path("images", number, ".jpg")
        size = self._size(image.shape)
        small = image
        if size != (image.shape[1], image.shape[0]):
            small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
        Image.fromarray(small).save(path, quality=_QUALITY)
        return name

    def add_map(self, kind: str, number: int, labels: np.ndarray, colors: np.ndarray) -> str:
        """Draws a map as a PNG of the size of the image's copy.

        Args:
            kind: of map, the name of its folder.
            number: of the image in the report.
            labels: (H, W), rows of `colors`.
            colors: (K, 4) uint8, RGBA.

        Returns:
            The path of the map in the report.
        """
        path, name = self._path(kind, number, ".png")
        small = cv2.resize(
            labels.astype(np.int32), self._size(labels.shape), interpolation=cv2.INTER_NEAREST
        )
        used, places = np.unique(small, return_inverse=True)
        if len(used) > _PALETTE_SIZE:
            Image.fromarray(colors[small]).save(path)
            return name
        drawn = Image.fromarray(places.reshape(small.shape).astype(np.uint8), mode="P")
        drawn.putpalette(colors[used, :3].tobytes())
        drawn.save(path, transparency=colors[used, 3].tobytes(), optimize=True)
        return name

    def add_outlines(self, number: int, text: str) -> str:
        """Writes a script with the outlines of an image's masks, which is read when they are shown.

        Returns:
            The path of the script in the report.
        """
        path, name = self._path("masks", number, ".js")
        path.write_text(text, encoding="utf-8")
        return name
