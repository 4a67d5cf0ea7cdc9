"""Evaluation during training with a toy that draws random numbers: what the training must not notice."""

from __future__ import annotations

import itertools
import json
import logging
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from mmengine.config import ConfigDict

from tests.xtuner.engine.toy import toy_config
from xtuner.engine.assemble import assemble
from xtuner.engine.checkpoints.checkpoint import CheckpointFolder
from xtuner.engine.preflight import preflight
from xtuner.engine.processes.environment import setup_environment
from xtuner.errors import ProblemsError, XTunerError

NUMBERS = itertools.count()


class ToyBenchmark:
    """A benchmark of which only name and files count."""

    def __init__(self, name: str, missing: tuple[str, ...] = (), malformed: bool = False) -> None:
        self.name = name
        self.missing = list(missing)
        self.malformed = malformed

    def missing_files(self) -> list[str]:
        return self.missing

    def questions(self) -> list[str]:
        if self.malformed:
            raise XTunerError("row 3: no question")
        return ["q"]


class ToyEvaluation:
    """Draws random numbers, wants eval mode, and writes down when it was asked."""

    provided_by_parent: ClassVar[tuple[str, ...]] = ("model", "collective", "lockstep")
    before: ClassVar[Callable[[], None] | None] = None

    def __init__(self, model: Any, collective: Any, lockstep: bool, fails: bool = False) -> None:
        self.model = model
        self.fails = fails

    def run(
        self, benchmark: Any, folder: Path, facts: Any, limit: int | None, should_stop: Any, progress: bool
    ) -> dict[str, Any]:
        assert not self.model.training and limit == 5 and not progress
        torch.rand(3)
        random.random()
        if ToyEvaluation.before is not None:
            ToyEvaluation.before()
        if self.fails:
            raise XTunerError("no question could be asked")
        if should_stop():
            return {}
        folder.mkdir(parents=True)
        metrics = {"overall": 0.5, "groups": {"kind": {"a": 0.25}}, **facts}
        (folder / "metrics.json").write_text(json.dumps(metrics))
        return metrics


def config(interval: int | None = 2, fails: bool = False, names: Any = None, **changes: Any) -> ConfigDict:
    cfg = toy_config(max_iters=5, dropout=0.3, **changes)
    benchmarks = [dict(type=ToyBenchmark, name="toy"), dict(type=ToyBenchmark, name="absent", missing=("a.tsv",))]
    cfg.runtime.update(val_interval=interval, val_limit=5, val_benchmarks=names)
    cfg.evaluation = dict(type=ToyEvaluation, fails=fails)
    cfg.benchmarks = benchmarks
    cfg.filename = "toy.py"
    return cfg


def train(folder: Path, cfg: ConfigDict, resume: str | None = None) -> Any:
    # mmengine keeps its visualizers by name and second
    runner = assemble(cfg, f"{folder.name}_{next(NUMBERS)}", folder, setup_environment(), None, resume)
    runner.train()
    return runner


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "iter_5.pth", weights_only=True)["state_dict"]


def scalars(folder: Path, name: str) -> dict[int, float]:
    lines = [line for file in sorted(folder.glob("*/vis_data/scalars.json")) for line in file.read_text().splitlines()]
    rows = map(json.loads, lines)
    return {row["step"]: row[name] for row in rows if name in row}


@pytest.fixture(autouse=True)
def nothing_before() -> Any:
    yield
    ToyEvaluation.before = None


