"""From a checked config to a runner that is ready to train."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from xtuner.engine.checkpoint import CheckpointFolder
from xtuner.engine.deepspeed_settings import engine_config, offloads_optimizer, read_deepspeed
from xtuner.engine.environment import Environment, join_deepspeed, seed_everything
from xtuner.engine.integrity import is_universal
from xtuner.engine.loader import build_train_dataloader
from xtuner.engine.precision import resolve_precision
from xtuner.engine.runner import RunPlan, TrainingMixin, make_runner
from xtuner.engine.validation import ValLoop
from xtuner.errors import XTunerError
from xtuner.log import get_logger
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
        XTunerError: a checkpoint or DeepSpeed setting that does not exist, or a step of more samples than there are.
    """
    # cheap things first, so that a mistake in them does not cost the loading of a model
    settings = build(cfg.runtime)
    schedule = build(cfg.schedule)
    validation = ValLoop(cfg, settings, work_dir) if settings.val_interval is not None else None
    deepspeed_settings = read_deepspeed(deepspeed) if deepspeed else None
    found = CheckpointFolder(work_dir).find(resume) if resume else None
    _say_start(resume, found, work_dir)

    dataset = build(cfg.train_dataset) if dataset is None else dataset
    grad_accum = cfg.optimizer.get("accumulative_counts", 1)
    dataloader = build_train_dataloader(cfg.train_dataloader, dataset, grad_accum, environment, settings.seed)
    batch_size = cfg.train_dataloader.batch_size
    sampler: Any = dataloader.batch_sampler
    max_tokens = sampler.max_tokens_per_batch
    if max_tokens is not None and cfg.model.get("pack") is False:
        raise XTunerError(f"max_tokens_per_batch={max_tokens} bounds packed rows: set pack=True, or leave it out.")
    _say_layout(cfg.model)
    if max_tokens is None:
        _check_batch(len(dataset), batch_size, grad_accum, environment.world_size)
    max_iters = schedule.total_steps(sampler.steps_in)

    # the same start on every rank: parts made anew must agree
    seed_everything(settings.seed)
    model = _build_model(cfg, deepspeed_settings, environment, batch_size)
    offloads = deepspeed_settings is not None and offloads_optimizer(deepspeed_settings)
    optimizer = build(cfg.optimizer, model=model, device=environment.device, cpu_offload=offloads)
    if deepspeed_settings is not None:
        if found is not None and is_universal(found):
            deepspeed_settings["checkpoint"] = {"load_universal": True}
        on_gpu = environment.device.type == "cuda"
        deepspeed_settings = engine_config(
            deepspeed_settings, optimizer.precision, optimizer.max_norm, grad_accum, batch_size, on_gpu
        )
    plan = RunPlan(
        name=name,
        work_dir=work_dir,
        environment=environment,
        settings=settings,
        schedule=schedule,
        max_iters=max_iters,
        global_batch=environment.world_size * grad_accum * (max_tokens or batch_size),
        source_names=getattr(dataset, "source_names", ()),
        resume=found,
        validation=validation,
        deepspeed=deepspeed_settings,
        profile_steps=profile_steps,
    )
    get_logger().info(
        "%d samples, %d%s per step, %d steps (%d an epoch), precision %s",
        len(dataset),
        plan.global_batch,
        "" if max_tokens is None else " tokens at most",
        max_iters,
        sampler.steps_per_epoch,
        optimizer.precision.name,
    )
    return make_runner(model, optimizer, dataloader, plan)


def _build_model(cfg: Any, deepspeed: dict[str, Any] | None, environment: Environment, batch_size: int) -> Any:
    """Builds the model where it will compute; under ZeRO-3 each rank keeps its part of a weight as it is read."""
    partitioning = None
    if deepspeed is not None and deepspeed.get("zero_optimization", {}).get("stage") == 3:
        join_deepspeed()
        precision = resolve_precision(cfg.optimizer.get("precision", "auto"), environment.device)
        partitioning = partition_while_loading(deepspeed, batch_size, precision.name)
    with load_onto(environment.device):
        model = build(cfg.model)
    del partitioning  # lives as long as the building: what is built later is no part of the model
    return model


def _check_batch(samples: int, batch_size: int, grad_accum: int, world_size: int) -> None:
    """Refuses a step that would see samples twice."""
    needed = batch_size * grad_accum * world_size
    if needed > samples:
        raise XTunerError(
            f"an optimizer step takes {needed} samples (batch_size {batch_size} x accumulative_counts {grad_accum} x "
            f"{world_size} processes), but the training data holds {samples}: some would be seen twice in every step. "
            "Lower batch_size or accumulative_counts, or start fewer processes."
        )


def _say_layout(model: Any) -> None:
    """Says where padded or packed rows do not suit the attention, for a model that can do both."""
    llm = model.get("llm")
    if "pack" in model and isinstance(llm, Mapping):
        advice = layout_advice(llm.get("attn_implementation", "auto"), model["pack"])
        if advice is not None:
            get_logger().warning(advice)


def _say_start(resume: str | None, found: Path | None, work_dir: Path) -> None:
    """Warns where a fresh start may not be what was meant."""
    if resume and found is None:
        get_logger().info("--resume auto: no complete checkpoint in %s, starting anew", work_dir)
    if not resume and CheckpointFolder(work_dir).complete():
        get_logger().warning("%s holds checkpoints of a former run; starting anew (--resume auto goes on).", work_dir)
