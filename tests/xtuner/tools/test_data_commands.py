"""``preprocess``, ``check-dataset``, ``log-dataset`` reach the data only through the class in the config."""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from xtuner import cli
from xtuner.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from xtuner.data.records.findings import Findings
from xtuner.data.text.conversations import parse_record
from xtuner.data.text.templates import Turn
from xtuner.tools import check_dataset, log_dataset, preprocess, process_untokenized_llava_data

WORDS = ["<unk>", "a", "dog", "says", "yes"]


def build_words() -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", eos_token="<unk>")


class FakeDataset:
    """What the commands ask of a data set class."""

    problems: list[str] = []
    notes: list[str] = []
    statistics_rows: list[tuple[str, str]] = []
    prepared: list[tuple[Any, str, int | None]] = []
    turns: dict[int, tuple[Turn, ...]] = {}
    bad: list[Any] = []

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> dict[str, Any]:
        labels = [IGNORE_INDEX, IGNORE_INDEX, IGNORE_INDEX, 3, 4]
        ids = torch.tensor([IMAGE_TOKEN_INDEX, 1, 2, 3, 4])
        return {"sample_id": f"s{index}", "input_ids": ids, "labels": torch.tensor(labels), "bad_samples": self.bad}

    def find_turns(self, numbers: Any) -> dict[int, tuple[Turn, ...]]:
        return {number: turns for number, turns in self.turns.items() if number in numbers}

    def log_report(self) -> None:
        pass

    def describe(self, index: int) -> str:
        return f"{index + 7} boxes"

    def frames(self, index: int) -> list[tuple[int, str]]:
        return []

    @classmethod
    def check_records(cls, node: Any, fast: bool = False) -> Findings:
        return Findings(cls.problems, cls.notes, cls.statistics_rows)

    @classmethod
    def prepare(cls, node: Any, out_folder: str, num_proc: int | None) -> None:
        cls.prepared.append((node, out_folder, num_proc))


