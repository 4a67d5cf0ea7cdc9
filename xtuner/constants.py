"""Numbers and strings that text, vision and model code agree on."""

from __future__ import annotations

IGNORE_INDEX = -100
"""Label of a position without loss (torch's cross entropy skips it)."""

IMAGE_TOKEN = "<image>"
"""Place of a picture in a conversation's text."""

IMAGE_TOKEN_INDEX = -200
"""Place of a picture in ``input_ids``; never a row of the embedding table."""
