"""Every service of curves, on recording stand-ins for its package."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from unittest.mock import MagicMock

import pytest
from mmengine.registry import VISBACKENDS
from mmengine.visualization.vis_backend import BaseVisBackend

from xtuner.constants import VISUALIZERS
from xtuner.engine.curves import curve_kinds
from xtuner.engine.preflight import preflight
from xtuner.engine.steps.settings import RuntimeSettings
from xtuner.errors import ProblemsError, XTunerError

from .toy import train_toy

SERVICES = [name for name in VISUALIZERS if name != "tensorboard"]


def _wandb(service: MagicMock) -> dict[int, dict[str, float]]:
    return {call.kwargs["step"]: call.args[0] for call in service.log.call_args_list}


def _one_by_one(calls: list[tuple[str, float, int]]) -> dict[int, dict[str, float]]:
    found: dict[int, dict[str, float]] = {}
    for name, value, step in calls:
        found.setdefault(step, {})[name] = value
    return found


def _tracked(service: MagicMock) -> dict[int, dict[str, float]]:
    calls = service.Run.return_value.track.call_args_list
    return _one_by_one([(c.kwargs["name"], c.kwargs["value"], c.kwargs["step"]) for c in calls])


def _reported(service: MagicMock) -> dict[int, dict[str, float]]:
    calls = service.Task.init.return_value.get_logger.return_value.report_scalar.call_args_list
    return _one_by_one([(c.kwargs["title"], c.kwargs["value"], c.kwargs["iteration"]) for c in calls])


def _mlflow(service: MagicMock) -> dict[int, dict[str, float]]:
    return {call.args[1]: call.args[0] for call in service.log_metrics.call_args_list}


class Live:
    """Keeps what DVCLive would write."""

    made: list[Live]

    def __init__(self, **settings: object) -> None:
        self.settings, self.step, self.calls, self.ended = settings, 0, [], False
        Live.made.append(self)

    def log_metric(self, name: str, value: float) -> None:
        self.calls.append((name, value, self.step))

    def end(self) -> None:
        self.ended = True


class Series:
    """Keeps what Neptune would append to a name."""

    def __init__(self, name: str, calls: list[tuple[str, float, int]]) -> None:
        self.name, self.calls = name, calls

    def append(self, value: float, step: int) -> None:
        self.calls.append((self.name, value, step))


@pytest.fixture
def service(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> MagicMock:
    """The stand-in for the package that the test is run with."""
    package = MagicMock()
    Live.made = []
    package.Live = Live
    package.calls = []
    package.init_run.return_value.__getitem__.side_effect = lambda name: Series(name, package.calls)
    monkeypatch.setitem(sys.modules, request.param, package)
    return package


READ: dict[str, Callable[[MagicMock], dict[int, dict[str, float]]]] = {
    "wandb": _wandb,
    "trackio": _wandb,
    "mlflow": _mlflow,
    "aim": _tracked,
    "clearml": _reported,
    "neptune": lambda service: _one_by_one(service.calls),
    "dvclive": lambda service: _one_by_one(Live.made[0].calls),
}
ENDED: dict[str, Callable[[MagicMock], bool]] = {
    "wandb": lambda service: service.finish.called,
    "trackio": lambda service: service.finish.called,
    "mlflow": lambda service: service.end_run.called,
    "aim": lambda service: service.Run.return_value.close.called,
    "clearml": lambda service: service.Task.init.return_value.close.called,
    "neptune": lambda service: service.init_run.return_value.stop.called,
    "dvclive": lambda service: Live.made[0].ended,
}


@pytest.mark.parametrize(("service", "name"), [(name, name) for name in SERVICES], indirect=["service"])
def test_a_service_gets_each_steps_scalars_and_ends(service: MagicMock, name: str, tmp_path: Path) -> None:
    train_toy(tmp_path / f"curves_{name}", visualizers=[name], size=12, max_epochs=1)
    found = READ[name](service)
    assert sorted(found) == [1, 2, 3]
    assert all({"train/loss", "train/lr"} <= set(scalars) for scalars in found.values())
    assert ENDED[name](service)


@pytest.mark.parametrize("service", ["wandb"], indirect=True)
def test_a_service_that_starts_no_run_ends_it_before_the_first_step(service: MagicMock, tmp_path: Path) -> None:
    service.init.side_effect = SystemExit("No API key configured.")
    with pytest.raises(XTunerError, match="wandb starts no run: No API key configured. Log in"):
        train_toy(tmp_path / "no_key", visualizers=["wandb"], size=12, max_epochs=1)
    assert not list((tmp_path / "no_key").glob("iter_*"))


def test_every_backend_of_mmengine_has_a_name() -> None:
    kinds = curve_kinds(VISUALIZERS)
    theirs = {kind for kind in VISBACKENDS.module_dict.values() if issubclass(kind, BaseVisBackend)}
    covered = {base for kind in kinds for base in kind.__mro__}
    assert {kind.__name__ for kind in theirs - covered} == {"LocalVisBackend"}


@pytest.mark.parametrize("name", SERVICES)
def test_an_absent_package_is_one_sentence_before_anything_is_built(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # what wandb and dvclive leave in the current folder is no package
    (tmp_path / name).mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, name, raising=False)
    cfg = {"runtime": {"type": RuntimeSettings, "visualizers": [name]}}
    with pytest.raises(ProblemsError, match=f"visualizers: '{name}' is not installed: run 'pip install {name}'"):
        preflight(cfg, "run")


def test_a_name_that_is_none_gets_the_nearest() -> None:
    with pytest.raises(ValueError, match="Did you mean 'mlflow'"):
        RuntimeSettings(visualizers=["mlflows"])
