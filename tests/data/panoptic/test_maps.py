from pathlib import Path

import numpy as np
import pytest
from panoptic_samples import some_ids, write_map
from PIL import Image

from vitadapter.data.panoptic.maps import (
    check_segment_ids,
    id_to_rgb,
    read_panoptic_png,
    rgb_to_id,
)


def test_ids_are_colours() -> None:
    """The format's own examples: red counts one, green 256, blue 65536."""
    colours = np.array([[[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1], [255, 255, 255]]], np.uint8)
    ids = rgb_to_id(colours)
    assert ids.tolist() == [[0, 1, 256, 65536, 2**24 - 1]]
    np.testing.assert_array_equal(id_to_rgb(ids), colours)


@pytest.mark.parametrize("bad", [-1, 2**24])
def test_ids_out_of_range(bad: int) -> None:
    with pytest.raises(ValueError, match=r"lie in \[0, 2\^24\)"):
        id_to_rgb(np.array([[0, bad]]))


def test_reads_what_is_stored(tmp_path: Path) -> None:
    ids = some_ids()
    write_map(tmp_path / "a.png", ids)
    np.testing.assert_array_equal(rgb_to_id(read_panoptic_png(str(tmp_path / "a.png"))), ids)
    with pytest.raises(ValueError, match=r"a\.png must have .* \(48, 63\), got \(48, 64\)"):
        read_panoptic_png(str(tmp_path / "a.png"), (48, 63))


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "I;16", "1"])
def test_other_kinds_of_images_are_refused(tmp_path: Path, mode: str) -> None:
    """A palette or 16 bits could hold ids, too, but no two programs would agree how."""
    path = tmp_path / "a.png"
    if mode == "I;16":
        Image.fromarray(np.full((4, 6), 300, np.uint16)).save(path)
    else:
        Image.new("RGB", (6, 4), (9, 0, 0)).convert(mode).save(path)
    with pytest.raises(ValueError, match=rf"a\.png must be an RGB image .* got the mode {mode}"):
        read_panoptic_png(str(path))


@pytest.mark.parametrize("kind", ["missing", "text", "truncated"])
def test_unreadable_files_are_named(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.png"
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    if kind == "missing":
        path.unlink()
    else:
        path.write_bytes(b"no image" if kind == "text" else path.read_bytes()[:900])
    with pytest.raises(ValueError, match=r"panoptic map .*a\.png cannot be read"):
        read_panoptic_png(str(path))


def test_segments_that_nobody_annotated() -> None:
    record = {"pan_seg_file_name": "maps/a.png", "segments_info": [{"id": 5}, {"id": 8}]}
    check_segment_ids(np.array([[0, 5], [5, 5]]), record)
    with pytest.raises(ValueError, match=r"maps/a\.png has segments .*: 4, 6$"):
        check_segment_ids(np.array([[6, 5], [4, 8]]), record)
