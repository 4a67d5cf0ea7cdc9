"""Picture files to pixels: ``open`` reads and checks a file, ``preprocess`` pads, resizes and normalises."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "colors": ["to_rgb"],
        "open": ["FORMATS", "num_frames", "open_base64", "open_picture", "picture_size"],
        "preprocess": ["ImageProcessor", "PixelNormalizer", "PixelStatistics"],
    },
)
