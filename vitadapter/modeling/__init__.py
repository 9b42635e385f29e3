"""Models of vitadapter."""

import vitadapter.detectron2_required  # noqa: F401
