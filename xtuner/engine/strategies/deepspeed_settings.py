"""DeepSpeed's settings: found by name, joined with the config's values, which win."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from xtuner.config import config_root
from xtuner.engine.steps.precision import Precision
from xtuner.errors import XTunerError, nearest
from xtuner.json_values import read_json
from xtuner.log import get_logger

_STAGES = (1, 2, 3)


def read_deepspeed(name_or_path: str) -> dict[str, Any]:
    """Reads DeepSpeed's settings: a path to a JSON file, or a shipped name such as ``deepspeed_zero2``.

    Raises:
        XTunerError: no such file or name, no JSON in it, or no ZeRO stage.
    """
    folder = config_root() / "deepspeed"
    path = Path(name_or_path)
    if not path.is_file():
        path = folder / f"{path.name.removesuffix('.json')}.json"
    if not path.is_file():
        names = sorted(p.stem for p in folder.glob("*.json"))
        raise XTunerError(
            f"--deepspeed {name_or_path}: neither a file nor one of {names}.{nearest(name_or_path, names)}"
        )
    settings = read_json(path, dict, "write DeepSpeed's settings into it.")
    zero = settings.get("zero_optimization")
    stage = zero.get("stage") if isinstance(zero, dict) else None
    if stage not in _STAGES:
        # DeepSpeed takes a mistyped key for none, and would train without what the file is for
        raise XTunerError(
            f"{path}: zero_optimization.stage is {stage}: expected one of {list(_STAGES)}. Without ZeRO, drop "
            "--deepspeed."
        )
    return settings


def offloads_optimizer(settings: dict[str, Any]) -> bool:
    """True when DeepSpeed shall keep the optimizer in host memory."""
    offload = settings["zero_optimization"].get("offload_optimizer") or {}
    return offload.get("device", "none") == "cpu"


def engine_config(
    settings: dict[str, Any],
    precision: Precision,
    max_norm: float | None,
    grad_accum: int,
    batch_size: int,
    on_gpu: bool,
    world_size: int = 1,
) -> dict[str, Any]:
    """Joins DeepSpeed's settings with those of the config, which win; each contradiction is said once in the
    log.

    Args:
        settings: as `read_deepspeed` returned them.
        precision: bf16, fp16 (with a dynamic scale) or fp32.
        max_norm: limit of the gradients' norm; always passed on, since DeepSpeed would clip at 1 on its own.
        grad_accum: micro-batches per optimizer step and process.
        batch_size: samples per micro-batch and process.
        on_gpu: pinned memory is left out without one.
        world_size: number of processes.
    """
    fixed: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": batch_size,
        "gradient_accumulation_steps": grad_accum,
        "gradient_clipping": float(max_norm or 0.0),
        "bf16": {"enabled": precision.name == "bf16"},
        "fp16": {
            "enabled": precision.name == "fp16",
            **({"initial_scale_power": 16} if precision.scales_loss else {}),
        },
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }
    joined = json.loads(json.dumps(settings))
    for key, value in fixed.items():
        found = joined.get(key, value)
        if found not in (value, "auto") and not isinstance(value, dict):
            get_logger().warning("The config replaces DeepSpeed's %s %s with %s.", key, found, value)
        if isinstance(value, dict) and isinstance(found, dict):
            if found.get("enabled", value["enabled"]) not in (value["enabled"], "auto"):
                get_logger().warning("The config replaces DeepSpeed's %s with precision %s.", key, precision.name)
            value = {**found, **value}
        joined[key] = value
    _drop_what_the_config_owns(joined, batch_size * grad_accum * world_size)
    if not on_gpu:
        for part in ("offload_optimizer", "offload_param"):
            (joined["zero_optimization"].get(part) or {}).pop("pin_memory", None)
    return joined


def _drop_what_the_config_owns(settings: dict[str, Any], global_batch: int) -> None:
    """Takes out, in place, what would act beside the config's optimizer and schedule, and says so."""
    # the product of micro batch, accumulation and processes; a stale one is refused by DeepSpeed
    found = settings.pop("train_batch_size", "auto")
    if found not in (global_batch, "auto"):
        get_logger().warning("The config replaces DeepSpeed's train_batch_size %s with %d.", found, global_batch)
    for key in ("optimizer", "scheduler"):
        # a scheduler of DeepSpeed's would set the learning rate of every step
        if settings.pop(key, None) is not None:
            owner = "optimizer" if key == "optimizer" else "schedule"
            get_logger().warning("The config replaces DeepSpeed's %s with its own %s.", key, owner)
