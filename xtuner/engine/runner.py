"""Two runners with one way to train: mmengine's Runner for plain torch, its FlexibleRunner for DeepSpeed."""

from __future__ import annotations

from typing import Any

from mmengine.runner import Runner
from mmengine.runner._flexible_runner import FlexibleRunner
from torch import nn
from torch.utils.data import DataLoader

from xtuner.engine.curves import curve_kinds
from xtuner.engine.hooks.bad_samples import BadSampleHook
from xtuner.engine.hooks.ema import EmaHook
from xtuner.engine.hooks.profile import ProfileHook
from xtuner.engine.hooks.progress import ProgressHook
from xtuner.engine.hooks.save import SaveHook
from xtuner.engine.hooks.step_log import StepLogHook
from xtuner.engine.hooks.stop import StopHook
from xtuner.engine.hooks.validate import ValidateHook
from xtuner.engine.steps.loader import StreamLoader
from xtuner.engine.steps.loops import TrainLoop
from xtuner.engine.steps.optim import StepOptimizer
from xtuner.engine.strategies.plain import PlainBackend, wrap_plain
from xtuner.engine.training import RunPlan, TrainingMixin


def _runner_arguments(plan: RunPlan, dataloader: DataLoader | StreamLoader, optimizer: StepOptimizer) -> dict[str, Any]:
    """Arguments that both of mmengine's runners take; its default hooks are replaced by ours."""
    curves = [dict(type=kind, run_name=plan.name) for kind in curve_kinds(plan.settings.visualizers)]
    hooks = [
        StopHook(),
        StepLogHook(plan.settings.logging_interval),
        BadSampleHook(plan.settings.logging_interval, plan.settings.bad_sample_limit),
        SaveHook(plan.settings.save_steps),
        ProgressHook(),
    ]
    if plan.validation is not None and plan.settings.val_interval is not None:
        hooks.append(ValidateHook(plan.validation, plan.settings.val_interval))
    if plan.settings.ema_decay is not None:
        hooks.append(EmaHook(plan.settings.save_steps, plan.settings.ema_decay))
    if plan.profile_steps:
        hooks.append(ProfileHook(plan.profile_steps))
    defaults = ("runtime_info", "timer", "sampler_seed", "logger", "param_scheduler", "checkpoint")
    return dict(
        work_dir=str(plan.work_dir),
        train_dataloader=dataloader,
        train_cfg=dict(type=TrainLoop, max_iters=plan.max_iters),
        optim_wrapper=optimizer,
        default_hooks={name: None for name in defaults},
        custom_hooks=hooks,
        launcher=plan.environment.launcher,
        visualizer=dict(type="Visualizer", vis_backends=[dict(type="LocalVisBackend"), *curves]),
        randomness=dict(seed=plan.settings.seed),
        experiment_name=plan.name,
    )


class PlainRunner(TrainingMixin, Runner):
    """Trains by plain torch: one process, or several under DDP.

    Args:
        model: on the CPU, with its trainable parts set.
        optimizer: over its trainable parameters.
        dataloader: see `build_train_dataloader`.
        plan: of the run.
    """

    def __init__(
        self, model: nn.Module, optimizer: StepOptimizer, dataloader: DataLoader | StreamLoader, plan: RunPlan
    ) -> None:
        self.begin(plan)
        Runner.__init__(self, model=model, **_runner_arguments(plan, dataloader, optimizer))

    def wrap_model(self, model_wrapper_cfg: dict[str, Any] | None, model: nn.Module) -> nn.Module:
        """Casts, moves and wraps the model; see `wrap_plain`."""
        return wrap_plain(model, self.optim_wrapper, self.plan.environment)

    def make_backend(self) -> PlainBackend:
        """Returns the plain backend."""
        return PlainBackend(self.model, self.optim_wrapper, self.plan.environment.device)


class DeepSpeedRunner(TrainingMixin, FlexibleRunner):
    """Trains by DeepSpeed. Arguments as for `PlainRunner`; ``plan.deepspeed`` holds DeepSpeed's settings."""

    def __init__(
        self, model: nn.Module, optimizer: StepOptimizer, dataloader: DataLoader | StreamLoader, plan: RunPlan
    ) -> None:
        from xtuner.engine.strategies.deepspeed import ZeroStrategy

        self.begin(plan)
        assert plan.deepspeed is not None
        strategy = ZeroStrategy(plan.deepspeed, plan.environment, plan.settings.seed, str(plan.work_dir), plan.name)
        arguments = _runner_arguments(plan, dataloader, optimizer)
        FlexibleRunner.__init__(self, model=model, strategy=strategy, **arguments)

    def make_backend(self) -> Any:
        """Starts DeepSpeed's engine and returns the backend on it."""
        from xtuner.engine.strategies.deepspeed import DeepSpeedBackend

        self.strategy.prepare(self.model, optim_wrapper=self.optim_wrapper, dispatch_kwargs={})
        self.model = self.strategy.model
        return DeepSpeedBackend(self.model.model, self.optim_wrapper, self.plan.environment.device)


def make_runner(
    model: nn.Module, optimizer: StepOptimizer, dataloader: DataLoader | StreamLoader, plan: RunPlan
) -> TrainingMixin:
    """Returns the runner that `plan` asks for."""
    kind = PlainRunner if plan.deepspeed is None else DeepSpeedRunner
    return kind(model, optimizer, dataloader, plan)
