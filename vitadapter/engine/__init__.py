"""Running a config: overrides, training, evaluation and prediction."""

import vitadapter.detectron2_required  # noqa: F401
