"""Boxes in a picture's URL, as the plug-in for vLLM reads them: after ``#boxes=``, as JSON."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import quote

FRAGMENT = "#boxes="


def with_boxes(url: str, boxes: Any) -> str:
    """Returns a picture's URL, ``data:`` or ``http(s):``, that names its boxes; without any it stays as it is.

    Args:
        url: of the picture.
        boxes: (N, 4) numbers xyxy in pixels of the picture, or an object with ``boxes``, ``labels`` and ``scores``, in
            what JSON can hold; None = none are named.
    """
    url = url.partition("#")[0]
    return url if boxes is None else url + FRAGMENT + quote(json.dumps(boxes, separators=(",", ":")), safe="[],:{}")
