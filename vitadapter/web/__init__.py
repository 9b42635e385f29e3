"""A local page that shows what a model finds in uploaded images; it needs Gradio."""

import vitadapter.detectron2_required  # noqa: F401

# isort: split
from .server import serving
from .uploads import Limits

__all__ = ["Limits", "serving"]
