"""The evaluators that configs name."""

import vitadapter.detectron2_required  # noqa: F401
