"""Video files by the names that question files give, which often lack the ending."""

from __future__ import annotations

from mg_llava.videos.files import FrameFiles

ENDINGS = (".mp4", ".avi", ".webm", ".mkv", ".mov", ".gif")


def find_video(files: FrameFiles, *names: str) -> str:
    """Returns the first of `names` that is there, with an ending of its own or one of `ENDINGS`.

    Args:
        files: the folder or the archives of the videos.
        names: by which the file may go, the likeliest first.

    Returns:
        The path in `files`; where none is there the first name with .mp4, which is told when it is asked.
    """
    for name in names:
        for path in (name, *(name + ending for ending in ENDINGS)):
            if files.has_video(path):
                return path
    return names[0] if names[0].endswith(ENDINGS) else f"{names[0]}.mp4"
