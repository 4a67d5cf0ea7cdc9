"""The small whole model of the recorded runs: tiny LLM and CLIP, a stand-in for the high-resolution tower."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from mg_llava.model import MGLLaVA
from mg_llava.model.checkpoint_names import to_published_names
from mg_llava.model.encoders import LowResEncoder
from mg_llava.model.fusion import ConvGateFusion
from mg_llava.model.objects import ObjectEncoder
from mg_llava.pictures.preprocess import ImageProcessor
from tests.parity.golden import golden_path, golden_weights
from xtuner.constants import IMAGE_TOKEN_INDEX
from xtuner.model.llm import build_llm
from xtuner.model.projector import MLPProjector

IMAGE_SIZE = 768


class StandInTower(nn.Module):
    """Stage i = tanh(conv1x1_i(avg_pool(x, 4·2^i))), with the real channels and strides."""

    channels = (192, 384, 768, 1536)
    strides = (4, 8, 16, 32)
    image_size = IMAGE_SIZE
    grid = (24, 24)

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(3, channels, 1) for channels in self.channels)

    def forward(self, pixels: torch.Tensor) -> list[torch.Tensor]:
        pooled = (functional.avg_pool2d(pixels, stride) for stride in self.strides)
        return [torch.tanh(conv(cells)) for conv, cells in zip(self.convs, pooled, strict=True)]


class _UnderPublishedNames:
    """A model's connecting parts, listed by their published names: the recorded weights are made from
    these.
    """

    def __init__(self, model: MGLLaVA) -> None:
        own = dict(model.named_parameters())
        own = {name: p for name, p in own.items() if name.startswith(("fusion", "projector", "object_encoder"))}
        self.parameters = to_published_names(own)

    def named_parameters(self) -> Iterator[tuple[str, Any]]:
        yield from self.parameters.items()


def golden_model(trainable: Sequence[str]) -> MGLLaVA:
    """The recorded runs' model in eval mode."""
    tower = StandInTower()
    golden_weights().fill_module(tower, "light_tower.")
    model = MGLLaVA(
        llm={"type": build_llm, "name_or_path": str(golden_path("tiny/llm")), "dtype": "float32"},
        low_res_encoder={"type": LowResEncoder, "name_or_path": str(golden_path("tiny/clip"))},
        high_res_encoder=tower,
        fusion={"type": ConvGateFusion},
        projector={"type": MLPProjector},
        object_encoder={"type": ObjectEncoder},
        trainable=trainable,
    )
    golden_weights().fill_module(_UnderPublishedNames(model), "e.")
    return model.eval()


def golden_samples(names: Sequence[str]) -> dict[str, Any]:
    """Right-padded batch of recorded samples, as the data set's collate makes it."""
    folder = golden_path("d_dataset")
    records = {}
    for kind in ("text", "vision"):
        for sample in json.loads((folder / f"{kind}_vicuna_1472.json").read_text())["samples"]:
            records.setdefault(sample["id"], {}).update(sample)
    samples = [records[name] for name in names]
    longest = max(len(sample["input_ids"]) for sample in samples)

    def padded(key: str, fill: int) -> torch.Tensor:
        return torch.tensor([sample[key] + [fill] * (longest - len(sample[key])) for sample in samples])

    with_picture = [sample for sample in samples if IMAGE_TOKEN_INDEX in sample["input_ids"]]
    return {
        "input_ids": padded("input_ids", 0),
        "labels": padded("labels", -100),
        "attention_mask": torch.tensor([[i < len(s["input_ids"]) for i in range(longest)] for s in samples]),
        "pixel_values": golden_pixels([sample["image"] for sample in with_picture]),
        "boxes": [torch.tensor(sample["gt_boxes"]) for sample in with_picture],
    }


def golden_pixels(images: Sequence[str]) -> torch.Tensor:
    """The pictures (I, 3, 768, 768) uint8."""
    processor = ImageProcessor(str(golden_path("tiny/clip")), IMAGE_SIZE)
    pictures = [processor.pixels(processor.open(golden_path(f"c_images/{Path(image).name}"))) for image in images]
    return torch.stack(pictures) if pictures else torch.zeros((0, 3, IMAGE_SIZE, IMAGE_SIZE), dtype=torch.uint8)
