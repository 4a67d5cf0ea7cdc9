"""Object features, fusion, splice, and a whole model's loss and gradients: the device against the CPU in float32."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn

from mg_llava.model import MGLLaVA
from mg_llava.model.fusion import ConvGateFusion
from mg_llava.model.objects import pool_boxes
from mg_llava.model.splice import splice
from tests.tiny_parts import tiny_batch, tiny_model
from tools.benchmarks.object_features import CHANNELS, STRIDES, largest_difference, random_boxes
from tools.gpu.setting import Setting, within
from tools.gpu.stages import Rows
from xtuner.engine.processes.environment import Collective
from xtuner.engine.steps.optim import build_optimizer
from xtuner.engine.steps.precision import Precision
from xtuner.engine.steps.step import run_step
from xtuner.engine.strategies.plain import PlainBackend

FORMATS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
POOLED = 1e-4
"""Features are made in float32 whatever the maps' format: what is left is the order of the sums."""

FUSED = {"fp32": 1e-4, "bf16": 3e-2, "fp16": 4e-3}
LOSS = {"fp32": 1e-4, "bf16": 1e-2, "fp16": 2e-3}
GRADIENTS = {"fp32": 1e-3, "bf16": 8e-2, "fp16": 2e-2}
"""Relative to the largest number, or to the norm: a few roundings of the format (2^-8 for bf16, 2^-11 for fp16)."""


def rows(setting: Setting) -> Rows:
    """Returns the stage's rows."""
    whole = list(FORMATS)[: 2 if setting.tiny else None]
    return [
        *((f"pool_boxes, maps in {name}", partial(objects, setting, name)) for name in FORMATS),
        *((f"fusion in {name}", partial(fusion, setting, name)) for name in FORMATS),
        ("splice", partial(spliced, setting)),
        *((f"loss and gradients in {name}", partial(whole_model, setting, name)) for name in whole),
        ("no host sync in a step", partial(no_sync, setting)),
        ("no graph break, same loss", partial(compiled, setting)),
    ]


@contextmanager
def exact() -> Iterator[None]:
    """Float32 products without TF32."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


def objects(setting: Setting, name: str) -> dict[str, Any]:
    """Object features from the same maps."""
    draw, size = torch.Generator().manual_seed(0), 64 if setting.tiny else 768
    channels = [width // 24 for width in CHANNELS] if setting.tiny else CHANNELS
    maps = [
        torch.randn(2, width, size // stride, size // stride, generator=draw).to(FORMATS[name])
        for width, stride in zip(channels, STRIDES, strict=True)
    ]
    boxes = [random_boxes(50, size, draw) for _ in range(2)]
    expected = pool_boxes([stage.float() for stage in maps], boxes, size)
    found = pool_boxes([stage.to(setting.device) for stage in maps], [box.to(setting.device) for box in boxes], size)
    difference = largest_difference([each.cpu() for each in found], expected)
    return within({"difference": difference}, difference, POOLED, "the largest difference")


def fusion(setting: Setting, name: str) -> dict[str, Any]:
    """Conv-Gate fusion with weights that add something."""
    torch.manual_seed(0)
    low, high, side = (24, 48, 4) if setting.tiny else (1024, 1536, 24)
    module = ConvGateFusion(low, high)
    for conv in (module.low_proj, module.high_proj):
        nn.init.normal_(conv.weight, std=0.1)
    tokens, stage = torch.randn(2, side * side, low), torch.randn(2, high, side, side)
    with torch.no_grad(), exact():
        expected = module(tokens, stage)
        moved = copy.deepcopy(module).to(setting.device)
        with Precision(name).autocast(setting.device):
            found = moved(tokens.to(setting.device), stage.to(setting.device)).float().cpu()
    difference = largest_difference([found], [expected])
    return within({"difference": difference}, difference, FUSED[name], "the largest difference")


def spliced(setting: Setting) -> dict[str, Any]:
    """The splice copies: bit for bit."""
    torch.manual_seed(0)
    parts = (torch.randn(2, 40, 8), torch.randn(2, 9, 8), torch.randn(5, 8))
    positions = torch.randperm(80)[:23].split([18, 5])
    expected = splice(*parts, *positions)
    found = splice(*(part.to(setting.device) for part in (*parts, *positions))).cpu()
    wrong = float((found != expected).sum())
    return within({"difference": wrong}, wrong, 0.0, "the number of other values")


def small_model(setting: Setting, **arguments: Any) -> tuple[MGLLaVA, dict[str, Any]]:
    """A model with all parts trained but the encoders, and a batch: tests' tiny one, or two layers of width 1024."""
    trainable = ("fusion", "projector", "object_encoder", "llm")
    folder = setting.scratch("model")
    if setting.tiny:
        model = tiny_model(folder, trainable=trainable, **arguments).train()
        return model, tiny_batch(lengths=(12, 9), pictures=(1, 1))
    from tools.benchmarks.real_step import make_batch
    from tools.benchmarks.train_step import ROWS, scaled_model, write_encoders

    write_encoders(folder)
    model = scaled_model(folder, 32000, ROWS["all"], trainable=trainable, **arguments)
    return model, make_batch(32000, 2, 768, 20, 60)


