"""The CPU kernels under AddressSanitizer and UndefinedBehaviorSanitizer."""

import shutil
import subprocess
from pathlib import Path

import pytest

# Unoptimised code is compiled in a fifth of the time, and the sanitizers see all that is written.
FLAGS = ["-std=c++17", "-O0", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]


@pytest.mark.skipif(shutil.which("g++") is None, reason="no g++")
def test_no_finding_in_ten_thousand_cases(repository: Path, tmp_path: Path) -> None:
    folder = repository / "kernels" / "ms_deform_attn"
    sources = sorted(folder.glob("cpu_kernels_*.cpp"))
    assert len(sources) == 3
    program = tmp_path / "fuzz"
    harness = Path(__file__).with_name("cpu_kernels_fuzz.cpp")
    built = subprocess.run(
        ["g++", *FLAGS, f"-I{folder}", harness, *sources, "-o", program],
        capture_output=True,
        text=True,
        check=False,
    )
    if "cannot find" in built.stderr:
        pytest.skip("the sanitizers' libraries are not installed")
    assert built.returncode == 0, built.stderr
    done = subprocess.run([program, "10000"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("10000 cases on ")
