"""Training samples: the data set, its sources, the columns that boxes get, and the checks before training."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "dataset": ["MGLLaVADataset"],
        "sources": ["DataSource"],
        "stream": ["MGLLaVAStream"],
    },
)
