from pathlib import Path

from vitadapter.data.image_files import missing_files


def test_missing_files(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    for name in ("a.png", "below/b.png"):
        (tmp_path / name).touch()
    there = [str(tmp_path / name) for name in ("a.png", "below/b.png", "below/../a.png")]
    absent = [str(tmp_path / name) for name in ("b.png", "nowhere/a.png", "below/a.png")]
    assert sorted(missing_files(there + absent + ["https://host/a.png"])) == sorted(absent)
