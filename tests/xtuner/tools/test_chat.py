"""``xtuner chat``: one question or a conversation in the terminal."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.xtuner.tools.conftest import Trained
from xtuner.cli import main
from xtuner.log import console


@pytest.fixture(scope="module")
def folder(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> str:
    target = tmp_path_factory.mktemp("chat") / "hf"
    assert main(["convert", "pth_to_hf", trained.config, str(trained.checkpoint), str(target), *trained.options]) == 0
    return str(target)


class TestOnce:
    def test_folder_and_config_give_the_same_answer(
        self, trained: Trained, folder: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        question = ["--image", str(trained.picture), "--boxes", str(trained.box_file), "--prompt", "Is it red"]
        question += ["--max-new-tokens", "5"]
        capsys.readouterr()
        assert main(["chat", folder, *question]) == 0
        answer = capsys.readouterr().out
        assert answer.strip()
        assert main(["chat", trained.config, "--checkpoint", str(trained.checkpoint), *question, *trained.options]) == 0
        assert capsys.readouterr().out == answer
        assert main(["chat", folder, *question, "--json"]) == 0
        row = json.loads(capsys.readouterr().out)
        assert row == {"prompt": "Is it red", "answer": answer.strip(), "images": [str(trained.picture)], "boxes": [2]}

    def test_draw(self, trained: Trained, folder: str, tmp_path: Path) -> None:
        drawn = tmp_path / "out.png"
        picture = ["--image", str(trained.picture), "--boxes", str(trained.box_file)]
        assert main(["chat", folder, *picture, "--prompt", "what", "--max-new-tokens", "2", "--draw", str(drawn)]) == 0
        assert drawn.stat().st_size > 0


def test_conversation(
    trained: Trained, folder: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    lines: Iterator[str] = iter(
        [
            "",
            "/imag x",
            "/image absent.png",
            f"/image {trained.picture} {trained.box_file}",
            "Is it red",
            "what",
            f"/draw {tmp_path / 'drawn.png'}",
            "/reset",
            "Is it blue",
            "/exit",
            "never asked",
        ]
    )
    monkeypatch.setattr(console, "input", lambda _: next(lines))
    assert main(["chat", folder, "--max-new-tokens", "3"]) == 0
    captured = capsys.readouterr()
    assert len(captured.out.splitlines()) == 3
    assert "Did you mean '/image'?" in captured.err.replace("\n", " ")
    assert "absent.png" in captured.err and "2 boxes" in captured.err
    assert (tmp_path / "drawn.png").exists() and next(lines) == "never asked"


def test_the_end_of_the_input_ends_it(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def end(_: str) -> str:
        raise EOFError

    monkeypatch.setattr(console, "input", end)
    assert main(["chat", folder]) == 0


class TestMistakes:
    def run(self, capsys: pytest.CaptureFixture[str], *words: str) -> str:
        assert main(["chat", *words]) == 1
        return capsys.readouterr().err

    def test_not_a_picture(self, folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (tmp_path / "a.png").write_text("text")
        assert "does not decode" in self.run(capsys, folder, "--image", str(tmp_path / "a.png"), "--prompt", "what")

    def test_before_the_model_is_loaded(self, trained: Trained, capsys: pytest.CaptureFixture[str]) -> None:
        assert "does not exist" in self.run(capsys, "nowhere", "--image", "absent.png")
        assert "--json prints the answer to --prompt" in self.run(capsys, "nowhere", "--json")
        assert "--draw saves a picture" in self.run(capsys, "nowhere", "--draw", "x.png")
        assert "expected at least 1" in self.run(capsys, "nowhere", "--max-new-tokens", "0")

    def test_folders(self, folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert "has no config.json" in self.run(capsys, str(tmp_path), "--prompt", "what")
        assert "go with a config" in self.run(capsys, folder, "--checkpoint", "x.pth", "--prompt", "what")
        other = Path(shutil.copytree(folder, tmp_path / "other"))
        (other / "config.json").write_text('{"model_type": "llama"}')
        assert "model of type 'llama', for which no package" in self.run(capsys, str(other), "--prompt", "what")
        (other / "config.json").write_text("{")
        assert "is no JSON object" in self.run(capsys, str(other), "--prompt", "what")
