"""The model card: what a folder holds, how it was trained, how to run it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mg_llava.pictures.frames import size_words

if TYPE_CHECKING:
    from mg_llava.hf.configuration import MGLLaVAConfig
    from mg_llava.inference.assistant import Assistant

_HEAD = """---
library_name: transformers
pipeline_tag: image-text-to-text
tags: [mg-llava, vision-language, object-tokens]
---
"""

_USE = """## Run it

```python
import mg_llava  # registers the model with transformers
from transformers import AutoModelForImageTextToText, AutoProcessor

model = AutoModelForImageTextToText.from_pretrained(FOLDER, device_map="auto")
processor = AutoProcessor.from_pretrained(FOLDER)
messages = [{"role": "user", "content": [
    {"type": "image", "image": "picture.jpg"},
    {"type": "text", "text": "What is this?"},
]}]
inputs = processor.apply_chat_template(
    messages, tokenize=True, return_dict=True,
    boxes=[{"boxes": [[10, 20, 200, 180]], "labels": ["dog"], "scores": [0.9]}],  # optional, pixels of the picture
).to(model.device)
print(processor.decode(model.generate(**inputs)[0, inputs["input_ids"].shape[1]:], skip_special_tokens=True))
```

In the terminal: `xtuner chat FOLDER --image picture.jpg`. As a web page and OpenAI-compatible endpoint:
`xtuner serve FOLDER`.
"""

_UNSET = "not set"


def model_card(config: MGLLaVAConfig, assistant: Assistant, num_bytes: int) -> str:
    """Returns the text of README.md.

    Args:
        config: of the folder; ``source`` may hold ``config``, ``checkpoint``, ``training`` (settings),
            ``training_from`` (where these were read), ``passed`` (settings of the config passed to convert where they
            differ) and ``results`` (metrics by benchmark).
        assistant: what is saved.
        num_bytes: of all weights.
    """
    source = config.source
    model = assistant.model
    parts = "\n".join(
        f"| {name} | {sum(p.numel() for p in part.parameters()) / 1e6:,.2f} M | {config.part_dtypes[name]} |"
        for name, part in model.parts().items()
    )
    return "\n".join(
        [
            _HEAD,
            f"# {source.get('config', 'MG-LLaVA')}",
            "",
            "An MG-LLaVA model ([arXiv 2406.17770](https://arxiv.org/abs/2406.17770)): a language model that sees a "
            f"picture in low resolution ({config.num_image_tokens} tokens), in high resolution "
            f"({size_words(assistant.image_processor.image_size)} px) and by its objects (one token per box). "
            f"Prompt template: {assistant.template.name}. {num_bytes / 1e9:.2f} GB of weights.",
            "",
            "| part | parameters | format |",
            "|---|---|---|",
            parts,
            "",
            _USE,
            *_section("Training", _both(source.get("training") or {}, source.get("passed") or {})),
            *_note(source.get("training_from")),
            *_section("Results", source.get("results")),
            "## Made by",
            "",
            f"Config `{source.get('config', 'unknown')}`, checkpoint `{source.get('checkpoint', 'unknown')}`; "
            + ", ".join(f"{name} {version}" for name, version in source.get("versions", {}).items())
            + ".",
            "",
        ]
    )


def _both(training: Mapping[str, Any], passed: Mapping[str, Any]) -> dict[str, Any]:
    """The run's settings, with those beside them that the config passed to convert has otherwise."""
    told = dict(training)
    for name, value in passed.items():
        told[name] = (
            f"{training.get(name, _UNSET)} (the config passed to convert: {_UNSET if value is None else value})"
        )
    return told


def _note(training_from: str | None) -> list[str]:
    return [f"Settings from {training_from}.", ""] if training_from else []


def _section(title: str, values: Mapping[str, Any] | None) -> list[str]:
    if not values:
        return []
    return [f"## {title}", "", "| | |", "|---|---|", *(f"| {key} | {value} |" for key, value in values.items()), ""]
