"""Picture files to pixels: ``open`` reads a file, ``preprocess`` pads and resizes, ``normalize`` does what it says."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "colors": ["to_rgb"],
        "open": ["FORMATS", "num_frames", "open_base64", "open_picture", "picture_size"],
        "normalize": ["PixelNormalizer"],
        "pooling": ["FramePooling"],
        "preprocess": ["ImageProcessor"],
        "statistics": ["PixelStatistics"],
    },
)
