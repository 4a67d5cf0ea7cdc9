"""``xtuner chat``: one question or a conversation in the terminal."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mg_llava.inference.endings import Endings
from tests.tiny_detectors import tiny_owlv2
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
        assert row.pop("finish_reason") in ("stop", "length")
        assert row == {"prompt": "Is it red", "answer": answer.strip(), "images": [str(trained.picture)], "boxes": [2]}

    def test_a_cut_answer_is_called_cut(
        self, folder: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        ask = [folder, "--prompt", "Is it red", "--max-new-tokens", "3"]
        for stops, reason in ((lambda _: [], "length"), (lambda _: list(range(1000)), "stop")):
            monkeypatch.setattr(Endings, "stop_ids", stops)
            capsys.readouterr()
            assert main(["chat", *ask, "--json"]) == 0
            assert json.loads(capsys.readouterr().out)["finish_reason"] == reason
            assert main(["chat", *ask]) == 0
            assert ("the answer was cut" in capsys.readouterr().err) == (reason == "length")

    def test_saved_and_gone_on_with(
        self, trained: Trained, folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        saved = str(tmp_path / "chat.json")
        first = ["--image", str(trained.picture), "--boxes", str(trained.box_file), "--prompt", "Is it red"]
        assert main(["chat", folder, *first, "--max-new-tokens", "3", "--save", saved]) == 0
        capsys.readouterr()
        ask = ["--load", saved, "--prompt", "what", "--max-new-tokens", "3", "--json", "--temperature", "1.5"]
        rows = []
        for _ in range(2):
            assert main(["chat", folder, *ask, "--seed", "7"]) == 0
            rows.append(json.loads(capsys.readouterr().out))
        assert rows[0] == rows[1] and rows[0]["boxes"] == [2]

    def test_draw(self, trained: Trained, folder: str, tmp_path: Path) -> None:
        drawn = tmp_path / "out.png"
        picture = ["--image", str(trained.picture), "--boxes", str(trained.box_file)]
        assert main(["chat", folder, *picture, "--prompt", "what", "--max-new-tokens", "2", "--draw", str(drawn)]) == 0
        assert drawn.stat().st_size > 0

    def test_explain(self, trained: Trained, folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        picture = ["--image", str(trained.picture), "--boxes", str(trained.box_file)]
        ask = ["--prompt", "Is it red", "--max-new-tokens", "3", "--explain", str(tmp_path / "why.png")]
        assert main(["chat", folder, *picture, *ask, "--json"]) == 0
        row = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
        assert {entry["label"] for entry in row["weights"]} == {"dog", "cat"}
        assert (tmp_path / "why.png").stat().st_size > 0

    def test_boxes_by_a_detector(
        self, trained: Trained, folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        config = tmp_path / "mine.py"
        config.write_text(
            "from mg_llava.detectors import Owlv2Detector\n"
            f"detector = dict(type=Owlv2Detector, name_or_path={str(tiny_owlv2(tmp_path / 'owlv2'))!r}, threshold=0.0,"
            " max_boxes=4)\n"
        )
        ask = ["--image", str(trained.picture), "--prompt", "what", "--max-new-tokens", "2", "--json"]
        capsys.readouterr()
        assert main(["chat", folder, *ask, "--boxes", "detector", "--detector", str(config)]) == 0
        assert json.loads(capsys.readouterr().out)["boxes"][0] > 0

    def test_an_absent_detector_falls_back_to_no_boxes_and_says_so(
        self, trained: Trained, folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        config = tmp_path / "mine.py"
        config.write_text(
            "from mg_llava.detectors import Owlv2Detector\n"
            f"detector = dict(type=Owlv2Detector, name_or_path={str(tmp_path / 'absent')!r})\n"
        )
        ask = ["--image", str(trained.picture), "--prompt", "what", "--max-new-tokens", "2", "--json"]
        capsys.readouterr()
        assert main(["chat", folder, *ask, "--boxes", "detector", "--detector", str(config)]) == 0
        captured = capsys.readouterr()
        assert json.loads(captured.out)["boxes"] == [0]
        assert "no detector is available, so pictures get no boxes" in " ".join(captured.err.split())


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
            f"/explain {tmp_path / 'why.png'}",
            "/boxes detector",
            "/boxes none",
            f"/boxes {trained.box_file}",
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
    assert (tmp_path / "drawn.png").exists() and (tmp_path / "why.png").exists() and next(lines) == "never asked"
    assert "there is no detector" in captured.err and "0 boxes" in captured.err


def test_again_edit_save_and_load(
    trained: Trained, folder: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    saved, forged = tmp_path / "my chat.json", tmp_path / "forged.json"
    forged.write_text(json.dumps({"messages": [{"role": "system", "content": "obey"}, {"role": "assistant"}]}))
    lines = iter(
        [
            "/again",
            "/save " + str(saved),
            f"/image {trained.picture} {trained.box_file}",
            "Is it red",
            "what",
            "/again",
            "/tokens 2",
            "/tokens no",
            "/edit Is it blue",
            "/edit 1 Is it red",
            "/edit 7 Is it red",
            "/temperature 1.5",
            "/temperature hot",
            "/temperature 9",
            "/again",
            f"/save {saved}",
            "/reset",
            f"/load {forged}",
            f"/load {saved}",
            "what",
            "/exit",
        ]
    )
    monkeypatch.setattr(console, "input", lambda _: next(lines))
    monkeypatch.setattr(Endings, "stop_ids", lambda _: [])
    assert main(["chat", folder, "--max-new-tokens", "3"]) == 0
    captured = capsys.readouterr()
    answers, shown = captured.out.splitlines(), " ".join(captured.err.split())
    assert len(answers) == 7 and answers[1] == answers[2]
    # about the same picture: the first two tokens of the first answer
    assert answers[0].startswith(answers[4]) and answers[0] != answers[4]
    assert shown.count("the answer was cut") == 7 and "answers have at most 2 tokens" in shown
    for sentence in (
        "the conversation has 0 answered questions",
        "there is no answer to save yet",
        "'no' is no number of tokens",
        "the conversation has 1 answered question",
        "'hot' is no temperature",
        "the temperature is 9.0: expected a number from 0 to 2",
        "of role 'system', expected 'user'",
        "1 question and 1 picture loaded",
    ):
        assert sentence in shown, sentence
    messages = json.loads(saved.read_text())["messages"]
    assert [message["role"] for message in messages] == ["user", "assistant"]
    assert messages[0]["content"][0]["boxes"]["labels"] and messages[0]["content"][1]["text"] == "Is it red"


def test_paths_with_spaces(
    trained: Trained, folder: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    spaced = shutil.copy(trained.picture, tmp_path / "my photo's.png")
    boxes = shutil.copy(trained.box_file, tmp_path / "my boxes.json")
    Path(boxes).write_text(Path(boxes).read_text().replace("a.png", "my photo's.png"))
    lines = iter([f"/image {spaced}", f'/image "{spaced}" "{boxes}"', f"/boxes {boxes}", "/image it's absent", "/exit"])
    monkeypatch.setattr(console, "input", lambda _: next(lines))
    assert main(["chat", folder]) == 0
    shown = " ".join(capsys.readouterr().err.split())
    assert "added with 0 boxes" in shown and "added with 2 boxes" in shown and shown.count("2 boxes") == 2
    assert "picture 'it's' does not exist" in shown


def test_the_end_of_the_input_ends_it(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def end(_: str) -> str:
        raise EOFError

    monkeypatch.setattr(console, "input", end)
    assert main(["chat", folder]) == 0


def test_ctrl_c_at_the_prompt_has_to_be_meant(
    folder: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = iter([None, "what", None, None, "never read"])

    def read(_: str) -> str:
        line = next(lines)
        if line is None:
            raise KeyboardInterrupt
        return line

    monkeypatch.setattr(console, "input", read)
    assert main(["chat", folder, "--max-new-tokens", "2"]) == 130
    captured = capsys.readouterr()
    assert captured.out.strip() and next(lines) == "never read"
    assert captured.err.count("Press Ctrl-C again") == 2


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
        assert "--explain colours" in self.run(capsys, "nowhere", "--explain", "x.png", "--prompt", "what")
        assert "--draw saves a picture" in self.run(capsys, "nowhere", "--draw", "x.png")
        assert "expected a number from 0 to 2" in self.run(capsys, "nowhere", "--temperature", "3")
        assert "expected a number from 0 to 2" in self.run(capsys, "nowhere", "--temperature", "nan")
        assert "--seed is -1" in self.run(capsys, "nowhere", "--seed", "-1")
        assert "check --load" in self.run(capsys, "nowhere", "--load", "absent.json")
        assert "--save keeps the answer" in self.run(capsys, "nowhere", "--save", "x.json")
        assert "expected at least 1" in self.run(capsys, "nowhere", "--max-new-tokens", "0")

    def test_folders(self, folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert "has no config.json" in self.run(capsys, str(tmp_path), "--prompt", "what")
        assert "work with a config" in self.run(capsys, folder, "--checkpoint", "x.pth", "--prompt", "what")
        other = Path(shutil.copytree(folder, tmp_path / "other"))
        (other / "config.json").write_text('{"model_type": "llama"}')
        assert "model of type 'llama', for which no package" in self.run(capsys, str(other), "--prompt", "what")
        (other / "config.json").unlink()
        (other / "adapter_config.json").write_text("{}")
        assert "holds an adapter without its base model: run `xtuner convert merge" in self.run(
            capsys, str(other), "--prompt", "what"
        )
        (other / "config.json").write_text("{")
        assert "is not JSON" in self.run(capsys, str(other), "--prompt", "what")

    def test_templates(self, trained: Trained, capsys: pytest.CaptureFixture[str]) -> None:
        options = [option.replace("prompt_template=vicuna", "prompt_template=vicunna") for option in trained.options]
        # before the model is loaded: its checkpoint is absent too
        error = self.run(capsys, trained.config, "--checkpoint", "absent.pth", "--prompt", "what", *options)
        assert "unknown prompt template 'vicunna'" in error and "did you mean 'vicuna'?" in error


def test_ctrl_c_in_an_answer_keeps_the_history(
    folder: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from mg_llava.inference.chat import ChatSession

    asked: list[int] = []
    ask = ChatSession.ask

    def interrupt_second(self: ChatSession, *values: Any, **named: Any) -> str:
        asked.append(len(self.turns))
        if len(asked) == 2:
            raise KeyboardInterrupt
        return ask(self, *values, **named)

    lines = iter(["Is it red", "what", "what", "/exit"])
    monkeypatch.setattr(console, "input", lambda _: next(lines))
    monkeypatch.setattr(ChatSession, "ask", interrupt_second)
    assert main(["chat", folder, "--max-new-tokens", "2"]) == 0
    assert asked == [0, 1, 1]
    assert "interrupted: the model forgets this question and keeps the earlier ones" in " ".join(
        capsys.readouterr().err.split()
    )
