"""Folders like those of evaluated runs, made without training: what `vitadapter report` reads."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

import numpy as np
from coco_samples import encode_mask, write_coco
from panoptic_samples import CLASSES, MAPS, SEGMENTS, write_map, write_panoptic
from PIL import Image
from sem_seg_samples import some_labels, write_pairs

Content = dict[str, list[dict[str, object]]]


def write_config(run: Path, evaluator: Mapping[str, object]) -> None:
    """`config.yaml` of a run with an evaluator."""
    (run / "inference").mkdir(parents=True)
    train = {"init_checkpoint": "", "max_iter": 20, "output_dir": str(run)}
    config = {"dataloader": {"evaluator": evaluator}, "train": train}
    (run / "config.yaml").write_text(json.dumps(config))  # which is YAML too


def write_metrics(run: Path, **last: float) -> None:
    """`metrics.json` of 20 iterations, and of the evaluation after them."""
    rows: list[dict[str, float]] = [
        {
            "iteration": i,
            "total_loss": 2 / (i + 1),
            "loss_cls": 1 / (i + 1),
            "lr": 2e-5 * (1 - i / 20),
            "time": 0.5,
        }
        for i in range(20)
    ]
    rows.append({"iteration": 20, **last})
    (run / "metrics.json").write_text("".join(f"{json.dumps(row)}\n" for row in rows))


def write_detector_run(
    folder: Path, content: Content, detections: Sequence[Mapping[str, object]]
) -> Path:
    """An evaluated detector; its data are in `folder / "data"`."""
    json_file, image_root = write_coco(folder / "data", content)
    run = folder / "run"
    write_config(
        run,
        {
            "_target_": "vitadapter.evaluation.coco.coco_evaluator",
            "name": "sample",
            "json_file": json_file,
            "image_root": image_root,
            "output_dir": str(run / "inference"),
            "max_dets_per_image": 100,
        },
    )
    (run / "inference" / "coco_instances_results.json").write_text(json.dumps(detections))
    return run


def write_segmenter_run(folder: Path) -> tuple[Path, list[tuple[np.ndarray, np.ndarray]]]:
    """An evaluated semantic segmenter of 3 classes, and truth and prediction of its images."""
    truths = {name: some_labels(seed) for seed, name in enumerate("abc")}
    images, labels = write_pairs(folder / "data", truths)
    run = folder / "run"
    write_config(
        run,
        {
            "_target_": "vitadapter.evaluation.sem_seg.sem_seg_evaluator",
            "name": "sample",
            "image_root": str(images),
            "label_root": str(labels),
            "num_classes": 3,
            "class_names": None,
            "ignore_label": 255,
            "reduce_zero_label": False,
            "output_dir": str(run / "inference"),
        },
    )
    pairs, found = [], []
    for seed, (name, truth) in enumerate(truths.items()):
        rng = np.random.default_rng(seed)
        predicted = np.where(rng.random(truth.shape) < 0.2, 1, np.where(truth == 255, 0, truth))
        pairs.append((truth, predicted))
        for label in np.unique(predicted).tolist():
            mask = encode_mask(predicted == label)
            file_name = str(images / f"{name}.jpg")
            found.append({"file_name": file_name, "category_id": label, "segmentation": mask})
    (run / "inference" / "sem_seg_predictions.json").write_text(json.dumps(found))
    return run, pairs


def write_panoptic_run(folder: Path) -> Path:
    """An evaluated panoptic segmenter: all is right, but the dog of the first image is a cat."""
    files = write_panoptic(folder / "data", MAPS)
    run = folder / "run"
    write_config(
        run,
        {
            "_target_": "vitadapter.evaluation.panoptic.panoptic_evaluator",
            "name": "sample",
            **files._asdict(),
            "instances_json": None,
            **CLASSES,
            "output_dir": str(run / "inference"),
        },
    )
    entries = []
    for number, (name, ids) in enumerate(MAPS.items(), start=1):
        shown = np.where(np.isin(ids, (0, 9)), 300, ids)  # neither void nor a crowd is predicted
        write_map(run / "inference" / "panoptic_predictions" / f"{name}.png", shown)
        segments = [
            {"id": id_, "category_id": 7 if number == 1 and id_ == 5 else SEGMENTS[id_]}
            for id_ in np.unique(shown).tolist()
        ]
        entries.append({"image_id": number, "file_name": f"{name}.png", "segments_info": segments})
    results = run / "inference" / "panoptic_predictions.json"
    results.write_text(json.dumps({"annotations": entries}))
    return run


def read_report(page: Path) -> dict[str, object]:
    """What the page shows."""
    text = (page.parent / "data.js").read_text(encoding="utf-8")
    data = json.loads(text.removeprefix("const REPORT = ").removesuffix(";\n"))
    return cast(dict[str, object], data)


def picture(path: Path) -> np.ndarray:
    """The pixels (H, W, 4) of a picture."""
    with Image.open(path) as image:
        return np.asarray(image.convert("RGBA"))
