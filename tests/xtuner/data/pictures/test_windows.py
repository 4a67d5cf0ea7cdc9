"""Paths of Windows among missing pictures: one sentence, with what to write instead."""

from __future__ import annotations

import json

import pytest

from xtuner.data.pictures.windows import is_windows_path, windows_advice


@pytest.mark.parametrize(
    ("written", "there", "said"),
    [
        # as a JSON file has it, what the folder holds, what is said
        (r'"sub\\a.png"', "sub/a.png", r"'sub\a.png': write '/' in place of each backslash, here 'sub/a.png', which"),
        (r'"sub\\a.png"', "", r"in place of each backslash, such as 'sub/a.png'."),
        (
            r'"C:\\temp\\x.jpg"',
            "x.jpg",
            r"'C:\temp\x.jpg': write each path from the image folder on, with '/', here 'x",
        ),
        (r'"C:\\temp\\x.jpg"', "temp/x.jpg", "here 'temp/x.jpg', which is there."),
        (r'"C:\\temp\\x.jpg"', "", "such as 'x.jpg'."),
        (r'"C:/temp/x.jpg"', "x.jpg", "'C:/temp/x.jpg': write each path from the image folder on"),
        (r'"C:\temp\new.jpg"', "temp/new.jpg", r"'C:\temp\new.jpg': write each path from the image folder on"),
        (
            r'"sub\new.jpg"',
            "sub/new.jpg",
            "JSON reads a single backslash and its letter as a tab",
        ),
        (r'"\\\\server\\share\\x.jpg"', "share/x.jpg", r"'\\server\share\x.jpg': write each path from the image"),
    ],
)
def test_each_way_of_writing_them(written, there, said):
    path = json.loads(written)
    told = windows_advice([path], 3, {there}.__contains__)
    assert told is not None and "\n" not in told and "\t" not in told
    assert told.startswith("1 of 3 pictures have paths of Windows, the first is '") and said in told


@pytest.mark.parametrize("path", ["a.png", "sub/a b.png", "ä/1:2.png", "/abs/a.png", "../a.png", "http://x/a.png"])
def test_others_are_not_taken_for_them(path):
    assert not is_windows_path(path)
    assert windows_advice([path], 1, lambda _: False) is None
