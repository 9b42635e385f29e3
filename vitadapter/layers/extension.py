"""Loading of ``vitadapter._C``, the shared library with the compiled operators."""

import functools
import importlib
import importlib.util
import warnings

__all__ = ["BUILD_COMMAND", "load_extension", "warn_missing_extension"]

BUILD_COMMAND = "pip install --no-build-isolation -e ."


def load_extension() -> bool:
    """Load the compiled operators, which then register themselves with PyTorch.

    Returns:
        False if the extension was never built.

    Raises:
        ImportError: if the extension is there but does not load, for example because PyTorch was
            exchanged since it was built. Running without it would hide the fault as a slow model.
    """
    spec = importlib.util.find_spec("vitadapter._C")
    if spec is None:
        return False
    try:
        importlib.import_module("vitadapter._C")
    except ImportError as error:
        raise ImportError(
            f"the compiled operators of vitadapter at {spec.origin} do not load: {error}. They fit "
            f"only the PyTorch they were built with; rebuild them in the source folder: "
            f"{BUILD_COMMAND}"
        ) from error
    return True


@functools.cache
def warn_missing_extension() -> None:
    """Warn, once per process, that the PyTorch implementation serves in place of the kernels."""
    warnings.warn(
        "the compiled operators of vitadapter are not built; the slower PyTorch implementation is "
        f"used. Build them in the source folder: {BUILD_COMMAND}",
        stacklevel=2,
    )
