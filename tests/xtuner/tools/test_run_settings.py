"""A checkpoint's settings come from its run, not from the config that a command was given."""

from __future__ import annotations

from pathlib import Path

from mmengine.config import Config

from xtuner.tools.model_converters.pth_to_hf import describe_training
from xtuner.tools.support.run_settings import run_settings, training_facts


def make_run(folder: Path) -> Path:
    (folder / "mine_resolved.py").write_text(
        "lr = 0.0003\ndata_path = '/home/someone/sft.json'\nseed = None\nmodel = dict(type='x.Y', size=3)\n"
        "open('touched', 'w')\n"
    )
    (folder / "iter_6.pth").touch()
    (folder / "last_checkpoint").write_text("/elsewhere/iter_6.pth")
    return folder / "iter_6.pth"


def passed(**settings: object) -> Config:
    cfg = Config(settings)
    object.__setattr__(cfg, "_filename", "/configs/base.py")
    return cfg


class TestRunSettings:
    def test_plain_settings_without_running_the_file(self, tmp_path: Path, monkeypatch) -> None:
        monkeypatch.chdir(tmp_path)
        expected = ("mine", {"lr": 3e-4, "data_path": "/home/someone/sft.json", "seed": None})
        assert run_settings(make_run(tmp_path)) == expected
        # a run's folder and its pointer mean the newest checkpoint
        assert run_settings(tmp_path) == run_settings(tmp_path / "last_checkpoint") == expected
        assert not (tmp_path / "touched").exists()

    def test_rates_by_part(self, tmp_path: Path) -> None:
        checkpoint = make_run(tmp_path)
        text = "lr = dict(default=1e-3, projector=2e-3)\nbetas = (0.9, open('touched', 'w'))\n"
        text += "optimizer = dict(lr=dict(type='x.Y'))\n"
        (tmp_path / "mine_resolved.py").write_text(text)
        assert run_settings(checkpoint) == ("mine", {"lr": {"default": 1e-3, "projector": 2e-3}})

    def test_none_beside_it_or_none_that_is_python(self, tmp_path: Path) -> None:
        assert run_settings(tmp_path / "weights.safetensors") is None
        (tmp_path / "x_resolved.py").write_text("lr = = 3")
        assert run_settings(tmp_path / "weights.safetensors") is None


class TestDescribeTraining:
    def test_the_run_wins_and_both_are_told(self, tmp_path: Path) -> None:
        facts = describe_training(passed(lr=1e-4, data_path="sft.json", seed=42), str(make_run(tmp_path)), ["llm"])
        assert facts["config"] == "mine" and facts["training"] == {"data_path": "sft.json", "lr": 3e-4}
        assert facts["passed"] == {"lr": 1e-4, "seed": 42}
        assert facts["training_from"] == "the run's own config"

    def test_without_a_run_the_config_is_named_as_the_source(self, tmp_path: Path) -> None:
        facts = describe_training(passed(lr=1e-4), str(tmp_path / "weights.bin"), ["llm"])
        assert facts["config"] == "base" and facts["training"] == {"lr": 1e-4} and facts["passed"] == {}
        assert "no config of the run" in facts["training_from"]


class TestEvaluation:
    def test_the_run_is_named_and_both_are_told_where_they_differ(self, tmp_path: Path) -> None:
        facts = training_facts(passed(lr=1e-4, data_path="/home/someone/sft.json", model={}), make_run(tmp_path))
        assert facts == {
            "trained_with": "mine",
            "differs_from_training": {"lr": {"training": 3e-4, "here": 1e-4}},
        }
        same = training_facts(passed(lr=3e-4, seed=None), tmp_path)
        assert same == {"trained_with": "mine", "differs_from_training": {}}

    def test_nothing_is_told_of_a_run_that_is_not_there(self, tmp_path: Path) -> None:
        assert training_facts(passed(lr=1e-4), tmp_path / "weights.safetensors") == {}
