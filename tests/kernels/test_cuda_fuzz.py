"""Random arguments on the emulated device, as they are and under sanitizers.

``VITADAPTER_FUZZ_CASES=10000`` in the environment runs that many under the sanitizers.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from cuda_emulation_cases import SANITIZERS, build
from cuda_emulation_fuzz import fuzz
from torch._ops import _OpNamespace


@pytest.mark.parametrize("fused", [False, True])
def test_accepts_and_computes_what_the_others_do(emulated: _OpNamespace, fused: bool) -> None:
    fuzz(emulated, fused, 150)


def _library_of_compiler(name: str) -> str:
    command = ["g++", f"-print-file-name={name}"]
    path = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    if not Path(path).is_absolute():
        pytest.skip("the sanitizers' libraries are not installed")
    return path


def test_under_sanitizers(kernels: Path, repository: Path) -> None:
    """Also the only build with scalar atomics, as before compute capability 9.0."""
    # Exceptions pass through the sanitizers, which look for the C++ library when they start.
    preload = [_library_of_compiler(name) for name in ("libasan.so", "libstdc++.so")]
    library = build(kernels, True, [*SANITIZERS, "-DVITADAPTER_ATOMIC_FLOAT4=0"])
    environment = {
        "LD_PRELOAD": " ".join(preload),
        # Python does not free all that it has at its end.
        "ASAN_OPTIONS": "detect_leaks=0:quarantine_size_mb=64",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "PYTHONPATH": os.pathsep.join([str(repository / "tests" / "helpers"), str(repository)]),
    }
    script = repository / "tests" / "helpers" / "cuda_emulation_fuzz.py"
    count = os.environ.get("VITADAPTER_FUZZ_CASES", "100")
    done = subprocess.run(
        [sys.executable, str(script), str(library), count],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
