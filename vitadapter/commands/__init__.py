"""The commands of `vitadapter`, which the scripts of the same work share with it."""

import vitadapter.detectron2_required  # noqa: F401
