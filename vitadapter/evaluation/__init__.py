"""Evaluators as configs name them."""

import vitadapter.detectron2_required  # noqa: F401
