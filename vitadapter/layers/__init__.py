"""Layers that Detectron2 lacks."""


def __getattr__(name: str) -> object:
    """Finds the deformable attention, which configs of earlier runs import from here."""
    from vitadapter import ops

    if name not in ops.__all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(ops, name)
