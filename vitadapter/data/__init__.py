"""Data: what Detectron2 lacks, from the sample data set on."""

import vitadapter.detectron2_required  # noqa: F401
