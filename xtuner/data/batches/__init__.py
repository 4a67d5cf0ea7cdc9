"""Which samples form a batch, in which order, and how they are joined."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "samplers": ["LengthGroupedBatchSampler", "ShuffledBatchSampler"],
        "collate": ["collate"],
    },
)
