"""``list-cfg``, ``copy-cfg`` and ``check-cfg`` through the program itself."""

from __future__ import annotations

import pytest
from transformers import PreTrainedTokenizerFast

from tests.tiny_tokenizers import CHATML, byte_level
from xtuner import cli
from xtuner.config import list_configs, load_config
from xtuner.tools.support.templates import check_templates


class TestListCfg:
    def test_all(self, capsys):
        assert cli.main(["list-cfg", "--names"]) == 0
        assert capsys.readouterr().out.split() == list(list_configs())

    def test_groups_with_what_each_is(self, capsys):
        assert cli.main(["list-cfg", "-p", "tiny"]) == 0
        head, *rows = capsys.readouterr().out.splitlines()
        assert head == "tiny"
        row = next(row for row in rows if row.split()[:1] == ["tiny_sft"])
        assert row.removeprefix("  tiny_sft").strip() in list_configs()["tiny_sft"].read_text(encoding="utf-8")
        assert all(len(row.split()) > 3 for row in rows if row)

    def test_pattern(self, capsys):
        assert cli.main(["list-cfg", "--names", "-p", "LLaVA*sft"]) == 0
        names = capsys.readouterr().out.split()
        assert names and all("llava" in name and "sft" in name for name in names)

    def test_no_match(self, capsys):
        assert cli.main(["list-cfg", "-p", "tiny_stf"]) == 1
        assert "Did you mean 'tiny_sft'?" in capsys.readouterr().err


class TestCopyCfg:
    def test_copy_loads_and_settings_still_reach(self, write_config, tmp_path, capsys):
        assert cli.main(["copy-cfg", str(write_config()), str(tmp_path / "mine"), "--cfg-options", "lr=0.5"]) == 0
        copy = tmp_path / "mine" / "leaf_copy.py"
        assert capsys.readouterr().out == f"{copy}\n"
        assert load_config(copy).optimizer.lr == 0.5
        assert load_config(copy, {"llm_name_or_path": "x"}).train_dataset.tokenizer.name_or_path == "x"

    def test_does_not_replace(self, write_config, tmp_path, capsys):
        (tmp_path / "leaf_copy.py").write_text("mine = 1")
        assert cli.main(["copy-cfg", str(write_config()), str(tmp_path)]) == 1
        assert "already exists" in capsys.readouterr().err
        assert (tmp_path / "leaf_copy.py").read_text() == "mine = 1"


class TestCheckCfg:
    @pytest.fixture
    def report(self, write_config, capsys):
        """Returns a function that checks the config and returns the cells of the printed tables by row."""

        def check(*words: str) -> dict[str, list[str]]:
            assert cli.main(["check-cfg", str(write_config()), *words]) == 0
            out = capsys.readouterr().out
            cells = [[cell.strip() for cell in line.strip("│").split("│")] for line in out.splitlines()]
            return {row[0]: row[1:] for row in cells} | {"text": [out]}

        return check

    def test_parts(self, report):
        rows = report()
        # llm: 8 * 10; part: two layers of 8 * 8 + 8
        assert rows["llm"] == ["LLM", "80", "frozen"]
        assert rows["part"] == ["Part", "144", "trained"]
        assert rows["all"] == ["", "224", "144 trained"]

    def test_files_that_are_not_there(self, report):
        assert "not on this machine yet: data_path: 'base.json'" in report()["text"][0]

    def test_memory(self, report):
        text = report(
            *("--gpus", "4", "--micro-batch", "1000000", "--deepspeed", "deepspeed_zero2"),
            *("--cfg-options", "model.activation_checkpointing=True"),
        )
        assert "4 x 1,000,000 samples, deepspeed_zero2" in text["text"][0]
        # n = 1e6 * (64 text + 4 image) tokens of 2 bytes: two layers' inputs of width 8, one whole layer
        # of 6*8 + 2*4 + 4*16 = 120; head: 32e6 positions * 10 * (2 + 8)
        expected = (68e6 * (2 * 8 * 2 + 2 * 120) + 32e6 * 10 * 10) / 2**30
        assert text["activations"] == [f"{expected:.2f}"]

    def test_without_deepspeed(self, report):
        assert "without DeepSpeed" in report("--deepspeed", "none")["text"][0]

    def test_mistakes_all_at_once(self, write_config, capsys):
        path = write_config("batch_sise = 4\nmodel.part.depht = 3")
        assert cli.main(["check-cfg", str(path)]) == 1
        message = capsys.readouterr().err
        assert "2 problems in config" in message
        assert "Did you mean 'batch_size'?" in message and "Did you mean 'depth'?" in message

    def test_unknown_template(self, capsys):
        assert cli.main(["check-cfg", "tiny_sft", "--cfg-options", "prompt_template=vicunna"]) == 1
        message = capsys.readouterr().err
        assert "did you mean 'vicuna'?" in message and "evaluation.prompt_template" in message, message

    def test_template_of_another_model(self, tmp_path):
        own = PreTrainedTokenizerFast(tokenizer_object=byte_level(), eos_token="<|im_end|>")
        own.chat_template = CHATML
        own.save_pretrained(tmp_path)

        def notes(template: str) -> list[str]:
            overrides = {"tokenizer.name_or_path": str(tmp_path), "prompt_template": template}
            return check_templates(load_config("tiny_sft", overrides), "config tiny_sft")

        assert "nearest shipped template is 'chatml'" in notes("llama3_chat")[-1]
        assert notes("auto") == notes("chatml") == []

    def test_auto_is_not_checked_without_the_tokenizer(self):
        (note, *_) = check_templates(load_config("tiny_sft", {"prompt_template": "auto"}), "config tiny_sft")
        assert "not on this machine" in note

    def test_unknown_config(self, capsys):
        assert cli.main(["check-cfg", "tiny_stf"]) == 1
        assert "did you mean 'tiny_sft'?" in capsys.readouterr().err

    def test_zero_gpus(self, capsys):
        assert cli.main(["check-cfg", "tiny_sft", "--gpus", "0"]) == 2
