"""Which number format computes and which one holds the weights that are trained."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from xtuner.errors import XTunerError, nearest

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


@dataclass(frozen=True)
class Precision:
    """A compute format by its name: ``bf16``, ``fp16`` or ``fp32``."""

    name: str

    @property
    def dtype(self) -> torch.dtype:
        """The torch type that matrix products run in."""
        return _DTYPES[self.name]

    @property
    def scales_loss(self) -> bool:
        """True for fp16, whose small gradients need a loss scale."""
        return self.name == "fp16"

    def autocast(self, device: torch.device) -> torch.autocast:
        """Returns the context in which the plain runner's forward runs; inactive for fp32."""
        return torch.autocast(device.type, dtype=self.dtype, enabled=self.name != "fp32")


def resolve_precision(name: str, device: torch.device) -> Precision:
    """Turns a config's ``precision`` into the format used on `device`.

    ``auto`` is bf16 on a CUDA device that has it, fp16 on an older one and fp32 on the CPU.

    Raises:
        XTunerError: unknown name, or fp16 on the CPU.
    """
    if name == "auto":
        if device.type != "cuda":
            return Precision("fp32")
        return Precision("bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16")
    if name not in _DTYPES:
        choices = ["auto", *_DTYPES]
        raise XTunerError(f"precision is '{name}': expected one of {choices}.{nearest(name, choices)}")
    if name == "fp16" and device.type == "cpu":
        raise XTunerError("precision is 'fp16', but the CPU cannot train in fp16: set precision to 'fp32' or 'bf16'.")
    return Precision(name)


def cast_parameters(model: nn.Module, precision: Precision) -> None:
    """Casts in place: trained parameters to float32, frozen ones to the compute format. Buffers stay as they
    are.

    Trained weights in half precision would lose every update smaller than their spacing; frozen ones lose
    nothing that autocast would not lose too. Integer (quantised) parameters are left alone.
    """
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(torch.float32 if parameter.requires_grad else precision.dtype)
