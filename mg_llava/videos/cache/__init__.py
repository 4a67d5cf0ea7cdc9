"""Sampled frames kept as JPEG or PNG in Arrow files: ``writing`` makes them, ``reading`` finds them by their places."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "formats": ["FrameFormat"],
        "reading": ["FrameCache"],
        "writing": ["keep_frames"],
    },
)
