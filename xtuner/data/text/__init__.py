"""From a record's conversation to token ids and labels: templates, tokenizers, encoding."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "templates": ["PromptTemplate", "Turn", "get_template"],
        "tokenizer": ["build_tokenizer"],
        "fitting": ["build_template"],
        "encoder": ["RecordEncoder"],
    },
)
