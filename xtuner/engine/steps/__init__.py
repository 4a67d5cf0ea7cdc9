"""One optimizer step and what belongs to it: loop, optimizer, schedule, precision, guard, loader."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "algorithms": ["Muon"],
        "optim": ["build_optimizer"],
        "schedule": ["WarmupConstant", "WarmupCosine", "WarmupLinear", "WarmupStableDecay"],
    },
)
