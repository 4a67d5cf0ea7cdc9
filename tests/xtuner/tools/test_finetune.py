"""``xtuner finetune``: configs with settings for few records, one sentence for what cannot be, and the whole way."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.tiny_assistant import box_record, save_picture, tiny_model_node
from xtuner.cli import main
from xtuner.config import load_config

ANSWERS = ("red", "blue", "dog", "cat")


def rows(count: int, image: str = "p/{}.png") -> list[dict[str, Any]]:
    """Records of one question each, two to a picture."""
    return [
        {
            "id": number,
            "image": image.format(number // 2),
            "conversations": [
                {"from": "human", "value": f"<image>\nwhat w{number}"},
                {"from": "gpt", "value": ANSWERS[number % 4]},
            ],
        }
        for number in range(count)
    ]


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's folder: 12 records, 6 pictures with boxes, tiny parts."""
    tiny_model_node(tmp_path / "parts")
    for number in range(6):
        save_picture(tmp_path / "images" / "p" / f"{number}.png", number)
    (tmp_path / "mine.json").write_text(json.dumps(rows(12)))
    (tmp_path / "boxes.json").write_text(json.dumps([box_record(f"p/{number}.png") for number in range(6)]))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def finetune(*words: str, options: tuple[str, ...] = ("image_size_aux=64",)) -> int:
    """The command with the tiny parts."""
    parts = ["--llm", "parts/llm", "--low-res", "parts/clip", "--high-res", "parts/convnext", "--template", "vicuna"]
    data = ["--data", "mine.json", "--images", "images", "--boxes", "boxes.json"]
    return main(["finetune", *parts, *data, *words, "--cfg-options", *options])


class TestConfigs:
    def test_both_stages_with_settings_and_reasons(self, own: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert finetune("--dry-run") == 0
        first, second = (load_config(own / "work_dirs/mine" / f"mine_{stage}.py") for stage in ("pretrain", "sft"))
        said = capsys.readouterr().out
        for name in ("batch_size", "max_epochs", "lr", "llm_lora"):
            assert f"  {name} = " in said
        assert (first.max_epochs, second.max_epochs, second.image_size_aux) == (20, 30, 64)
        assert len((own / "work_dirs/mine/data/training.jsonl").read_text().splitlines()) == 10
        assert second.pretrained_pth == str(own / "work_dirs/mine/stage_1/last_checkpoint")
        (questions,) = second.benchmarks
        assert questions["parts"] == ("training", "held-out")
        assert questions["image_folder"] == str(own / "images")

    def test_changes_in_the_configs_stay_and_other_arguments_write_them_anew(self, own: Path) -> None:
        config = own / "work_dirs/mine/mine_sft.py"
        assert finetune("--dry-run") == 0
        config.write_text(config.read_text() + "lr = 5e-5\n")
        assert finetune("--dry-run") == 0
        assert load_config(config).lr == 5e-5
        assert finetune("--dry-run", "--seed", "7") == 0
        assert load_config(config).lr == 3e-4
        (own / "work_dirs/mine/stage_1").mkdir()
        assert finetune("--dry-run", "--seed", "8") == 1

    def test_own_settings_win(self, own: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert finetune("--dry-run", "--lora", options=("image_size_aux=64", "lr=1e-5")) == 0
        cfg = load_config(own / "work_dirs/mine/mine_sft.py")
        assert (cfg.lr, cfg.model.llm_lora.r) == (1e-5, 64)
        assert "  lr = " not in capsys.readouterr().out

    def test_two_configs(self, own: Path) -> None:
        assert finetune("--dry-run", "--out", "first") == 0
        given = ["first/first_pretrain.py", "first/first_sft.py"]
        assert main(["finetune", *given, "--data", "mine.json", "--out", "second", "--dry-run"]) == 0
        cfg = load_config("second/second_sft.py")
        assert cfg.train_dataset.data_path == str(own / "second/data/training.jsonl")
        assert cfg.model.pretrained_pth == str(own / "second/stage_1/last_checkpoint")
        assert cfg.max_epochs == 30


class TestOneSentence:
    @pytest.mark.parametrize(
        ("count", "image", "words", "said"),
        [
            (3, "p/0.png", (), "3 records are too few"),
            (12, "p/{}.png", ("--held-out", "1"), "would hold out all records"),
            (12, "q/{}.png", (), "none of the 6 pictures"),
            (12, "p\\{}.png", (), "paths of Windows, the first is 'p\\0.png'"),
            (12, "p/{}.png", ("--ask", "0"), "--ask is 0"),
        ],
    )
    def test_of_the_data(self, own, capsys, count, image, words, said) -> None:
        (own / "mine.json").write_text(json.dumps(rows(count, image)))
        assert finetune(*words, "--dry-run") == 1
        assert said in capsys.readouterr().err
        assert not (own / "work_dirs/mine/mine_sft.py").exists()

    def test_of_a_full_disk(self, own, capsys, monkeypatch) -> None:
        usage = shutil.disk_usage(own)
        monkeypatch.setattr("shutil.disk_usage", lambda path: usage._replace(free=1000))
        assert finetune("--dry-run") == 1
        assert "left, and this fine-tune writes about" in capsys.readouterr().err

    def test_of_a_hub_name_offline(self, own, capsys, monkeypatch) -> None:
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        words = ["--llm", "nobody/nothing-135M", "--data", "mine.json", "--images", "images"]
        assert main(["finetune", *words, "--dry-run"]) == 1
        said = capsys.readouterr().err
        assert "nobody/nothing-135M" in said and "Traceback" not in said

    @pytest.mark.parametrize("option", ["--low-res", "--high-res"])
    def test_of_an_encoder_of_the_hub_offline(self, own, capsys, monkeypatch, option) -> None:
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        assert finetune("--dry-run", option, "nobody/nothing") == 1
        said = capsys.readouterr().err.splitlines()[-1]
        assert said.startswith("xtuner finetune: the ") and "'nobody/nothing' cannot be read: " in said
        assert not (own / "work_dirs/mine/mine_sft.py").exists()

    def test_of_arguments(self, own, capsys) -> None:
        assert main(["finetune"]) == 1
        said = capsys.readouterr().err
        assert "--data and --images missing" in said and "no language model" in said
        assert main(["finetune", "one.py"]) == 1
        assert "1 config given" in capsys.readouterr().err


@pytest.mark.slow
def test_from_records_to_an_exported_model_and_again(own, capfd) -> None:
    options = ("image_size_aux=64", "max_iters=2", "dataloader_num_workers=0")
    assert finetune(options=options) == 0
    out = own / "work_dirs/mine"
    with (out / "answers/own_records/answers.csv").open(newline="") as file:
        answers = list(csv.DictReader(file))
    assert [row["part"] for row in answers] == ["training"] * 10 + ["held-out"] * 2
    assert (out / "answers/own_records/report.html").exists()
    assert (out / "model/config.json").exists()
    assert "Does it answer its own records?" in capfd.readouterr().out
    assert finetune(options=options) == 0
    assert capfd.readouterr().err.count("finished by an earlier run") == 6
