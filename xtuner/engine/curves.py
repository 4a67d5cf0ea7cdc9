"""Where curves go: mmengine's backends and trackio, each with the run's name and the optimizer step as its axis.

A service's own environment variables say where its runs go and who you are (``WANDB_PROJECT``,
``MLFLOW_TRACKING_URI``, ``NEPTUNE_API_TOKEN``, ...); what a backend writes locally stands in the run's folder.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar

from mmengine.visualization import vis_backend

from xtuner.errors import XTunerError

_PROJECT = "xtuner"
"""Project of a run where the environment names none and the service wants one."""


class _Curves(vis_backend.BaseVisBackend):
    """What all share: why a service starts no run is reported in one sentence.

    A run's rank 0 opens them before its first step, by asking for `experiment`.
    """

    name: ClassVar[str]

    def start(self) -> None:
        """Opens the run at the service."""
        super()._init_env()  # type: ignore[safe-super]

    def _init_env(self) -> None:
        try:
            self.start()
        # a service's library raises what it likes, and exits where it would ask for a key
        except (Exception, SystemExit) as error:
            reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
            raise XTunerError(
                f"visualizers: {self.name} starts no run: {reason.rstrip('.')}. Log in to it or set its environment "
                f"variables, or remove {self.name} from visualizers."
            ) from error


class Tensorboard(_Curves, vis_backend.TensorboardVisBackend):
    """TensorBoard's files."""

    name = "tensorboard"

    def __init__(self, save_dir: str, run_name: str) -> None:
        super().__init__(save_dir)


class Wandb(_Curves, vis_backend.WandbVisBackend):
    """Weights & Biases."""

    name = "wandb"

    def __init__(self, save_dir: str, run_name: str) -> None:
        super().__init__(save_dir, init_kwargs={"name": run_name})

    @vis_backend.force_init_env
    def add_scalars(self, scalar_dict: dict[str, Any], step: int = 0, file_path: str | None = None, **_: Any) -> None:
        """Sends scalars at their optimizer step; mmengine counts the calls instead."""
        self._wandb.log(scalar_dict, step=step)

    def close(self) -> None:
        """Ends the run."""
        if hasattr(self, "_wandb"):
            self._wandb.finish()


class MLflow(_Curves, vis_backend.MLflowVisBackend):
    """MLflow: the server of ``MLFLOW_TRACKING_URI``, else ``mlflow.db`` in the run's folder."""

    name = "mlflow"

    def __init__(self, save_dir: str, run_name: str) -> None:
        folder = os.path.abspath(save_dir)
        server = os.environ.get("MLFLOW_TRACKING_URI")
        super().__init__(
            save_dir,
            os.environ.get("MLFLOW_EXPERIMENT_NAME", _PROJECT),
            run_name,
            # MLflow 3 refuses the plain files that mmengine asks for
            tracking_uri=server or f"sqlite:///{folder}/mlflow.db",
            artifact_location=None if server else f"file://{folder}/mlflow",
        )

    def close(self) -> None:
        """Ends the run; nothing of the run's folder is uploaded."""
        if hasattr(self, "_mlflow"):
            self._mlflow.end_run()


class Aim(_Curves, vis_backend.AimVisBackend):
    """Aim: the repository of ``AIM_REPO``, else one in the run's folder."""

    name = "aim"

    def __init__(self, save_dir: str, run_name: str) -> None:
        repository = os.environ.get("AIM_REPO")
        if repository is None:
            repository = save_dir
            Path(save_dir).mkdir(parents=True, exist_ok=True)
        # without the thread that records hardware and the terminal
        arguments = {"repo": repository, "experiment": run_name, "system_tracking_interval": None}
        super().__init__(save_dir, {**arguments, "capture_terminal_logs": False})


class ClearML(_Curves, vis_backend.ClearMLVisBackend):
    """ClearML."""

    name = "clearml"

    def __init__(self, save_dir: str, run_name: str) -> None:
        project = os.environ.get("CLEARML_PROJECT", _PROJECT)
        # weights stay where they are: by itself it uploads what torch saves
        off = dict.fromkeys(
            ("reuse_last_task_id", "auto_connect_frameworks", "auto_connect_arg_parser", "auto_resource_monitoring"),
            False,
        )
        super().__init__(save_dir, {"project_name": project, "task_name": run_name, **off})

    def close(self) -> None:
        """Ends the task; nothing of the run's folder is uploaded."""
        if hasattr(self, "_clearml"):
            self._task.close()


class Neptune(_Curves, vis_backend.NeptuneVisBackend):
    """Neptune: the project of ``NEPTUNE_PROJECT``, offline without ``NEPTUNE_API_TOKEN``."""

    name = "neptune"

    def __init__(self, save_dir: str, run_name: str) -> None:
        offline = {} if os.environ.get("NEPTUNE_API_TOKEN") else {"mode": "offline"}
        super().__init__(save_dir, {"name": run_name, **offline})


class DVCLive(_Curves, vis_backend.DVCLiveVisBackend):
    """DVCLive's files in the run's folder; no experiment of DVC is made, and your repository is left alone."""

    name = "dvclive"

    def __init__(self, save_dir: str, run_name: str) -> None:
        super().__init__(save_dir)

    def start(self) -> None:
        """Opens the files; mmengine's own way runs ``dvc init -f`` in the current folder."""
        from dvclive import Live  # optional, as are all services

        self._dvclive = Live(dir=os.path.join(self._save_dir, self.name), save_dvc_exp=False, dvcyaml=None)

    def close(self) -> None:
        """Writes the summary; mmengine's own way hands the files to DVC."""
        if hasattr(self, "_dvclive"):
            self._dvclive.end()


class Trackio(_Curves):
    """Trackio: a local dashboard (``trackio show``), or the Space of ``TRACKIO_SPACE_ID``."""

    name = "trackio"

    def __init__(self, save_dir: str, run_name: str) -> None:
        super().__init__(save_dir)
        self.run_name = run_name
        self._trackio: Any = None

    def start(self) -> None:
        """Opens the run."""
        import trackio

        trackio.init(project=os.environ.get("TRACKIO_PROJECT", _PROJECT), name=self.run_name)
        self._trackio = trackio

    @property
    @vis_backend.force_init_env
    def experiment(self) -> Any:
        """The module trackio, which holds the run."""
        return self._trackio

    def add_scalar(self, name: str, value: float, step: int = 0, **_: Any) -> None:
        """Sends one scalar."""
        self.add_scalars({name: value}, step)

    @vis_backend.force_init_env
    def add_scalars(self, scalar_dict: dict[str, Any], step: int = 0, file_path: str | None = None, **_: Any) -> None:
        """Sends scalars at their optimizer step."""
        self._trackio.log(scalar_dict, step=step)

    def close(self) -> None:
        """Sends what waits and ends the run."""
        if self._trackio is not None:
            self._trackio.finish()


_KINDS = (Tensorboard, Wandb, MLflow, Aim, ClearML, Neptune, DVCLive, Trackio)


def curve_kinds(names: Iterable[str]) -> list[type[vis_backend.BaseVisBackend]]:
    """Returns the backends' classes for `names`, of `xtuner.constants.VISUALIZERS`."""
    kinds = {kind.name: kind for kind in _KINDS}
    return [kinds[name] for name in names]
