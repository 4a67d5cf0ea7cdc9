"""What visitors may call of Gradio: the page works, files stay in its folders, and nothing is fetched for strangers."""

from __future__ import annotations

import os
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="fastapi is not installed: pip install '.[serve]'")
pytest.importorskip("gradio", reason="gradio is not installed: pip install '.[serve]'")

from mg_llava.inference.assistant import Assistant  # noqa: E402
from mg_llava.serving.app import make_app  # noqa: E402
from mg_llava.serving.page import add_page  # noqa: E402
from mg_llava.serving.requests.settings import Limits  # noqa: E402
from tests.mg_llava.serving.conftest import found_cup, noise, serve  # noqa: E402


@pytest.fixture(scope="module")
def page(assistant: Assistant, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(tmp_path_factory.mktemp("visitors")))
        app = make_app(assistant, Limits(), "tiny", found_cup, add_page)
        with serve(app) as url:
            yield url, Path(os.environ["GRADIO_TEMP_DIR"])


def status(url: str, path: str, **headers: str) -> int:
    try:
        with urllib.request.urlopen(urllib.request.Request(url + path, headers=headers), timeout=30) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def test_the_page_and_what_it_calls(page: tuple[str, Path]) -> None:
    url, uploads = page
    for path in ("/", "/config", "/gradio_api/info", "/gradio_api/startup-events", "/v1/models", "/health"):
        assert status(url, path) == 200
    noise().save(uploads / "a b.png")
    assert status(url, f"/gradio_api/file={uploads}/a%20b.png") == 200


@pytest.mark.parametrize(
    "path",
    [
        "/gradio_api/file=/etc/passwd",
        "/gradio_api/file=%2Fetc%2Fpasswd",
        "/gradio_api/file={uploads}/../../../../../../etc/passwd",
        "/gradio_api/file={uploads}/%2e%2e/%2e%2e/%2e%2e/%2e%2e/%2e%2e/%2e%2e/etc/passwd",
        "/gradio_api/file={uploads}/link",
        "/gradio_api/file=a%00b",
        "/gradio_api/file=http://127.0.0.1/",
        "/gradio_api/file/etc/passwd",
        "/gradio_api//file=/etc/passwd",
        "/gradio_api/proxy=https://x.hf.space/",
        "/gradio_api/vibe-code",
        "/gradio_api/runs",
        "/gradio_api/run-history/records",
        "/gradio_api/dev/reload",
        "/gradio_api/process_recording",
        "/gradio_api/x/../runs",
    ],
)
def test_nothing_else(page: tuple[str, Path], path: str) -> None:
    url, uploads = page
    link = uploads / "link"
    if not link.is_symlink():
        link.symlink_to("/etc/passwd")
    assert status(url, path.replace("{uploads}", str(uploads))) == 404


def test_other_sites_cannot_call_it(page: tuple[str, Path]) -> None:
    url, _ = page
    assert status(url, "/config", Origin="https://evil.example") == 403
    assert status(url, "/", Host="evil.example") == 403


def test_pictures_of_this_machine_are_not_fetched(page: tuple[str, Path]) -> None:
    """A visitor may hand over an address instead of a file; Gradio fetches public ones only."""
    client = pytest.importorskip("gradio_client").Client(page[0], verbose=False)
    file = {"path": "http://127.0.0.1:9/x.png", "meta": {"_type": "gradio.FileData"}}
    with pytest.raises(Exception, match="failed validation"):
        client.predict(file, "", True, 0.0, 10, api_name="/show")
