"""From a checked config to a runner that is ready to train."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader

from xtuner.data.batches.stream import StreamOrder
from xtuner.engine.checkpoints.checkpoint import CheckpointFolder
from xtuner.engine.checkpoints.former import check_work_dir
from xtuner.engine.checkpoints.integrity import check_bytes, is_universal, read_trainer
from xtuner.engine.hooks.validation import ValLoop
from xtuner.engine.processes.environment import Collective, Environment, join_deepspeed, seed_everything
from xtuner.engine.runner import make_runner
from xtuner.engine.steps.loader import StreamLoader, build_train_dataloader
from xtuner.engine.steps.optim import StepOptimizer
from xtuner.engine.steps.precision import resolve_precision
from xtuner.engine.strategies.deepspeed_settings import engine_config, offloads_optimizer, read_deepspeed
from xtuner.engine.training import RunPlan, TrainingMixin
from xtuner.errors import XTunerError, counted
from xtuner.log import get_logger
from xtuner.model.files.base import Base, describe_base
from xtuner.model.llm import layout_advice
from xtuner.model.placement import load_onto, partition_while_loading
from xtuner.registry import build


def assemble(
    cfg: Any,
    name: str,
    work_dir: Path,
    environment: Environment,
    deepspeed: str | None = None,
    resume: str | None = None,
    dataset: Any = None,
    profile_steps: int = 0,
) -> TrainingMixin:
    """Builds data, model, optimizer, schedule and runner from a config.

    Args:
        cfg: resolved and checked.
        name: of the run.
        work_dir: the run's folder.
        environment: this process.
        deepspeed: name or path of DeepSpeed's settings; None for plain torch.
        resume: a checkpoint's path, ``auto`` or None.
        dataset: the data set, already built; None builds it.
        profile_steps: steps to record with the profiler.

    Raises:
        XTunerError: a checkpoint or DeepSpeed setting that does not exist, a step of more samples than there are, or a
            folder with checkpoints that `resume` does not go on from.
    """
    check_work_dir(work_dir, resume, start_anew=False)
    # cheap things first, so that a mistake in them does not cost the loading of a model
    settings = build(cfg.runtime)
    schedule = build(cfg.schedule)
    validation = ValLoop(cfg, settings, work_dir) if settings.val_interval is not None else None
    deepspeed_settings = read_deepspeed(deepspeed) if deepspeed else None
    found = _checkpoint_to_resume(work_dir, resume)
    dataset = build(cfg.train_dataset) if dataset is None else dataset
    if hasattr(dataset, "log_report"):
        dataset.log_report()
    dataloader = _build_dataloader(cfg, dataset, environment, settings.seed)
    sampler: Any = dataloader.batch_sampler

    # the same start on every rank: parts made anew must agree
    seed_everything(settings.seed)
    model = _build_model(cfg, deepspeed_settings, environment)
    if (weights := model.cost_weights()) is not None:
        sampler.balance(weights)  # a resumed run keeps the weights that its order was made with
    optimizer = _build_optimizer(cfg, model, deepspeed_settings, environment)
    plan = RunPlan(
        name=name,
        work_dir=work_dir,
        environment=environment,
        settings=settings,
        schedule=schedule,
        max_iters=schedule.total_steps(sampler.steps_in),
        global_batch=_global_batch(sampler, environment),
        source_names=getattr(dataset, "source_names", ()),
        resume=found,
        validation=validation,
        deepspeed=_complete_deepspeed(deepspeed_settings, optimizer, sampler, environment, found),
        profile_steps=profile_steps,
        base=_describe_base(cfg, model, work_dir),
    )
    _say_plan(plan, sampler, optimizer)
    return make_runner(model, optimizer, dataloader, plan)


def _checkpoint_to_resume(work_dir: Path, resume: str | None) -> Path | None:
    """What `resume` names in the run's folder; says where ``auto`` finds none."""
    found = CheckpointFolder(work_dir).find(resume) if resume else None
    if resume and found is None:
        get_logger().info("--resume auto: found no complete checkpoint in %s, starting from the beginning", work_dir)
    return found


def finished_step(cfg: Any, work_dir: Path, environment: Environment, resume: str, dataset: Any) -> int | None:
    """Returns the last step of a run that has nothing left to do, without building its model; None for any other run.

    Args:
        cfg, work_dir, environment, resume, dataset: as for `assemble`.
    """
    path = CheckpointFolder(work_dir).find(resume)
    trainer = None if path is None else read_trainer(path)
    if path is None or trainer is None or "order" not in trainer:
        return None
    sampler: Any = _build_dataloader(cfg, dataset, environment, build(cfg.runtime).seed).batch_sampler
    ours = sampler.order_facts()
    same = all(trainer["order"][fact] == ours[fact] for fact in ("seed", "samples", "checksum"))
    last = build(cfg.schedule).total_steps(sampler.steps_in)
    if not same or trainer["iter"] < last or trainer["global_batch"] != _global_batch(sampler, environment):
        return None
    # what is damaged, or of another run, is for resuming to name
    damaged = any(Collective().gather(check_bytes(path, trainer, environment.rank)))
    return None if damaged else trainer["iter"]


