"""Loading configs: one setting reaches everything built from it, and every dump loads again."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest

from xtuner.config import dump_config, load_config, parse_overrides
from xtuner.errors import ProblemsError, XTunerError


def problems_of(path: Path, overrides: dict[str, Any] | None = None) -> list[str]:
    with pytest.raises(ProblemsError) as raised:
        load_config(path, overrides)
    return raised.value.problems


def assert_llm_everywhere(cfg: Any, name: str) -> None:
    assert cfg.model.llm.name_or_path == name
    assert cfg.tokenizer.name_or_path == name
    assert cfg.train_dataset.tokenizer.name_or_path == name
    assert cfg.benchmarks[0].names == (f"{name} on mme",)


class TestOneSettingReachesEverything:
    def test_from_the_base(self, write_config):
        assert_llm_everywhere(load_config(write_config()), "base-llm")

    def test_overridden_in_a_leaf(self, write_config):
        cfg = load_config(write_config("llm_name_or_path = 'leaf-llm'\nlr = 5e-4"))
        assert_llm_everywhere(cfg, "leaf-llm")
        assert cfg.optimizer.lr == 5e-4

    def test_overridden_by_cfg_options(self, write_config):
        options = parse_overrides(["llm_name_or_path=other", "batch_size=4", "betas=[0.8,0.9]"])
        cfg = load_config(write_config("llm_name_or_path = 'leaf-llm'"), options)
        assert_llm_everywhere(cfg, "other")
        assert cfg.train_dataloader.batch_size == 4
        assert cfg.optimizer.betas == [0.8, 0.9]

    def test_a_new_reference_by_cfg_options(self, write_config):
        cfg = load_config(write_config(), {"runtime.share": "${lr}"})
        assert cfg.runtime.share == 1e-3

    def test_values_keep_their_types(self, write_config):
        cfg = load_config(write_config())
        assert (cfg.train_dataloader.batch_size, cfg.optimizer.betas) == (8, (0.9, 0.999))
        assert type(cfg.train_dataset.max_length) is int

    def test_nodes_referred_to_are_copies(self, write_config):
        cfg = load_config(write_config())
        cfg.tokenizer.name_or_path = "changed"
        assert cfg.train_dataset.tokenizer.name_or_path == "base-llm"

    def test_dotted_reference_through_a_reference(self, write_config):
        cfg = load_config(write_config("runtime.names = ('${train_dataset.tokenizer.name_or_path}',)"))
        assert cfg.runtime.names == ("base-llm",)

    def test_item_of_a_list(self, write_config):
        assert load_config(write_config("runtime.share = '${betas.0}'")).runtime.share == 0.9


class TestReferencesThatFail:
    def test_unknown_name_suggests_the_nearest(self, write_config):
        (problem,) = problems_of(write_config("runtime.share = '${lrr}'"))
        assert problem == "runtime.share: in '${lrr}' there is no setting 'lrr'. Did you mean 'lr'?"

    def test_unknown_part_of_a_node(self, write_config):
        (problem,) = problems_of(write_config("runtime.share = '${runtime.sed}'"))
        assert "'runtime' has no 'sed'. Did you mean 'seed'?" in problem

    def test_circle_is_named(self, write_config):
        problems = problems_of(write_config("lr = '${peak}'\npeak = '${lr}'"))
        assert any("circle: lr → peak → lr" in problem for problem in problems)

    def test_node_that_holds_itself(self, write_config):
        problems = problems_of(write_config("model.part = '${model}'"))
        assert any("circle: model → model" in problem for problem in problems)

    def test_none_inside_a_text(self, write_config):
        (problem,) = problems_of(write_config("folder = None\ndata_path = '${folder}/a.json'"))
        assert "'${folder}'" not in problem
        assert "${folder} is None and cannot be part of a text" in problem


class TestOverridesThatFail:
    @pytest.mark.parametrize(
        ("key", "said"),
        [
            ("batch_sise", "'batch_sise' is not in this config. Did you mean 'batch_size'?"),
            ("model.prat.depth", "'model.prat' is not in this config. Did you mean 'part'?"),
            ("model.part.depht", "'model.part.depht' is not in this config. Did you mean 'depth'?"),
            ("benchmarks.3.seed", "benchmarks has 1 items, counted from 0"),
            ("seed.x", "seed is 42 and has no 'x'"),
            ("train_dataset.tokenizer.dtype", "is '${tokenizer}'. Override tokenizer.dtype."),
            ("resolved_from", "'resolved_from' is not in this config."),
        ],
    )
    def test_names_that_are_not_there(self, write_config, key, said):
        (problem,) = problems_of(write_config(), {key: 1})
        assert said in problem

    def test_argument_that_the_config_leaves_at_its_default(self, write_config):
        assert load_config(write_config(), {"model.part.depth": 3}).model.part.depth == 3

    def test_items_of_lists_and_tuples(self, write_config):
        cfg = load_config(write_config(), {"benchmarks.0.seed": 7, "betas.1": 0.95})
        assert (cfg.benchmarks[0].seed, cfg.optimizer.betas) == (7, (0.9, 0.95))

    def test_dict_without_type_is_merged_and_with_type_replaces(self, write_config):
        node = {"type": "tests.xtuner.config.config_classes.takes_anything", "x": 1}
        cfg = load_config(write_config(), {"model": {"part": node}, "runtime": {"seed": 3}})
        assert cfg.model.part == node
        assert cfg.runtime.to_dict() == {"type": "tests.xtuner.config.config_classes.Settings", "seed": 3}

    def test_setting_that_this_config_does_not_use(self, write_config):
        path = write_config("optimizer = dict(type='tests.xtuner.config.config_classes.takes_anything')")
        assert load_config(path).lr == 1e-3
        assert "nothing uses 'lr'" in problems_of(path, {"lr": 1.0})[0]


class TestParseOverrides:
    @pytest.mark.parametrize(
        ("text", "value"),
        [
            ("4", 4),
            ("1e-3", 1e-3),
            ("True", True),
            ("false", False),
            ("None", None),
            ("vicuna", "vicuna"),
            ("'7'", "7"),
            ("/data/my pictures, old", "/data/my pictures, old"),
            ("0.9,0.95", (0.9, 0.95)),
            ("[tensorboard,wandb]", ["tensorboard", "wandb"]),
            ("[(1,a),b]", [(1, "a"), "b"]),
            ("a=b", "a=b"),
            ("", ""),
        ],
    )
    def test_values(self, text, value):
        assert parse_overrides([f"k={text}"]) == {"k": value}

    def test_all_malformed_words_at_once(self):
        with pytest.raises(ProblemsError) as raised:
            parse_overrides(["lr", "=3", "seed=1"])
        assert len(raised.value.problems) == 2

    def test_last_one_wins(self):
        assert parse_overrides(["a=1", "a=2"]) == {"a": 2}


class TestDumpAndReload:
    def test_as_written_keeps_references(self, write_config, tmp_path):
        cfg = load_config(write_config("lr = 5e-4"), {"batch_size": 4})
        dump_config(cfg.as_written, tmp_path / "out" / "leaf.py")
        again = load_config(tmp_path / "out" / "leaf.py")
        assert again.as_written.to_dict() == cfg.as_written.to_dict()
        assert again.to_dict() == cfg.to_dict()
        assert load_config(tmp_path / "out" / "leaf.py", {"lr": 1.0}).optimizer.lr == 1.0

    def test_settings_that_lost_their_use_are_no_mistakes_but_cannot_be_overridden(self, write_config, tmp_path):
        cfg = load_config(write_config(), {"runtime.seed": 7, "optimizer.lr": 1.0})
        assert cfg.unused_settings == ("lr", "seed")
        dump_config(cfg.as_written, tmp_path / "out.py")
        again = load_config(tmp_path / "out.py")
        assert again.as_written.to_dict() == cfg.as_written.to_dict()
        assert "nothing uses 'seed'" in problems_of(tmp_path / "out.py", {"seed": 3})[0]

    def test_resolved_is_equal_and_resolved(self, write_config, tmp_path):
        cfg = load_config(write_config("lr = 5e-4"))
        dump_config(cfg, tmp_path / "out.py")
        again = load_config(tmp_path / "out.py")
        assert again.to_dict() == cfg.to_dict()
        assert again.resolved_from == "leaf"
        assert "${" not in (tmp_path / "out.py").read_text()

    def test_setting_of_a_resolved_config_is_refused_and_the_place_of_use_is_not(self, write_config, tmp_path):
        dump_config(load_config(write_config()), tmp_path / "out.py")
        (problem,) = problems_of(tmp_path / "out.py", {"lr": 1.0})
        assert "'lr' would have no effect" in problem
        assert load_config(tmp_path / "out.py", {"optimizer.lr": 1.0}).optimizer.lr == 1.0

    def test_types_are_dotted_names_before_and_after(self, write_config, tmp_path):
        cfg = load_config(write_config())
        dump_config(cfg, tmp_path / "out.py")
        assert (
            cfg.model.type == load_config(tmp_path / "out.py").model.type == "tests.xtuner.config.config_classes.Model"
        )

    @pytest.mark.parametrize(
        "value",
        ["{'a b': 1, 'c': {'d': []}}", "()", "('x',)", "[[1, 2], ({'a': None},)]", "'{{ quote\\'s }} \"\\n'"],
    )
    def test_odd_values(self, write_config, tmp_path, value):
        cfg = load_config(
            write_config(f"model.part = dict(type='tests.xtuner.config.config_classes.takes_anything', x={value})")
        )
        dump_config(cfg.as_written, tmp_path / "out.py")
        assert load_config(tmp_path / "out.py").to_dict() == {**cfg.to_dict(), "resolved_from": "out"}

    def test_copies_and_pickles(self, write_config):
        cfg = load_config(write_config())
        assert copy.deepcopy(cfg).as_written.to_dict() == cfg.as_written.to_dict()
        assert pickle.loads(pickle.dumps(cfg)).to_dict() == cfg.to_dict()

    def test_other_ending_is_refused(self, write_config, tmp_path):
        with pytest.raises(XTunerError, match="ends in .py"):
            dump_config(load_config(write_config()), tmp_path / "out.json")


class TestFilesThatCannotBeRead:
    def test_python_error_names_file_and_line(self, write_config):
        path = write_config("x = undefined")
        with pytest.raises(XTunerError, match=r"leaf.py, line 7\): NameError: name 'undefined'"):
            load_config(path)

    def test_syntax_error(self, write_config):
        with pytest.raises(XTunerError, match=r"leaf.py cannot be read.*SyntaxError"):
            load_config(write_config("x = = 1"))

    def test_missing_base(self, tmp_path):
        (tmp_path / "leaf.py").write_text("with read_base():\n    from .bass import *\n")
        with pytest.raises(XTunerError, match="the base '.bass' does not exist"):
            load_config(tmp_path / "leaf.py")

    def test_standard_library_import_is_real_and_not_dumped(self, write_config):
        cfg = load_config(write_config("import os\ndata_path = os.path.join('a', 'b')"))
        assert cfg.train_dataset.data_path == "a/b"
        assert "os" not in cfg

    def test_base_inside_an_installed_package(self, tmp_path, monkeypatch):
        package = tmp_path / "some_configs"
        package.mkdir()
        (package / "__init__.py").touch()
        (package / "base.py").write_text("deepspeed = 'deepspeed_zero2'")
        (tmp_path / "leaf.py").write_text("with read_base():\n    from some_configs.base import *\n")
        monkeypatch.syspath_prepend(tmp_path)
        assert load_config(tmp_path / "leaf.py").deepspeed == "deepspeed_zero2"
