"""Videos to pictures: ``sampling`` chooses frames, ``open`` reads a file, ``files`` finds frames by their places."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "files": ["FrameFiles"],
        "open": ["Video", "open_video"],
        "places": ["FramePlace", "VideoName"],
        "sampling": ["FrameSampling"],
        "shown": ["VideoFrames", "read_frames"],
    },
)
