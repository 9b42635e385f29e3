"""The compiled extension present, missing and broken."""

import shutil
import subprocess
import sys
from pathlib import Path

import torch
from ms_deform_attn_cases import SHAPES, assert_same, gradients, make_inputs
from without_editable_installs import WITHOUT_EDITABLE_INSTALLS

import vitadapter
from vitadapter.ops import ms_deform_attn
from vitadapter.ops.library import describe_build

SCHEMAS = [
    f"ms_deform_attn{form}{direction}" for form in ("", "_fused") for direction in ("", "_backward")
]


def _copy_without_extension(folder: Path) -> Path:
    source = Path(vitadapter.__file__).parent
    shutil.copytree(
        source, folder / "vitadapter", ignore=shutil.ignore_patterns("_C*", "__pycache__")
    )
    return folder


def _run_beside(folder: Path, program: str) -> subprocess.CompletedProcess[str]:
    program = WITHOUT_EDITABLE_INSTALLS + program
    return subprocess.run(
        [sys.executable, "-c", program], cwd=folder, capture_output=True, text=True, check=False
    )


def test_compiled_operator_serves_here() -> None:
    assert torch._C._dispatch_has_kernel_for_dispatch_key("vitadapter::ms_deform_attn", "CPU")
    build = describe_build()
    assert build.startswith("compiled with torch ")
    assert f"for CPU ({torch.ops.vitadapter._cpu_capability()} in use)" in build
    compiled_for_cuda = torch._C._dispatch_has_kernel_for_dispatch_key(
        "vitadapter::ms_deform_attn", "CUDA"
    )
    assert ("not for CUDA" in build) is not compiled_for_cuda


def test_missing_extension_warns_once_and_computes_the_same(tmp_path: Path) -> None:
    folder = _copy_without_extension(tmp_path)
    inputs = make_inputs()
    torch.save(inputs, tmp_path / "inputs.pt")
    program = f"""
import warnings
import torch
with warnings.catch_warnings(record=True) as at_import:
    warnings.simplefilter("always")
    import vitadapter
    from vitadapter.ops import ms_deform_attn
assert vitadapter.__file__.startswith({str(folder)!r}), vitadapter.__file__
ours = [str(w.message) for w in at_import if "vitadapter" in str(w.message)]
inputs = [t.requires_grad_() for t in torch.load("inputs.pt")]
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    for _ in range(3):
        output = ms_deform_attn(inputs[0], {SHAPES}, *inputs[1:])
    output.sum().backward()
ours += [str(w.message) for w in caught if "vitadapter" in str(w.message)]
try:
    ms_deform_attn(inputs[0].float(), {SHAPES}, *inputs[1:])
except TypeError:
    schemas = [str(getattr(torch.ops.vitadapter, name).default._schema) for name in {SCHEMAS}]
    results = [output.detach(), *(t.grad for t in inputs)]
    from vitadapter.ops.library import describe_build
    outcome = dict(warnings=ours, schemas=schemas, results=results, build=describe_build())
    torch.save(outcome, "results.pt")
"""
    done = _run_beside(folder, program)
    assert done.returncode == 0, done.stderr
    outcome = torch.load(tmp_path / "results.pt")
    assert len(outcome["warnings"]) == 1
    assert "pip install --no-build-isolation . (in the source code)" in outcome["warnings"][0]
    assert outcome["build"].startswith("not compiled: the slower PyTorch implementation is used")
    compiled = [getattr(torch.ops.vitadapter, name).default._schema for name in SCHEMAS]
    assert outcome["schemas"] == [str(schema) for schema in compiled]
    expected = gradients(ms_deform_attn, inputs, torch.ones(2, 4, 15, dtype=torch.float64))
    assert_same(outcome["results"], expected, 1e-12)


def test_broken_extension_is_an_error_that_says_why(tmp_path: Path) -> None:
    folder = _copy_without_extension(tmp_path)
    (folder / "vitadapter" / "_C.abi3.so").write_bytes(b"not a shared library")
    (folder / "setup.py").touch()  # as beside a package that is used from its source
    done = _run_beside(folder, "import vitadapter.ops")
    assert done.returncode != 0
    last_line = done.stderr.strip().splitlines()[-1]
    assert last_line.startswith("ImportError")
    assert "invalid ELF header" in last_line or "file too short" in last_line
    assert "_C.abi3.so" in last_line
    assert f"pip install --no-build-isolation -e . (in {folder})" in last_line


def test_package_itself_does_not_import_torch(tmp_path: Path) -> None:
    folder = _copy_without_extension(tmp_path)
    done = _run_beside(folder, "import sys, vitadapter; assert 'torch' not in sys.modules")
    assert done.returncode == 0, done.stderr
