import numpy as np
import pytest
import torch
from detectron2.data.catalog import Metadata
from detectron2.structures import Boxes, Instances

from vitadapter.visualization.overlays import Palette
from vitadapter.visualization.predictions import (
    NOTHING,
    Found,
    Selection,
    chosen_classes,
    class_names,
    draw_found,
    in_words,
)

NAMES = ["person", "car", "dining table"]
PALETTE = Palette(NAMES)


def instances(scores: list[float], classes: list[int]) -> Instances:
    found = Instances((40, 60))
    found.pred_boxes = Boxes(torch.tensor([[5.0, 5.0, 30.0, 20.0]]).repeat(len(scores), 1))
    found.scores, found.pred_classes = torch.tensor(scores), torch.tensor(classes)
    return found


SEGMENTS = [
    {"id": 1, "category_id": 0, "isthing": True},
    {"id": 2, "category_id": 0, "isthing": True},
    {"id": 3, "category_id": 2, "isthing": False},
]
IDS = torch.zeros(40, 60, dtype=torch.int32)
IDS[:10], IDS[10:20], IDS[20:30] = 1, 2, 3
LOGITS = torch.nn.functional.one_hot(torch.arange(3).repeat_interleave(20), 3).float()
LOGITS = LOGITS.T[:, None].repeat(1, 40, 1)  # three columns of classes


def test_instances_are_chosen_by_score_and_class() -> None:
    output = {"instances": instances([0.5, 0.9, 0.49, 0.7], [0, 1, 1, 2])}
    found = Selection(0.5)(output).instances
    assert found.scores.tolist() == pytest.approx([0.9, 0.7, 0.5])
    assert in_words(Found(found), PALETTE) == "car 0.90, dining table 0.70, person 0.50"
    found = Selection(0.5, {0, 1})(output).instances
    assert found.pred_classes.tolist() == [1, 0]
    assert in_words(Selection(1)(output), PALETTE) == "nothing"


def test_labels_of_other_classes_are_left_out() -> None:
    every = Selection()({"sem_seg": LOGITS})
    assert np.unique(every.labels).tolist() == [0, 1, 2]
    assert in_words(every, PALETTE) == "person 33%, car 33%, dining table 33%"
    found = Selection(classes={2})({"sem_seg": LOGITS})
    assert (found.labels[:, :40] == NOTHING).all()
    assert (found.labels[:, 40:] == 2).all()


def test_segments_of_other_classes_are_left_out() -> None:
    output = {"panoptic_seg": (IDS, SEGMENTS), "instances": instances([0.9], [0])}
    every = Selection()(output)
    assert in_words(every, PALETTE) == "2 person, dining table"
    np.testing.assert_array_equal(every.segments[0], IDS)
    ids, segments = Selection(classes={0})(output).segments
    assert [segment["id"] for segment in segments] == [1, 2]
    assert np.unique(ids).tolist() == [0, 1, 2]
    labels = every.classes_of_segments()
    assert [labels[row, 0] for row in (0, 10, 20, 30)] == [0, 0, 2, NOTHING]


def test_the_colour_of_a_class_does_not_depend_on_the_others() -> None:
    """A video would flicker."""
    image = np.full((40, 60, 3), 128, dtype=np.uint8)
    alone = draw_found(image, Found(instances([0.9], [1])), PALETTE)
    ids, segments = IDS.numpy(), SEGMENTS
    whole = draw_found(image, Found(segments=(ids, segments)), PALETTE)
    part = draw_found(image, Found(segments=(np.where(ids == 2, 2, 0), segments[1:2])), PALETTE)
    assert (alone[20, 10:25] == PALETTE.color(1)).all()
    np.testing.assert_array_equal(whole[12:18, :50], part[12:18, :50])


@pytest.mark.parametrize("size", [(40, 60), (480, 640), (9, 7)])
def test_frames_have_one_size_whatever_they_show(size: tuple[int, int]) -> None:
    image = np.full((*size, 3), 128, dtype=np.uint8)
    names = Palette([f"class {n}" for n in range(150)])
    labels = np.arange(size[0] * size[1]).reshape(size) % 150
    drawn = [
        draw_found(image, Found(labels=each), names, is_frame=True)
        for each in (labels, np.full(size, NOTHING), np.full(size, 149))
    ]
    assert len({each.shape for each in drawn}) == 1
    assert drawn[0].shape[0] - size[0] <= max(2, size[0] / 4)
    assert (drawn[0].shape[0] - size[0]) % 2 == 0


def test_a_legend_is_below_label_maps() -> None:
    image = np.full((100, 200, 3), 128, dtype=np.uint8)
    drawn = draw_found(image, Found(labels=np.ones((100, 200), dtype=int)), PALETTE)
    assert drawn.shape[0] > 100
    colors = {tuple(color) for color in drawn[100:].reshape(-1, 3).tolist()}
    assert PALETTE.color(1) in colors
    assert PALETTE.color(0) not in colors
    nothing = draw_found(image, Found(labels=np.full((100, 200), NOTHING)), PALETTE)
    np.testing.assert_array_equal(nothing, image)


def test_classes_are_chosen_by_name() -> None:
    assert chosen_classes(["dining table", "person"], NAMES) == {0, 2}
    with pytest.raises(ValueError, match=r"no class 'Persons' \(near ones: person\)"):
        chosen_classes(["Persons"], NAMES)
    with pytest.raises(ValueError, match=r"no class 'zebra' \(there are person, car, dining table"):
        chosen_classes(["person", "zebra"], NAMES)
    with pytest.raises(ValueError, match=r"needs the names .*set dataset\.test\.json_file"):
        chosen_classes(["person"], [])


def test_names_are_those_of_all_classes() -> None:
    assert class_names(Metadata(thing_classes=["a"], stuff_classes=["a", "b"])) == ["a", "b"]
    assert class_names(Metadata(thing_classes=["a"])) == ["a"]
    assert list(class_names(Metadata())) == []
