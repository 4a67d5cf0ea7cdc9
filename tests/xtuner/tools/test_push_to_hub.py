"""``xtuner convert pth_to_hf --push-to-hub``: what arrives at a Hub, and what is refused before the export."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from tests.stub_hub import StubHub, stub_hub
from tests.xtuner.tools.conftest import Trained
from xtuner.cli import main


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[StubHub]:
    with stub_hub() as served:
        monkeypatch.setattr(constants, "ENDPOINT", served.url)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_TOKEN", "hf_write")
        yield served


def push(trained: Trained, target: Path, *words: str) -> int:
    return main(
        ["convert", "pth_to_hf", trained.config, str(trained.checkpoint), str(target), *words, *trained.options]
    )


def test_the_whole_folder_arrives(trained: Trained, hub: StubHub, tmp_path: Path) -> None:
    assert push(trained, tmp_path / "hf", "--push-to-hub", "mg-llava-tiny", "--private") == 0
    asked = hub.repositories["me/mg-llava-tiny"]
    assert asked.get("visibility") == "private" or asked.get("private") is True  # by version of the client
    files = {path.relative_to(tmp_path / "hf").as_posix(): path.read_bytes() for path in (tmp_path / "hf").rglob("*")}
    assert hub.files == files
    assert {"config.json", "model.safetensors", "README.md"} <= set(files)
    # a shard of an earlier, larger export
    assert hub.deleted == ["model-00001-of-00002.safetensors"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("a b", "not a name of a repository; expected NAME or OWNER/NAME"),
        ("a/b/c", "not a name of a repository"),
        ("-x", "not a name of a repository"),
    ],
)
def test_a_name_of_wrong_form(
    trained: Trained, hub: StubHub, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, message: str
) -> None:
    assert push(trained, tmp_path / "hf", f"--push-to-hub={name}") == 1
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "hf").exists() and not hub.repositories


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("offline", "HF_HUB_OFFLINE is set"),
        ("no token", "there is no token. Run `hf auth login`"),
        ("no server", "the Hub cannot be reached"),
        ("reads", "the token of 'me' may only read"),
        ("whoami", "the Hub refuses with 401"),
        ("owner", "may not write there. Give a name of one of you, team"),
        ("create", "the Hub refuses with 403 (you may not)"),
    ],
)
def test_refused_before_the_export(
    trained: Trained,
    hub: StubHub,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    fault: str,
    message: str,
) -> None:
    if fault == "offline":
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    elif fault == "no token":
        monkeypatch.delenv("HF_TOKEN")
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    elif fault == "no server":
        monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    elif fault == "reads":
        hub.user["auth"]["accessToken"]["role"] = "read"
    elif fault == "owner":
        hub.user.update(name="you", orgs=[{"name": "team"}])
    else:
        hub.refuse |= {"whoami": 401} if fault == "whoami" else {"create": 403, "/api/models/": 404}
    assert push(trained, tmp_path / "hf", "--push-to-hub", "me/tiny") == 1
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "hf").exists()


def test_a_push_that_fails_keeps_the_folder(
    trained: Trained, hub: StubHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.refuse["/commit/"] = 403
    assert push(trained, tmp_path / "hf", "--push-to-hub", "me/tiny") == 1
    assert "hf upload me/tiny" in " ".join(capsys.readouterr().err.split())
    assert (tmp_path / "hf" / "config.json").is_file()


@pytest.mark.parametrize(
    ("words", "message"),
    [(("--private",), "give --push-to-hub NAME"), (("--push-to-hub", "x", "--layout", "original"), "leave --layout")],
)
def test_options_that_do_not_go_together(
    trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], message: str
) -> None:
    assert push(trained, tmp_path / "hf", *words) == 1
    assert message in " ".join(capsys.readouterr().err.split())
