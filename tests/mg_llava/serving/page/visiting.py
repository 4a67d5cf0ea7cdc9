"""Somebody at the page in a real headless Chromium."""

from __future__ import annotations

import importlib.util
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from mg_llava.serving.requests.settings import Limits

LIMITS = Limits(max_new_tokens=6, max_pixels=1_000_000)


def browser(downloads: Path | None = None) -> Any:
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
    if downloads is not None:
        options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
    return webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))


class Visitor:
    """Somebody at the page: what is there, what is pressed."""

    def __init__(self, driver: Any, url: str) -> None:
        self.driver = driver
        driver.get(url)
        self.find("#question textarea")

    def find(self, css: str) -> Any:
        return until(lambda: self.driver.find_element("css selector", css))

    def text(self, css: str) -> str:
        return str(self.driver.find_element("css selector", css).text).strip()

    def value(self, css: str) -> str:
        return str(self.find(css).get_attribute("value"))

    def bots(self) -> list[str]:
        return [bot.text.strip() for bot in self.driver.find_elements("css selector", "#chat .bot")]

    def upload(self, picture: str) -> None:
        self.find("#picture input[type=file]").send_keys(picture)
        until(lambda: self.text("#note") == "40 x 30 px, 1 box")
        until(lambda: self.driver.find_element("css selector", "#drawn img").size["height"] > 100)

    def ask(self, question: str) -> None:
        count = len(self.bots())
        self.find("#question textarea").send_keys(question)
        self.find("#ask").click()
        until(lambda: len(self.bots()) == count + 1 and self.text("#cut"))

    def press(self, css: str, key: str) -> None:
        """By the keyboard alone: focus comes as from a Tab."""
        element = self.find(css)
        self.driver.execute_script("arguments[0].focus()", element)
        element.send_keys(key)

    def toast(self) -> str:
        return str(until(lambda: self.text(".toast-body")))


def until(condition: Any, seconds: float = 60) -> Any:
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
