"""Run by torchrun on two ranks: steps in which the ranks have unlike batches, by DDP and every ZeRO stage.

Each rank draws for every micro-batch whether there are pictures, how many, and how many boxes. A hang shows as a test
that ends by its time limit, a gradient lost or counted twice as a weight that differs from one process over the joined
batch.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig

from mg_llava.model import MGLLaVA
from mg_llava.model.encoders import HighResEncoder, LowResEncoder
from mg_llava.model.fusion import ConvGateFusion
from mg_llava.model.objects import ObjectEncoder
from tests.tiny_parts import HIGH_SIZE, tiny_batch, tiny_clip_folder, tiny_convnext_folder, tiny_llm_folder
from xtuner.engine.processes.environment import Collective, Environment, join_deepspeed, setup_environment
from xtuner.engine.steps.optim import StepOptimizer
from xtuner.engine.steps.precision import Precision
from xtuner.engine.steps.step import run_step
from xtuner.engine.strategies.deepspeed_settings import engine_config, read_deepspeed
from xtuner.engine.strategies.plain import PlainBackend, wrap_plain
from xtuner.model.llm import build_llm
from xtuner.model.placement import partition_while_loading
from xtuner.model.projector import MLPProjector

RANKS, GRAD_ACCUM, STEPS = 2, 2, 8
CONNECTORS = ("fusion", "projector", "object_encoder")
LORA = {"type": LoraConfig, "r": 2, "lora_alpha": 4}
VARIANTS: dict[str, dict[str, Any]] = {
    "stage1": {"trainable": CONNECTORS},
    "stage2": {"trainable": (*CONNECTORS, "llm"), "activation_checkpointing": True},
    "lora": {"trainable": CONNECTORS, "llm_lora": LORA, "visual_encoder_lora": LORA},
    "qlora": {"trainable": CONNECTORS, "llm_lora": LORA},
}
MODES = ("ddp", "zero1", "zero2", "zero3")
PRECISION = Precision("fp32")


def batch_of(step: int, micro: int, rank: int) -> dict[str, Any]:
    """What a rank gets: any of text only, one picture, several, without boxes, unlike the other rank's."""
    draw = random.Random(f"{step}, {micro}, {rank}")
    lengths = tuple(draw.randint(8, 14) for _ in range(2))
    pictures = tuple(draw.choice((0, 0, 1, 2)) for _ in range(2))
    if step == 0:  # for sure: only one rank has pictures, and then none has
        pictures = (1, 0) if rank == 0 and micro == 0 else (0, 0)
    return tiny_batch(lengths, pictures, boxes=draw.choice((0, 0, 1, 3)), seed=draw.randrange(1000))


def write_parts(folder: Path) -> None:
    """Writes the parts' files; by one process, since transformers saves on rank 0 only."""
    tiny_llm_folder(folder, hidden_size=64)
    tiny_clip_folder(folder)
    tiny_convnext_folder(folder)


def build(parts: Path, variant: str) -> MGLLaVA:
    """The tiny model of a variant, read from files as training does."""
    torch.manual_seed(3)
    llm = {"type": build_llm, "name_or_path": str(parts / "llm")}
    if variant == "qlora":
        llm["quantization"] = "4bit"
    return MGLLaVA(
        llm=llm,
        low_res_encoder={"type": LowResEncoder, "name_or_path": str(parts / "clip")},
        high_res_encoder={"type": HighResEncoder, "path": str(parts / "convnext"), "image_size": HIGH_SIZE},
        fusion={"type": ConvGateFusion},
        projector={"type": MLPProjector},
        object_encoder={"type": ObjectEncoder},
        **{"activation_checkpointing": False, **VARIANTS[variant]},
    )


def make_optimizer(model: MGLLaVA) -> StepOptimizer:
    """Plain descent: a weight moves by its gradient, so that weights compare as gradients do."""
    trained = [p for p in model.parameters() if p.requires_grad]
    return StepOptimizer(torch.optim.SGD(trained, lr=0.05, fused=True), PRECISION, None, GRAD_ACCUM)


def deepspeed_backend(model: MGLLaVA, mode: str, environment: Environment, folder: Path) -> Any:
    from xtuner.engine.strategies.deepspeed import DeepSpeedBackend, ZeroStrategy

    optimizer = make_optimizer(model)
    config = engine_config(read_deepspeed(f"deepspeed_{mode}"), PRECISION, None, GRAD_ACCUM, 2, on_gpu=False)
    strategy = ZeroStrategy(config, environment, 0, str(folder), f"{mode}_{folder.name}")
    strategy.prepare(model, optim_wrapper=optimizer, dispatch_kwargs={})
    return DeepSpeedBackend(strategy.model.model, optimizer, environment.device)


def trained_weights(backend: Any) -> dict[str, torch.Tensor]:
    """Copies of the trained weights; under ZeRO-3 all ranks gather them."""
    named = [(name, p) for name, p in backend.module.named_parameters() if p.requires_grad]
    if backend.zero_stage < 3:
        return {name: p.detach().clone() for name, p in named}
    import deepspeed

    weights = {}
    for name, parameter in named:
        with deepspeed.zero.GatheredParameters([parameter]):
            weights[name] = parameter.detach().clone()
    return weights


def run_reference(folder: Path, variant: str) -> None:
    """One process over the joined batches; leaves the weights before and after."""
    model = build(folder / "parts", variant)
    for conv in (model.fusion.low_proj, model.fusion.high_proj):
        # as initialised the branches before them have no gradient
        torch.nn.init.normal_(conv.weight, std=0.1)
    model.train()
    torch.save({"state_dict": model.state_dict()}, folder / f"{variant}_before.pth")
    backend = PlainBackend(model, make_optimizer(model), torch.device("cpu"))
    for step in range(STEPS):
        joined = [batch_of(step, micro, rank) for micro in range(GRAD_ACCUM) for rank in range(RANKS)]
        run_step(backend, joined, Collective())
    torch.save(trained_weights(backend), folder / f"{variant}_after.pth")


def run_ranks(folder: Path, variant: str, mode: str, environment: Environment) -> None:
    """The same on this rank's share; rank 0 leaves the weights."""
    settings = read_deepspeed(f"deepspeed_{mode}") if mode != "ddp" else {}
    partitioning = partition_while_loading(settings, 2, PRECISION.name) if mode == "zero3" else None
    model = build(folder / "parts", variant)
    del partitioning
    model.load_checkpoint(folder / f"{variant}_before.pth", required=model.trainable)
    model.train()
    if mode == "ddp":
        optimizer = make_optimizer(model)
        backend: Any = PlainBackend(wrap_plain(model, optimizer, environment), optimizer, environment.device)
    else:
        backend = deepspeed_backend(model, mode, environment, folder)
    collective = Collective()
    for step in range(STEPS):
        run_step(backend, [batch_of(step, micro, environment.rank) for micro in range(GRAD_ACCUM)], collective)
    weights = trained_weights(backend)
    if environment.rank == 0:
        torch.save(weights, folder / f"{variant}_{mode}.pth")


if __name__ == "__main__":
    target, *variants = sys.argv[1:]
    here = setup_environment()
    join_deepspeed()
    for chosen in variants:
        for kind in MODES:
            run_ranks(Path(target), chosen, kind, here)
