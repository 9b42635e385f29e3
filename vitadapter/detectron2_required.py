"""Says how to install Detectron2 where it is missing; every package that needs it imports this."""

from vitadapter.install_detectron2 import COMMAND, MissingDetectron2Error, find_detectron2

if find_detectron2() is None:
    raise MissingDetectron2Error(
        "vitadapter needs Detectron2 for everything but its operators (vitadapter.ops), and "
        f"Detectron2 is not installed here. Install it with: {COMMAND}"
    )
