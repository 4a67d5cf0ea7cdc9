"""Videos on the page in a real headless Chromium."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.mg_llava.serving.page.visiting import Visitor, until

NOTE = "8 frames of 40 x 30 px out of 2.0 s, 8 boxes"


def frames(visitor: Visitor) -> list[Any]:
    return visitor.driver.find_elements("css selector", "#strip figure img")


@pytest.mark.slow
def test_from_a_clip_to_an_answer(visitor: Visitor, picture: str, video: str, tmp_path: Path, shots: Path) -> None:
    """Its frames are shown and asked about; a picture takes its place, and it the picture's."""
    visitor.upload(picture)
    visitor.ask("Is it red")
    visitor.find("#video input[type=file]").send_keys(video)
    until(lambda: visitor.text("#note") == NOTE)
    until(lambda: len(frames(visitor)) == 8 and not visitor.driver.find_elements("css selector", "#drawn img"))
    assert frames(visitor)[7].get_attribute("alt") == "frame 15 of the video, at 1.88 s, with 1 box"
    assert visitor.text("#strip figcaption") == "0.00 s"
    # another video, another chat
    until(lambda: not visitor.bots())
    visitor.ask("Is it red")
    visitor.ask("what")
    visitor.driver.save_screenshot(str(shots / "video.png"))
    visitor.find("#save").click()
    assert "a chat about a video cannot be saved" in visitor.toast()
    (tmp_path / "no.mp4").write_bytes(b"no video")
    visitor.find("#video button[aria-label=Clear], #video button[title=Clear], #video .icon-button").click()
    until(lambda: visitor.text("#note") == "no picture" and not frames(visitor))
    visitor.find("#video input[type=file]").send_keys(str(tmp_path / "no.mp4"))
    until(lambda: "is no MP4" in visitor.driver.find_element("css selector", "body").text)
    visitor.driver.get(visitor.driver.current_url)
    visitor.find("#video input[type=file]").send_keys(video)
    until(lambda: visitor.text("#note") == NOTE)
    visitor.upload(picture)
    until(lambda: not frames(visitor))


@pytest.mark.slow
def test_a_clip_on_a_phone_and_by_the_keyboard(visitor: Visitor, video: str, shots: Path) -> None:
    from selenium.webdriver import Keys

    size = {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True}
    visitor.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    visitor.driver.get(visitor.driver.current_url)
    visitor.find("#video input[type=file]").send_keys(video)
    until(lambda: visitor.text("#note") == NOTE)
    until(lambda: len(frames(visitor)) == 8)
    assert visitor.driver.execute_script("return document.documentElement.scrollWidth") <= 390
    widths = [frame.rect["x"] + frame.rect["width"] for frame in frames(visitor)]
    assert max(widths) <= 390 and min(frame.rect["width"] for frame in frames(visitor)) >= 60
    visitor.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", frames(visitor)[0])
    visitor.driver.save_screenshot(str(shots / "phone_video.png"))
    visitor.find("#question textarea").send_keys("Is it red", Keys.ENTER)
    until(lambda: visitor.text("#cut").startswith("The answer was cut after 6 tokens"))
