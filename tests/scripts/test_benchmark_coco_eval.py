"""`scripts/benchmark_coco_eval.py` on a few images."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("hotcoco")


def test_both_agree_and_a_difference_is_told(
    repository: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    script = repository / "scripts" / "benchmark_coco_eval.py"
    spec = importlib.util.spec_from_file_location("benchmark_coco_eval", script)
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    command = ["--images", "4", "--detections", "10"]
    assert benchmark.main(command) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("4 images, ")
    assert lines[0].endswith(" 40 detections")
    assert [line.split(":")[0] for line in lines[1:]] == ["bbox", "segm"]
    assert all(line.endswith("all figures are equal") for line in lines[1:])

    class Differs(benchmark.HotCocoEval):
        def accumulate(self, p: object = None) -> None:
            super().accumulate(p)
            self.eval["recall"] = np.nextafter(self.eval["recall"], 2)

    monkeypatch.setattr(benchmark, "HotCocoEval", Differs)
    assert benchmark.main(command) == 1
    assert "recall differ" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        benchmark.main(["--images", "0"])
    assert "--images must be at least 1, got 0" in capsys.readouterr().err
