import logging

import pytest
from coco_samples import make_content

from vitadapter.data.coco_format import parse_coco
from vitadapter.evaluation.coco_annotations import coco_api, warn_of_uncounted


def test_ids_begin_at_1_and_categories_keep_theirs() -> None:
    content = make_content()
    for annotation in content["annotations"]:
        annotation.update(id=0, category_id=annotation["category_id"] * 10)
    for category in content["categories"]:
        category["id"] *= 10
    api = coco_api(parse_coco(content, "a.json"))
    assert list(api.anns) == list(range(1, 9))
    for annotation, original in zip(api.anns.values(), content["annotations"], strict=True):
        assert {**original, "id": annotation["id"]} == {k: annotation[k] for k in original}


def test_masks_leave_out_what_has_none(caplog) -> None:
    content = make_content()
    content["annotations"][1]["segmentation"] = []
    data = parse_coco(content, "a.json")
    assert len(coco_api(data).anns) == 8
    assert len(coco_api(data, masks=True).anns) == 7
    assert "a.json: dropped 1 annotations without a mask, such as that with the box" in caplog.text
    with pytest.raises(ValueError, match=r"none of the 8 annotations of a\.json has a mask"):
        coco_api(parse_coco(make_content(masks="none"), "a.json"), masks=True)


@pytest.mark.parametrize(("per_category", "limit", "warns"), [(True, 3, True), (True, 4, False)])
def test_more_objects_than_are_counted(per_category: bool, limit: int, warns: bool, caplog) -> None:
    content = make_content()
    for annotation in content["annotations"]:
        annotation["image_id"] = 3  # 4 of each category
    content["annotations"].append({**content["annotations"][0], "iscrowd": 1})
    api = coco_api(parse_coco(content, "a.json"))
    with caplog.at_level(logging.WARNING):
        warn_of_uncounted(api, limit, per_category=per_category)
    assert ("1 images have more than 3 objects of a category, such as 002.png" in caplog.text) == (
        warns
    )
    caplog.clear()
    warn_of_uncounted(api, 7, per_category=False)
    assert "dataloader.evaluator.max_dets_per_image=8" in caplog.text
