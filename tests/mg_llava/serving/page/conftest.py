"""A picture, a video, and somebody who comes to the page with them."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from mg_llava.inference.assistant import Assistant
from tests.clips import write_clip
from tests.mg_llava.serving.conftest import endless, found_cup, noise, serve
from tests.mg_llava.serving.page.visiting import LIMITS, Visitor, browser


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("page") / "noise.png"
    noise().save(path)
    return str(path)


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Two seconds, 16 frames of 40 x 30 pixels."""
    return str(write_clip(tmp_path_factory.mktemp("page") / "clip.mp4", size=(40, 30)))


@pytest.fixture
def shots(tmp_path: Path) -> Path:
    """The folder of screenshots: that of the variable PAGE_SHOTS where it is set."""
    return Path(os.environ.get("PAGE_SHOTS", tmp_path))


@pytest.fixture(autouse=True)
def temporary_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Uploads stand where pytest cleans up: of several servers in one process Gradio takes the first one's folder."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


@pytest.fixture
def visitor(assistant: Assistant, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Visitor]:
    """Answers are always cut after six tokens, so their end is seen."""
    driver = browser(tmp_path)
    from mg_llava.serving.app import make_app
    from mg_llava.serving.page import add_page

    monkeypatch.setattr(assistant, "stop_ids", endless(assistant))
    try:
        with serve(make_app(assistant, LIMITS, "tiny", found_cup, add_page)) as url:
            yield Visitor(driver, url)
    finally:
        driver.quit()
