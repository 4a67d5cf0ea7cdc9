"""DeepSpeed's settings: found by name, joined with the config's values, which win."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from xtuner.config import config_root
from xtuner.engine.precision import Precision
from xtuner.errors import XTunerError, nearest
from xtuner.log import get_logger


def read_deepspeed(name_or_path: str) -> dict[str, Any]:
    """Reads DeepSpeed's settings: a path to a JSON file, or a shipped name such as ``deepspeed_zero2``.

    Raises:
        XTunerError: no such file or name, or no JSON in it.
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
    try:
        settings = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise XTunerError(f"{path} is no JSON: {error}. Mend the file.") from error
    if not isinstance(settings, dict):
        raise XTunerError(
            f"{path} holds a {type(settings).__name__}: expected a JSON object with DeepSpeed's settings."
        )
    return settings


def offloads_optimizer(settings: dict[str, Any]) -> bool:
    """True when DeepSpeed shall keep the optimizer in host memory."""
    offload = settings.get("zero_optimization", {}).get("offload_optimizer", {})
    return offload.get("device", "none") == "cpu"


def engine_config(
    settings: dict[str, Any],
    precision: Precision,
    max_norm: float | None,
    grad_accum: int,
    batch_size: int,
    on_gpu: bool,
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
            get_logger().warning("DeepSpeed's %s %s gives way to the config's %s.", key, found, value)
        if isinstance(value, dict) and isinstance(found, dict):
            if found.get("enabled", value["enabled"]) not in (value["enabled"], "auto"):
                get_logger().warning("DeepSpeed's %s gives way to precision %s.", key, precision.name)
            value = {**found, **value}
        joined[key] = value
    # the product of the three above; a stale one is refused by DeepSpeed
    joined.pop("train_batch_size", None)
    if not on_gpu:
        for part in ("offload_optimizer", "offload_param"):
            joined.get("zero_optimization", {}).get(part, {}).pop("pin_memory", None)
    return joined
