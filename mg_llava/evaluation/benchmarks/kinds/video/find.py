"""Video files by the names that question files give, which often lack the ending."""

from __future__ import annotations

import os

ENDINGS = (".mp4", ".avi", ".webm", ".mkv", ".mov", ".gif")


def find_video(folder: str, *names: str) -> str:
    """Returns the first of `names` that stands in a folder, with an ending of its own or one of `ENDINGS`.

    Args:
        folder: of the videos.
        names: by which the file may go, the likeliest first.

    Returns:
        The path below `folder`; where none is there the first name with .mp4, which is told when it is asked.
    """
    for name in names:
        for path in (name, *(name + ending for ending in ENDINGS)):
            if os.path.exists(os.path.join(folder, path)):
                return path
    return names[0] if names[0].endswith(ENDINGS) else f"{names[0]}.mp4"
