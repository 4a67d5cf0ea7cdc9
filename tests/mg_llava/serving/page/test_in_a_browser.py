"""The page in a real headless Chromium: upload, boxes drawn, answers, saved chats, the keyboard, a phone."""

from __future__ import annotations

import importlib.util
import os
import shutil
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from mg_llava.inference.assistant import Assistant
from mg_llava.serving.requests.settings import Limits
from tests.mg_llava.serving.conftest import found_cup, noise, serve

LIMITS = Limits(max_new_tokens=6, max_pixels=1_000_000)


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("page") / "noise.png"
    noise().save(path)
    return str(path)


@pytest.fixture(autouse=True)
def temporary_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Uploads stand where pytest cleans up: of several servers in one process Gradio takes the first one's folder."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


def browser() -> Any:
    """A headless Chromium, or a skip that says what is missing."""
    if importlib.util.find_spec("gradio") is None:
        pytest.skip("gradio is not installed: pip install '.[serve]'")
    if importlib.util.find_spec("selenium") is None:
        pytest.skip("selenium is not installed: pip install selenium")
    chrome, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chrome is None or driver is None:
        pytest.skip("no Chromium on this machine: apt-get install chromium chromium-driver")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = chrome
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1400,1100"):
        options.add_argument(argument)
    return webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))


@pytest.mark.slow
def test_in_a_browser(assistant: Assistant, picture: str, tmp_path: Path) -> None:
    """Screenshots go to the folder PAGE_SHOTS where that is set."""
    driver = browser()
    from mg_llava.serving.app import make_app
    from mg_llava.serving.page import add_page

    shots = Path(os.environ.get("PAGE_SHOTS", tmp_path))
    try:
        with serve(make_app(assistant, LIMITS, "tiny", found_cup, add_page)) as url:
            driver.get(url)

            def find(css: str) -> Any:
                return _until(lambda: driver.find_element("css selector", css))

            find("#picture input[type=file]").send_keys(picture)
            _until(lambda: find("#note").text == "40 x 30 px, 1 box")
            assert _until(lambda: driver.find_element("css selector", "#drawn img").get_attribute("src"))
            find("#question textarea").send_keys("Is it red")
            find("#ask").click()
            answer = _until(lambda: driver.find_element("css selector", "#chat .bot").text.strip())
            assert answer
            driver.save_screenshot(str(shots / "chat.png"))
            # boxes off and on again, and a second turn
            find("#use_boxes input").click()
            _until(lambda: find("#note").text == "40 x 30 px, 0 boxes")
            find("#question textarea").send_keys("what")
            find("#ask").click()
            _until(lambda: len(driver.find_elements("css selector", "#chat .bot")) >= 2)
            _tab(driver, "With and without objects")
            find("#question_both textarea").send_keys("Is it red")
            find("#ask_both").click()
            _until(lambda: find("#without_objects textarea").get_attribute("value"))
            driver.save_screenshot(str(shots / "both.png"))
            _tab(driver, "Which regions mattered")
            find("#question_why textarea").send_keys("Is it red")
            find("#ask_why").click()
            _until(lambda: driver.find_element("css selector", "#regions img").get_attribute("src"))
            driver.save_screenshot(str(shots / "regions.png"))
    finally:
        driver.quit()


@pytest.mark.slow
def test_examples_and_what_visitors_leave(
    assistant: Assistant, picture: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A picture of the examples folder is taken by a click; uploaded files go after a while, the examples stay."""
    driver = browser()
    from mg_llava.serving.app import make_app
    from mg_llava.serving.page import layout as module

    monkeypatch.setattr(module, "CLEAN_SECONDS", 2)
    examples = tmp_path / "examples"
    examples.mkdir()
    noise().resize((50, 20)).save(examples / "a.png")
    (examples / "readme.txt").write_text("no picture")
    make_page = partial(module.add_page, examples=str(examples))
    try:
        with serve(make_app(assistant, LIMITS, "tiny", found_cup, make_page)) as url:
            uploads = Path(os.environ["GRADIO_TEMP_DIR"])
            driver.get(url)

            def note() -> str:
                return driver.find_element("css selector", "#note").text

            shown = _until(lambda: driver.find_elements("css selector", "#examples img"))
            assert len(shown) == 1
            shown[0].click()
            _until(lambda: note() == "50 x 20 px, 1 box")
            driver.get(url)
            _until(lambda: driver.find_element("css selector", "#picture input[type=file]")).send_keys(picture)
            _until(lambda: note() == "40 x 30 px, 1 box")
            assert any(file.name == "noise.png" for file in uploads.rglob("*"))
            _until(lambda: not any(file.name == "noise.png" for file in uploads.rglob("*")))
            assert {file.name for file in examples.iterdir()} == {"a.png", "readme.txt"}
    finally:
        driver.quit()


def _tab(driver: Any, name: str) -> None:
    tabs = driver.find_elements("css selector", "button[role=tab]")
    next(tab for tab in tabs if tab.text == name).click()


def _until(condition: Any, seconds: float = 60) -> Any:
    """Waits for something true; errors while the page is being built count as not yet."""
    from selenium.common.exceptions import WebDriverException

    deadline = time.monotonic() + seconds
    while True:
        try:
            if value := condition():
                return value
            error: Exception | None = None
        except WebDriverException as found:
            error = found
        if time.monotonic() > deadline:
            raise AssertionError("the page did not come to it in time") from error
        time.sleep(0.1)