@pytest.fixture(autouse=True)
def config(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    cfg = SimpleNamespace(train_dataset={"type": FakeDataset}, tokenizer={"type": build_words})
    for module in (check_dataset, log_dataset, preprocess):
        monkeypatch.setattr(module, "load_config", lambda path, overrides: cfg)
    monkeypatch.setattr(FakeDataset, "problems", [])
    monkeypatch.setattr(FakeDataset, "notes", [])
    monkeypatch.setattr(FakeDataset, "statistics_rows", [])
    monkeypatch.setattr(FakeDataset, "prepared", [])
    monkeypatch.setattr(FakeDataset, "turns", {})
    monkeypatch.setattr(FakeDataset, "bad", [])
    return cfg


def run(module: ModuleType, *arguments: str) -> int:
    parser = argparse.ArgumentParser()
    module.add_arguments(parser)
    return module.run(parser.parse_args(arguments))


class TestCheckDataset:
    def test_no_problems(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert run(check_dataset, "c.py") == 0
        assert "no problems" in capsys.readouterr().out

    def test_problems_are_counted_by_kind(self, capsys: pytest.CaptureFixture[str]) -> None:
        FakeDataset.problems = [
            "odd",
            *(f"unknown role: record {n}: [bold] x" for n in range(12)),
            "no file: a",
        ]
        assert run(check_dataset, "c.py", "--show", "2") == 1
        out = capsys.readouterr().out
        assert out.startswith("unknown role: 12\n  - record 0: [bold] x\n  - record 1: [bold] x\n  ... and 10 more")
        assert out.endswith("14 problems: unknown role 12, other 1, no file 1.\n")

    def test_statistics_and_the_page_with_them(self, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        FakeDataset.problems = ["no file: <a>"]
        FakeDataset.statistics_rows = [("records", "7"), ("text tokens", "mean 3")]
        assert run(check_dataset, "c.py", "--html", str(tmp_path / "page")) == 1
        assert capsys.readouterr().out.startswith("records      7\ntext tokens  mean 3\n")
        page = (tmp_path / "page" / "index.html").read_text()
        assert "<th>text tokens<td>mean 3" in page and "<li>no file: &lt;a&gt;" in page

    def test_what_is_left_out_is_no_problem(self, capsys: pytest.CaptureFixture[str]) -> None:
        FakeDataset.notes = [f"cut at max_length: sample {number}" for number in range(12)]
        assert run(check_dataset, "c.py", "-n", "1") == 0
        out = capsys.readouterr().out
        assert (
            "Not a fault, but left out, cut or read as text:\ncut at max_length: 12\n  - sample 0\n  ... and 11 more"
            in out
        )
        assert out.endswith("The training data has no problems.\n")

    def test_by_the_name_that_xtuner_gave_it(self, capsys: pytest.CaptureFixture[str]) -> None:
        FakeDataset.problems = ["no file: a"]
        assert cli.main(["check-custom-dataset", "c.py"]) == 1
        assert "1 problem." in capsys.readouterr().out


class TestListDatasetFormat:
    def test_what_is_printed_can_be_trained_on(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert cli.main(["list-dataset-format"]) == 0
        out = capsys.readouterr().out
        shown = [json.loads(example) for example in re.findall(r"^\{$.*?^\}$", out, re.DOTALL | re.MULTILINE)]
        names = re.findall(r"^(\w+): ", out, re.MULTILINE)
        assert names == ["llava", "sharegpt", "openai"] and len(shown) == len(names)
        talks = [parse_record(record, 0) for record in shown]
        assert len({(talk.images, talk.turns) for talk in talks}) == 1
        assert talks[0].images == ("coco/1.jpg",)


class TestLogDataset:
    def test_samples_are_shown(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert run(log_dataset, "c.py", "-n", "5") == 0
        out = capsys.readouterr().out
        assert "2 samples." in out
        assert "sample 1, id s1" in out
        assert "5 ids, 2 with loss, 1 picture\n8 boxes" in out

    def test_spaces_between_pieces_stay(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert run(log_dataset, "c.py", "-n", "1") == 0
        assert "\n<image>a dog says yes\n" in capsys.readouterr().out

    def test_tokens(self, capsys: pytest.CaptureFixture[str], config: SimpleNamespace) -> None:
        def build_own() -> PreTrainedTokenizerFast:
            tokenizer = build_words()
            tokenizer.chat_template = "{% for message in messages %}{{ message.content + ' ' }}{% endfor %}"
            return tokenizer

        config.tokenizer = {"type": build_own}
        FakeDataset.turns = {0: (Turn("<image>a dog", "says yes"),), 1: (Turn("<image>a yes dog", "says yes"),)}
        assert run(log_dataset, "c.py", "--tokens", "-n", "1") == 0
        out = capsys.readouterr().out
        assert "<image>|a|␣dog|␣says|␣yes|\n       |1|2   |3    |4   |\n" in out
        assert "The LLM's own chat template gives the same ids.\n5 ids, 2 with loss" in out
        assert run(log_dataset, "c.py", "--tokens", "--start", "1") == 0
        out = capsys.readouterr().out
        assert "The LLM's own chat template:\n<image>|a|␣yes|␣dog|␣says|␣yes|\n       |1|≠4  |2   |3    |4   |\n" in out

    @pytest.mark.parametrize(
        ("turns", "bad", "told"),
        [
            ({}, [], "Not compared with the LLM's own chat template: its record is not in a data file."),
            ({0: (Turn("a", "yes"),)}, [], "own chat template: the tokenizer has no chat template."),
            ({0: (Turn("a", "yes"),)}, ["s7"], "It stands in for a sample that cannot be read."),
        ],
    )
    def test_what_cannot_be_compared(
        self, turns: Any, bad: list[str], told: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        FakeDataset.turns, FakeDataset.bad = turns, bad
        assert run(log_dataset, "c.py", "--tokens", "-n", "1") == 0
        out = capsys.readouterr().out
        assert told in out and "<image>|a|␣dog|␣says|␣yes|" in out


class TestPreprocess:
    def test_the_class_prepares_itself(self, config: SimpleNamespace) -> None:
        assert run(preprocess, "llava", "--config", "c.py", "--out", "folder", "--num-proc", "3") == 0
        assert FakeDataset.prepared == [(config.train_dataset, "folder", 3)]

    def test_the_old_name_passes_its_arguments_on(self, monkeypatch: pytest.MonkeyPatch) -> None:
        received: list[list[str]] = []
        monkeypatch.setattr("xtuner.cli.main", lambda argv: received.append(argv) or 5)
        assert process_untokenized_llava_data.main(["c.py", "--save-folder", "f", "--cfg-options", "a=1", "b=2"]) == 5
        assert received == [["preprocess", "llava", "--config", "c.py", "--out", "f", "--cfg-options", "a=1", "b=2"]]

    def test_the_old_script_runs_as_typed(self, tmp_path: Path) -> None:
        script = Path(process_untokenized_llava_data.__file__)
        done = subprocess.run(
            [sys.executable, str(script), "--help"], cwd=tmp_path, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0
        assert "--save-folder" in done.stdout
