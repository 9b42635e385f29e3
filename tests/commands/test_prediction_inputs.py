import argparse
from pathlib import Path

from vitadapter.commands.prediction_inputs import plan_outputs


def test_maps_and_crops_of_equal_names_are_kept_apart(tmp_path: Path) -> None:
    inputs = [(tmp_path / name, Path(name)) for name in ("a.jpg", "a.png", "crops/a.jpg")]
    args = argparse.Namespace(
        output=str(tmp_path / "out"),
        pictures=True,
        json=True,
        crops=True,
        maps=True,
        skip_existing=False,
    )
    planned = plan_outputs(inputs, args)
    paths = [path for one in planned for path in one.files.paths()]
    assert len(set(paths)) == len(paths) == 12