class TestTraining:
    def test_notices_nothing(self, tmp_path: Path) -> None:
        train(tmp_path / "with", config())
        train(tmp_path / "without", config(None))
        assert all(torch.equal(weights(tmp_path / "with")[n], t) for n, t in weights(tmp_path / "without").items())
        assert scalars(tmp_path / "with", "train/loss") == scalars(tmp_path / "without", "train/loss")
        assert scalars(tmp_path / "with", "val/toy") == {2: 0.5, 4: 0.5, 5: 0.5}
        assert scalars(tmp_path / "with", "val/toy/kind/a") == {2: 0.25, 4: 0.25, 5: 0.25}
        assert list((tmp_path / "with").glob("*/vis_data/events.*"))
        assert not (tmp_path / "without" / "validation").exists()

    def test_goes_on_where_an_evaluation_fails(self, tmp_path: Path, framework_log: list[logging.LogRecord]) -> None:
        runner = train(tmp_path / "run", config(fails=True))
        errors = [record.getMessage() for record in framework_log if record.levelname == "ERROR"]
        assert errors and all("no question could be asked" in error for error in errors)
        assert runner.iter == 5 and scalars(tmp_path / "run", "val/toy") == {}

    def test_a_stop_cuts_the_evaluation_short(self, tmp_path: Path) -> None:
        runner = assemble(config(), f"run_{next(NUMBERS)}", tmp_path / "run", setup_environment())
        ToyEvaluation.before = staticmethod(lambda: setattr(runner, "stop_requested", True))
        runner.train()
        # the step after takes the request round, then all is saved
        assert runner.interrupted and runner.iter == 3 and (tmp_path / "run" / "iter_3.pth").exists()
        assert scalars(tmp_path / "run", "val/toy") == {}

    def test_the_best_checkpoint_stays(self, tmp_path: Path) -> None:
        cfg = config(save_steps=2, save_total_limit=1)
        cfg.runtime.keep_best = "val/toy"
        train(tmp_path / "run", cfg)
        # steps 2, 4 and 5 are saved and score the same: the first is not beaten, the last is there to go on from
        best = CheckpointFolder(tmp_path / "run").best()
        assert best is not None and (best[0].name, best[1].value) == ("iter_2.pth", 0.5)
        assert sorted(path.name for path in (tmp_path / "run").glob("iter_*")) == ["iter_2.pth", "iter_5.pth"]


class TestResume:
    def test_results_of_later_steps_are_moved_aside(self, tmp_path: Path) -> None:
        run = tmp_path / "run"
        train(run, config(save_steps=2, save_total_limit=None))
        marked = run / "validation" / "step_2" / "toy" / "mark"
        marked.touch()
        train(run, config(save_steps=2, save_total_limit=None), resume=str(run / "iter_2.pth"))
        # step 2 is of the checkpoint and complete: not asked again; 4 and 5 are asked anew
        assert marked.exists()
        aside = sorted(path.name for path in (run / "validation.previous").iterdir())
        assert aside == ["step_4", "step_5"]
        assert sorted(path.name for path in (run / "validation").iterdir()) == ["step_2", "step_4", "step_5"]
        # a fresh start in the same folder takes nothing over
        for path in run.glob("iter_*.pth*"):
            path.rename(run / f"kept_{path.name}")
        train(run, config(save_steps=2, save_total_limit=None))
        assert (run / "validation.previous" / "step_2" / "toy" / "mark").exists() and not marked.exists()

    def test_killed_between_checkpoint_and_score(self, tmp_path: Path) -> None:
        run = tmp_path / "run"
        train(run, config(save_steps=2, save_total_limit=None))
        (run / "validation" / "step_2" / "toy" / "metrics.json").unlink()
        (run / "validation" / "step_2" / "toy").rmdir()
        train(run, config(save_steps=2, save_total_limit=None), resume=str(run / "iter_2.pth"))
        assert (run / "validation" / "step_2" / "toy" / "metrics.json").exists()


class TestMistakes:
    def test_named_before_the_first_step(self, tmp_path: Path) -> None:
        with pytest.raises(ProblemsError, match="no benchmark 'to'. Did you mean 'toy'"):
            preflight(config(names=["to"]), "run")
        with pytest.raises(ProblemsError, match="files are absent: absent: a.tsv"):
            preflight(config(names="absent"), "run")
        preflight(config(), "run")
        preflight(config(None, names=["to"]), "run")

    def test_nothing_to_ask(self) -> None:
        cfg = config()
        cfg.benchmarks = cfg.benchmarks[1:]
        with pytest.raises(ProblemsError, match="none of the config's benchmarks has its files"):
            preflight(cfg, "run")

    def test_malformed_rows(self, tmp_path: Path) -> None:
        cfg = config()
        cfg.benchmarks[0].malformed = True
        with pytest.raises(XTunerError, match="row 3: no question"):
            assemble(cfg, "run", tmp_path, setup_environment())

    @pytest.mark.parametrize("name", ["val_interval", "val_limit"])
    def test_numbers_out_of_range(self, tmp_path: Path, name: str) -> None:
        cfg = config()
        cfg.runtime[name] = 0
        with pytest.raises(ValueError, match=f"{name} is 0"):
            assemble(cfg, "run", tmp_path, setup_environment())

    @pytest.mark.parametrize(("interval", "metric"), [(None, "val/toy"), (2, "toy")])
    def test_best_by_what_nobody_measures(self, tmp_path: Path, interval: int | None, metric: str) -> None:
        cfg = config(interval)
        cfg.runtime.keep_best = metric
        with pytest.raises(ValueError, match="keep_best is .*expected val/<benchmark>"):
            assemble(cfg, "run", tmp_path, setup_environment())