def loss_and_gradients(model: MGLLaVA, batch: dict[str, Any], name: str, device: torch.device) -> Any:
    """Loss, and the gradients joined in one vector, both on the CPU."""
    model = model.to(device)
    with exact():
        with Precision(name).autocast(device):
            loss = model(**model.data_preprocessor(batch, True), mode="loss")["loss_sum"]
        # the scale that fp16 training has: small gradients would be zero
        (loss * 256).backward()
    gradients = [p.grad.float().flatten().cpu() / 256 for p in model.parameters() if p.grad is not None]
    return float(loss.detach()), torch.cat(gradients)


def whole_model(setting: Setting, name: str) -> dict[str, Any]:
    """Loss and gradients of a whole model in a format against float32 on the CPU."""
    model, batch = small_model(setting)
    other = copy.deepcopy(model)
    other.load_state_dict(model.state_dict())
    expected, theirs = loss_and_gradients(model, batch, "fp32", torch.device("cpu"))
    found, ours = loss_and_gradients(other, batch, name, setting.device)
    loss = abs(found - expected) / abs(expected)
    gradients = float((ours - theirs).norm() / theirs.norm())
    figures = {"loss": found, "difference": loss, "gradients differ by": gradients}
    within(figures, loss, LOSS[name], "the loss's relative difference")
    return within(figures, gradients, GRADIENTS[name], "the gradients' relative difference")


def stepper(setting: Setting, **arguments: Any) -> tuple[MGLLaVA, Callable[[], float]]:
    """A model and what takes a step of it."""
    model, batch = small_model(setting, **arguments)
    model = model.to(setting.device)
    backend = PlainBackend(model, build_optimizer(model, setting.device, lr=1e-4), setting.device)
    return model, lambda: run_step(backend, [batch], Collective()).loss_sum


def no_sync(setting: Setting) -> dict[str, Any]:
    """A step in which the host waits for the device nowhere: torch raises where it would."""
    setting.need_gpu("torch's sync debug mode")
    _, step = stepper(setting)
    step()
    torch.cuda.synchronize()
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode(before)
    return {}


def compiled(setting: Setting) -> dict[str, Any]:
    """The first step's loss with and without torch.compile, and what broke the graphs."""
    _, step = stepper(setting)
    expected = float(step())
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    model, step = stepper(setting)
    model.compile_parts("inductor" if setting.on_gpu else "eager")
    found = float(step())
    breaks = torch._dynamo.utils.counters["graph_break"]
    difference = abs(found - expected) / abs(expected)
    figures = {"loss": found, "difference": difference, "graph breaks": sum(breaks.values())}
    within(figures, sum(breaks.values()), 0.0, f"the number of graph breaks ({'; '.join(breaks)[:200]})")
    return within(figures, difference, LOSS["bf16" if setting.on_gpu else "fp32"], "the loss's relative difference")
