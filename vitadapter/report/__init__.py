"""`vitadapter report`: what a run has learned and gets wrong, as a folder that one opens."""

import vitadapter.detectron2_required  # noqa: F401
from vitadapter.report.writing import check_reportable, write_report

__all__ = ["check_reportable", "write_report"]
