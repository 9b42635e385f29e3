"""Pictures and tables of training runs, predictions and evaluations."""

import vitadapter.detectron2_required  # noqa: F401
