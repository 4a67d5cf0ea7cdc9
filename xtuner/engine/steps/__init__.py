"""One optimizer step and what belongs to it: loop, optimizer, schedule, precision, guard, loader."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "optim": ["build_adamw"],
        "schedule": ["WarmupCosine"],
    },
)
