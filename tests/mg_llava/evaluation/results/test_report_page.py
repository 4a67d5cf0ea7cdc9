"""The page of 20,000 questions in a browser: opens, filters, searches, turns its pages, and runs nothing it shows."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mg_llava.evaluation import Prediction, ShortAnswer
from mg_llava.evaluation.results.predictions import PredictionFiles
from mg_llava.evaluation.results.report import write_report
from mg_llava.pictures.preprocess import ImageProcessor
from tests.tiny_assistant import save_picture
from tests.tiny_parts import tiny_clip_folder

webdriver = pytest.importorskip("selenium.webdriver")
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
if CHROMIUM is None or DRIVER is None:
    pytest.skip("needs chromium and chromedriver (Debian: chromium, chromium-driver)", allow_module_level=True)

QUESTIONS = 20_000
ATTACK = "</script><img src=x onerror=document.title='run'>"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    world = tmp_path_factory.mktemp("report")
    rows = [
        {"id": f"q{number}", "question": f"Which animal is number {number}?", "answer": "dog", "image": "p.png"}
        for number in range(QUESTIONS)
    ]
    rows[7]["question"] = ATTACK
    save_picture(world / "p.png", 0, (60, 40))
    (world / "t.json").write_text(json.dumps(rows))
    bench = ShortAnswer(name="many", data_root=str(world), data_file="t.json", image_folder="")
    files = PredictionFiles(world / "out", {})
    files.prepare()
    hits = [1.0 if number % 4 else 0.0 for number in range(QUESTIONS)]
    said = [Prediction(f"q{n}", rows[n]["question"], "dog" if hit else "cat", "x", hit) for n, hit in enumerate(hits)]
    files.add(said)
    (world / "out" / "metrics.json").write_text(json.dumps({"overall": 0.75}))
    return write_report(bench, world / "out", ImageProcessor(str(tiny_clip_folder(world)), 32))


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"):
        options.add_argument(argument)
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(executable_path=DRIVER))
    yield driver
    driver.quit()


def count(browser: Any) -> str:
    return str(browser.find_element("id", "count").text)


def wait_for(browser: Any, text: str) -> None:
    end = time.monotonic() + 20
    while count(browser) != text:
        assert time.monotonic() < end, f"the page shows {count(browser)}, not {text}"
        time.sleep(0.05)


def open_page(browser: Any, page: Path, state: str = "") -> None:
    # another page first: only the part behind # would change
    browser.get("about:blank")
    browser.get(f"{page.as_uri()}{state}")


def test_opens_with_one_page_of_them(browser: Any, page: Path) -> None:
    open_page(browser, page)
    assert count(browser) == "20000 of 20000"
    assert len(browser.find_elements("css selector", "article")) == 50
    assert browser.execute_script("return document.querySelector('img').naturalWidth") > 0
    assert browser.find_element("id", "place").text == "page 1 of 400"
    browser.find_element("id", "next").click()
    assert "q50" in browser.find_element("css selector", "article dd").text


def test_filters_and_searches(browser: Any, page: Path) -> None:
    open_page(browser, page)
    browser.find_element("css selector", "#show option:nth-child(2)").click()
    wait_for(browser, "5000 of 20000")
    browser.find_element("id", "search").send_keys("NUMBER 1999")
    # 19992, 19996 are wrong; 1999 is not
    wait_for(browser, "2 of 20000")
    assert {one.get_attribute("class") for one in browser.find_elements("css selector", "article")} == {"wrong"}
    assert browser.current_url.endswith("#show=wrong&q=NUMBER+1999")
    browser.find_element("id", "search").send_keys(" elephant")
    wait_for(browser, "0 of 20000")


@pytest.mark.parametrize(
    ("state", "shown"),
    [("#wrong", "5000"), ("#show=right", "15000"), ("#show=wrong&q=19996", "1"), ("#nonsense", "20000")],
)
def test_opens_as_its_address_says(browser: Any, page: Path, state: str, shown: str) -> None:
    open_page(browser, page, state)
    assert count(browser) == f"{shown} of 20000"


def test_what_it_shows_does_not_run(browser: Any, page: Path) -> None:
    open_page(browser, page, "#q=onerror")
    assert count(browser) == "1 of 20000" and browser.title == "many"
    assert ATTACK in browser.find_element("css selector", "article").text
