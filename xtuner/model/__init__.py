"""Building and running models: language models, adapters, projectors, losses, memory; weights on disk in ``files``."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "llm": ["build_llm"],
        "projector": ["MLPProjector"],
    },
)
