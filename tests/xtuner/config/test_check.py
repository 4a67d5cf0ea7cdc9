"""The config check: every mistake in one message, and nothing said about what is right."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import pytest
from mmengine.config import Config

from xtuner.config import check_config, load_config
from xtuner.config.types import matches, type_advice
from xtuner.errors import ProblemsError


def problems_of(path: Path) -> list[str]:
    with pytest.raises(ProblemsError) as raised:
        load_config(path)
    return raised.value.problems


class TestMistakes:
    @pytest.mark.parametrize(
        ("leaf", "said"),
        [
            (
                "batch_sise = 4",
                "nothing uses 'batch_sise': no '${batch_sise}' refers to it. Did you mean 'batch_size'?",
            ),
            ("model.part.depht = 3", "model.part: Part does not take 'depht'. Did you mean 'depth'?"),
            (
                "optimizer.lr = '1e-3'",
                "optimizer.lr is '1e-3': expected float. Write it without quotes: 1e-3.",
            ),
            ("lr = '1e-3'", "optimizer.lr is '1e-3' (from '${lr}'): expected float."),
            ("seed = 1.5", "runtime.seed is 1.5 (from '${seed}'): expected int."),
            ("betas = (0.9,)", "optimizer.betas is (0.9,) (from '${betas}'): expected tuple[float, float]."),
            (
                "train_dataset.mode = 'wide'",
                "train_dataset.mode is 'wide': expected Literal['flat', 'deep'].",
            ),
            ("train_dataset.pop('data_path')", "train_dataset: Dataset needs 'data_path', which is missing."),
            ("model.part.width = 3", "model.part.width is filled in when Part is built: remove it"),
            ("optimizer = dict(lr=1)", "optimizer is a dict without 'type': expected dict(type=…, …)."),
            ("runtime = 3", "runtime is 3: expected dict(type=…, …)."),
            ("benchmarks = dict()", "expected a list of dict(type=…, …)."),
            ("benchmarks[0].pop('type')", "benchmarks.0 is a dict without 'type'"),
            ("benchmarks[0].sed = 3", "benchmarks.0: Settings does not take 'sed'. Did you mean 'seed'?"),
            (
                "train_dataloader.batch_sise = 4",
                "train_dataloader does not take 'batch_sise'. Did you mean 'batch_size'?",
            ),
            ("train_dataloader = 4", "train_dataloader is 4: expected a dict with batch_size"),
            (
                "runtime.type = 'tests.xtuner.config.config_classes.Setings'",
                "runtime.type: 'tests.xtuner.config.config_classes.Setings' does not exist",
            ),
            ("runtime.type = 'nowhere.Settings'", "runtime.type: 'nowhere.Settings' cannot be imported"),
            (
                "runtime.seed = lambda: 1",
                "runtime.seed is the function <lambda>, which a dumped config cannot hold",
            ),
            ("def f(): pass\nruntime.type = f", "runtime.type is <function f"),
            (
                "from pathlib import Path\ndata_path = Path('x')",
                "which a dumped config cannot hold: write it as text, 'x'",
            ),
            (
                "import torch\ntokenizer.dtype = torch.float16",
                "tokenizer.dtype is the imported object torch.float16",
            ),
            ("seed = float('inf')", "seed is inf, which a dumped config cannot hold"),
            ("runtime.names = {'a'}", "runtime.names is a set ({'a'}), which a dumped config cannot hold"),
            ("runtime['class'] = 1", "the key 'class' cannot be dumped"),
        ],
    )
    def test_is_reported(self, write_config, leaf, said):
        path = write_config()
        path.write_text(path.read_text() + leaf + "\n")
        problems = problems_of(path)
        assert any(said in problem for problem in problems), problems

    def test_all_at_once_and_each_once(self, write_config):
        leaf = "batch_sise = 4\ntokenizer.nmae = 'x'\nseed = 'one'\nmodel.part.depht = 3"
        leaf += "\nruntime.share = '${lrr}'"
        problems = problems_of(write_config(leaf))
        # the tokenizer stands twice in the resolved config, the mistake is one
        assert len(problems) == 5
        assert len(str(ProblemsError("x", problems)).splitlines()) == 6

    def test_none_of_them_in_the_base(self, write_config):
        assert check_config(load_config(write_config())) == []

    def test_names_that_python_reads_are_used(self, write_config):
        cfg = load_config(write_config("root = 'data'\ndata_path = f'{root}/a.json'"))
        assert cfg.train_dataset.data_path == "data/a.json"

    def test_unchecked_on_request(self, write_config):
        assert load_config(write_config("model.part.depht = 3"), check=False).model.part.depht == 3

    def test_factories_that_take_anything(self, write_config):
        load_config(
            write_config("model.part = dict(type='tests.xtuner.config.config_classes.takes_anything', depht=3)")
        )

    def test_config_made_in_code(self):
        problems = check_config(Config({"runtime": {"type": "tests.xtuner.config.config_classes.Settings", "sed": 1}}))
        assert problems == ["runtime: Settings does not take 'sed'. Did you mean 'seed'?"]


class TestMatches:
    @pytest.mark.parametrize(
        ("value", "hint"),
        [
            (1, float),
            (None, int | None),
            ("a", str | Sequence[str]),
            ([0.9, 1], tuple[float, float]),
            (("a", "b"), tuple[str, ...]),
            (["a"], list[str]),
            ("a", Sequence[str]),
            ("x/y", Path),
            ({"a": 1}, dict[str, int]),
            ({"type": "any.Thing"}, int),
            ("flat", Literal["flat"]),
            ("bfloat16", Config),
            ("${lr}", float),
            (3, Callable[[], None]),
            (None, Any),
        ],
    )
    def test_may_be_right(self, value, hint):
        assert matches(value, hint)

    @pytest.mark.parametrize(
        ("value", "hint"),
        [
            ("1", float),
            (1.0, int),
            (True, int),
            (1, bool),
            (None, str),
            (None, Config),
            ("ab", list[str]),
            (["a", 1], list[str]),
            ((0.9,), tuple[float, float]),
            (3, Sequence[int]),
            ([], Mapping[str, int]),
            ("x", int | None),
        ],
    )
    def test_is_wrong(self, value, hint):
        assert not matches(value, hint)

    @pytest.mark.parametrize(("value", "hint"), [("4", int), ("1e-3", float | None)])
    def test_quoted_numbers_get_advice(self, value, hint):
        assert type_advice(value, hint) == f" Write it without quotes: {value}."

    @pytest.mark.parametrize(("value", "hint"), [("four", int), ("1.5", int), (None, int)])
    def test_others_get_none(self, value, hint):
        assert type_advice(value, hint) == ""
