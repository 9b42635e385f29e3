"""`scripts/profile_training.py` on the tiny detector."""

import importlib.util
from pathlib import Path

import pytest
from run_fixtures import *  # noqa: F403


def test_all_parts_have_a_share(
    tiny_config: Path, overrides: list[str], repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script = repository / "scripts" / "profile_training.py"
    spec = importlib.util.spec_from_file_location("profile_training", script)
    profile_training = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(profile_training)
    untouched = [getattr(owner, name) for owner, name, _ in profile_training.PARTS]
    given = [one for one in overrides if not one.startswith("train.output_dir")]
    command = [str(tiny_config), "--iterations", "2", "--overrides", *given]
    profile_training.main(command)
    printed = capsys.readouterr().out
    lines = printed[printed.index("2 iterations, ") :].splitlines()
    shares = {line.split(" ms  ")[1]: float(line.split()[0]) for line in lines[1:-1]}
    labels = {label for _, _, label in profile_training.PARTS} - {profile_training.EVALUATION}
    assert set(shares) == labels | {profile_training.COPIES}
    assert sum(shares[label] for label in labels) == pytest.approx(100, abs=1)
    assert shares["forward pass"] > shares["decoding"] > 0
    assert float(lines[-1].split()[-2]) > 0
    assert untouched == [getattr(owner, name) for owner, name, _ in profile_training.PARTS]
    with pytest.raises(SystemExit, match="no_such_experiment"):
        profile_training.main(["no_such_experiment"])