def _global_batch(sampler: Any, environment: Environment) -> int:
    """Samples, or tokens at most, of an optimizer step."""
    return environment.world_size * sampler.grad_accum * (sampler.max_tokens_per_batch or sampler.batch_size)


def _build_dataloader(cfg: Any, dataset: Any, environment: Environment, seed: int) -> DataLoader | StreamLoader:
    """Builds the loader of the training data; says or refuses what does not suit model or data."""
    grad_accum = cfg.optimizer.get("accumulative_counts", 1)
    dataloader = build_train_dataloader(cfg.train_dataloader, dataset, grad_accum, environment, seed)
    sampler: Any = dataloader.batch_sampler
    max_tokens = sampler.max_tokens_per_batch
    if max_tokens is not None and cfg.model.get("pack") is False:
        raise XTunerError(f"max_tokens_per_batch={max_tokens} limits packed rows only: set pack=True, or remove it.")
    _say_layout(cfg.model)
    sampler.check_step()
    return dataloader


def _complete_deepspeed(
    settings: dict[str, Any] | None,
    optimizer: StepOptimizer,
    sampler: Any,
    environment: Environment,
    found: Path | None,
) -> dict[str, Any] | None:
    """Joins DeepSpeed's settings with the config's and with the form of the checkpoint to go on from."""
    if settings is None:
        return None
    if found is not None and is_universal(found):
        settings = {**settings, "checkpoint": {"load_universal": True}}
    return engine_config(
        settings,
        optimizer.precision,
        optimizer.max_norm,
        sampler.grad_accum,
        sampler.batch_size,
        environment.device.type == "cuda",
        environment.world_size,
    )


def _build_model(cfg: Any, deepspeed: dict[str, Any] | None, environment: Environment) -> Any:
    """Builds the model where it will compute; under ZeRO-3 each rank keeps its part of a weight as it is read."""
    partitioning = None
    if deepspeed is not None and deepspeed["zero_optimization"]["stage"] == 3:
        join_deepspeed()
        precision = resolve_precision(cfg.optimizer.get("precision", "auto"), environment.device)
        partitioning = partition_while_loading(deepspeed, cfg.train_dataloader.batch_size, precision.name)
    with load_onto(environment.device):
        model = build(cfg.model)
    del partitioning  # lives as long as the building: what is built later is no part of the model
    return model


def _build_optimizer(cfg: Any, model: Any, deepspeed: dict[str, Any] | None, environment: Environment) -> StepOptimizer:
    """Builds the optimizer for the device and the strategy that hold its state."""
    return build(
        cfg.optimizer,
        model=model,
        device=environment.device,
        cpu_offload=deepspeed is not None and offloads_optimizer(deepspeed),
        zero_stage=0 if deepspeed is None else deepspeed["zero_optimization"]["stage"],
    )


def _describe_base(cfg: Any, model: Any, work_dir: Path) -> Base:
    """What the run stands on and does not save, for its checkpoints."""
    from_pretrained = cfg.model.get("pretrained_pth")
    return describe_base(cfg.model, from_pretrained, model.from_checkpoint, model.unsaved_parts(), work_dir)


def _say_layout(model: Any) -> None:
    """Says where padded or packed rows do not suit the attention, for a model that can do both."""
    llm = model.get("llm")
    if "pack" in model and isinstance(llm, Mapping):
        advice = layout_advice(llm.get("attn_implementation", "auto"), model["pack"])
        if advice is not None:
            get_logger().warning(advice)


def _say_plan(plan: RunPlan, sampler: Any, optimizer: StepOptimizer) -> None:
    is_stream = isinstance(sampler, StreamOrder)
    get_logger().info(
        "%s, %d%s per step, %s%s, precision %s",
        str(sampler) if is_stream else counted(len(sampler.lengths), "samples"),
        plan.global_batch,
        "" if sampler.max_tokens_per_batch is None else " tokens at most",
        counted(plan.max_iters, "steps"),
        "" if is_stream else f" ({sampler.steps_per_epoch} an epoch)",
        optimizer.precision.name,
    )
    for group in optimizer.groups if len(optimizer.groups) > 1 else ():
        get_logger().info(
            "lr %-12s %-24s weight decay %-8s %s",
            f"{group.lr:.3e}",
            group.label if group.layer is None else f"{group.label}, layer {group.layer}",
            group.weight_decay,
            counted(len(group.names), "weights"),
        )
