"""``xtuner new``: configs that load from anywhere and train on one's own data."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.tiny_assistant import box_record
from tests.tiny_parts import tiny_llm_folder
from xtuner.cli import main
from xtuner.config import load_config

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with one's own data, far from the clone."""
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "1.png").touch()
    turns = [{"from": "human", "value": "<image>\nwhat"}, {"from": "gpt", "value": "red"}]
    (tmp_path / "data.json").write_text(json.dumps([{"id": 1, "image": "1.png", "conversations": turns}]))
    (tmp_path / "boxes.json").write_text(json.dumps([box_record("1.png")]))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def new(*words: str) -> int:
    return main(["new", "mine", "--data", "data.json", "--images", "pictures", *words])


class TestFiles:
    def test_both_stages_load_from_another_folder(self, own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        assert new("--llm", "someone/llm", "--boxes", "boxes.json") == 0
        monkeypatch.chdir("/")
        first, second = (load_config(own / f"mine_{stage}.py") for stage in ("pretrain", "sft"))
        assert first.train_dataset.data_path == str(own / "data.json")
        assert first.train_dataset.box_json_path == str(own / "boxes.json")
        assert first.model.llm.name_or_path == "someone/llm" and first.prompt_template == "auto"
        assert "llm" not in first.model.trainable and "llm" in second.model.trainable
        assert second.model.pretrained_pth == "work_dirs/mine_pretrain/last_checkpoint"

    def test_a_file_in_place_of_the_folder(self, own: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert new("--llm", "someone/llm", "--dir", "data.json") == 1
        assert "--dir data.json is a file; name a folder" in capsys.readouterr().err

    def test_without_boxes(self, own: Path) -> None:
        assert new("--llm", "someone/llm") == 0
        assert load_config(own / "mine_sft.py").train_dataset.box_json_path is None

    def test_settings_of_a_shipped_model(self, own: Path) -> None:
        assert new("--from", "vicuna7b") == 0
        cfg = load_config(own / "mine_sft.py")
        assert (cfg.prompt_template, cfg.llm_name_or_path) == ("vicuna", "lmsys/vicuna-7b-v1.5")
        assert "xtuner.configs.vicuna.fuse_vicuna7b_clip_L_14_336_sft_padding" in (own / "mine_sft.py").read_text()

    def test_adapters_in_stage_2_only(self, own: Path) -> None:
        assert new("--llm", "someone/llm", "--lora") == 0
        assert load_config(own / "mine_pretrain.py").model.llm_lora is None
        assert load_config(own / "mine_sft.py").model.llm_lora.r == 64

    def test_few_commented_lines(self, own: Path) -> None:
        assert new("--llm", "someone/llm") == 0
        lines = (own / "mine_sft.py").read_text().splitlines()
        assert len(lines) <= 30 and sum(line.startswith("#") for line in lines) >= 3


class TestRefused:
    def test_everything_at_once(self, own: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["new", "a/b", "--data", "absent.json", "--images", "nowhere"]) == 1
        said = capsys.readouterr().err
        assert "4 problems" in said
        for part in ("'a/b' cannot be a file's", "--data 'absent.json'", "--images 'nowhere'", "no language model"):
            assert part in said

    def test_files_that_exist(self, own: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (own / "mine_sft.py").write_text("mine = 1")
        assert new("--llm", "someone/llm") == 1
        assert "mine_sft.py exists and may hold your changes" in capsys.readouterr().err
        assert (own / "mine_sft.py").read_text() == "mine = 1" and not (own / "mine_pretrain.py").exists()
        (own / "mine_pretrain.py").write_text("")
        assert new("--llm", "someone/llm") == 1
        assert "mine_pretrain.py and mine_sft.py exist and may hold your changes" in capsys.readouterr().err

    def test_unknown_model(self, own: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert new("--from", "vicuna") == 1
        assert "did you mean 'vicuna7b'?" in capsys.readouterr().err

    def test_a_language_model_without_a_chat_template(self, own: Path, capsys: pytest.CaptureFixture[str]) -> None:
        llm = tiny_llm_folder(own)
        _tokenizer(llm, None)
        assert new("--llm", str(llm)) == 1
        said = capsys.readouterr().err
        assert "the tokenizer has no chat template, so no prompt template can be made from it: name one with" in said
        assert new("--llm", str(llm), "--template", "vicuna") == 0

    @pytest.mark.parametrize(
        ("words", "said"),
        [
            (("--template", "vicunna"), "--template: unknown prompt template 'vicunna' (did you mean 'vicuna'?)"),
            (("--boxes", "data.json"), "--boxes: 'data.json' is no box file: "),
            (("--boxes", "pictures"), "--boxes: box file 'pictures' cannot be read (Is a directory)"),
            (("--boxes", "words.txt"), "--boxes: box file 'words.txt' is not valid JSON: "),
            (("--data", "words.txt"), "--data: malformed JSON: 'words.txt' line 1"),
            (("--data", "none.json"), "--data: 'none.json' holds no record"),
            (("--data", "windows.json"), "a backslash is written twice in JSON, and paths are written with '/'."),
            (
                ("--images", "empty"),
                "the only file that the records name is not in 'empty': '1.png': --images must",
            ),
            (("--images", "data.json"), "--images: image_folder 'data.json' is neither a folder nor one of"),
            (("--low-res", "./nowhere"), "--low-res './nowhere' does not exist"),
            (("--low-res", "data.json"), "--low-res 'data.json' is a file: name the model's folder."),
            (("--llm", "/no/such/folder"), "--llm '/no/such/folder' does not exist"),
        ],
    )
    def test_what_is_not_what_its_option_says_is_one_sentence(self, own, capsys, words, said) -> None:
        (own / "words.txt").write_text("some words")
        (own / "empty").mkdir()
        (own / "none.json").write_text("[]")
        (own / "windows.json").write_text(r'[{"image": "C:\images\1.png"}]')
        assert new("--llm", "someone/llm", *words) == 1
        err = capsys.readouterr().err
        assert err.startswith("xtuner new: ") and err.count("\n") == 1 and said in err
        assert not list(own.glob("*.py"))

    def test_one_with_a_chat_template(self, own: Path) -> None:
        llm = tiny_llm_folder(own)
        _tokenizer(llm, CHATML)
        assert new("--llm", str(llm)) == 0


def _tokenizer(folder: Path, chat_template: str | None) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<unk>", "</s>", "<|im_start|>", "<|im_end|>"]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="</s>")
    fast.chat_template = chat_template
    fast.save_pretrained(folder)


@pytest.mark.parametrize(
    "name",
    ["fuse_vicuna7b_clip_L_14_336_sft_padding", "llava_phi3_clip_L_14_336_pretrain_padding", "tiny_sft", "owlv2"],
)
class TestCopy:
    def test_says_the_same_with_order_and_comments(self, tmp_path: Path, name: str) -> None:
        assert main(["copy-cfg", name, str(tmp_path)]) == 0
        (copy,) = tmp_path.glob("*_copy.py")
        told = {"resolved_from", "unused_settings"}
        before, after = (
            {key: value for key, value in load_config(path).items() if key not in told} for path in (name, copy)
        )
        assert before == after
        text = copy.read_text()
        assert "# from " in text
        if name != "owlv2":
            assert "# model: the class of an encoder follows from its folder" in text
            assert text.index("# from _base_/settings.py") < text.index("# from _base_/training.py")


def test_a_copy_with_changes(tmp_path: Path) -> None:
    options = ["--cfg-options", "seed=7", "train_dataloader.num_workers=3"]
    assert main(["copy-cfg", "tiny_sft", str(tmp_path), *options]) == 0
    cfg = load_config(tmp_path / "tiny_sft_copy.py")
    assert (cfg.runtime.seed, cfg.train_dataloader.num_workers) == (7, 3)


def test_a_base_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "mine.py"
    config.write_text("with read_base():\n    from .._base_.sftt import *\n")
    assert main(["check-cfg", str(config)]) == 1
    said = capsys.readouterr().err
    assert "line 2: the base '.._base_.sftt' does not exist" in said and "'xtuner.configs._base_.sft'" in said
