"""Picture files to pixels: ``open`` reads and checks a file, ``preprocess`` pads, resizes and normalises."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "open": ["open_picture", "picture_size", "to_rgb"],
        "preprocess": ["ImageProcessor", "PixelNormalizer", "PixelStatistics"],
    },
)
