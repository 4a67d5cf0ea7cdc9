"""Picture encoders, a family per module; each says its own channels, grid and strides."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "clip": ["LowResEncoder"],
        "open_clip": ["HighResEncoder", "read_trunk_config"],
    },
)
