"""Floating-point operations of a step of MG-LLaVA, by the rules of `xtuner.model.flops`."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from xtuner.constants import FRAME_TOKEN_INDEX, IGNORE_INDEX, IMAGE_TOKEN_INDEX
from xtuner.memory_estimate import read_decoder
from xtuner.model.flops import CostWeights, attention_flops, weight_flops
from xtuner.model.meta import meta_init

if TYPE_CHECKING:
    from mg_llava.model.encoders import HighResEncoder, LowResEncoder


class StepFlops:
    """Counts a collated batch's FLOPs from its shapes alone; what does not change is counted once.

    Args:
        parts: of the model by name; absent ones left out.
        trainable: names of those that are trained.
        num_frame_tokens: image tokens of a frame of a video, which the language model reads; None = as of a picture.
    """

    def __init__(
        self, parts: Mapping[str, Any], trainable: Collection[str], num_frame_tokens: int | None = None
    ) -> None:
        low, llm = parts["low_res_encoder"], parts["llm"]
        self.num_image_tokens = low.num_tokens
        self.num_frame_tokens = low.num_tokens if num_frame_tokens is None else num_frame_tokens
        self.with_objects = "object_encoder" in parts
        self.per_picture = low_res_flops(low, "low_res_encoder" in trainable)
        self.per_picture += weight_flops(parts["projector"]) * self.num_image_tokens
        if "high_res_encoder" in parts:
            self.per_picture += high_res_flops(parts["high_res_encoder"], "high_res_encoder" in trainable)
        if "fusion" in parts:
            convolutions = [layer for layer in parts["fusion"].modules() if isinstance(layer, nn.Conv2d)]
            self.per_picture += sum(weight_flops(layer) for layer in convolutions) * self.num_image_tokens
        self.per_box = weight_flops(parts["object_encoder"]) if self.with_objects else 0.0
        head = cast(nn.Module, llm.get_output_embeddings())
        self.per_supervised = weight_flops(head)
        self.per_token = weight_flops(llm) - self.per_supervised
        sizes = read_decoder(llm.config)
        self.layers = sizes.layers
        heads = llm.config.num_attention_heads
        self.attention_width = heads * (getattr(llm.config, "head_dim", None) or sizes.width // heads)

    def weights(self) -> CostWeights:
        """Returns the FLOPs of a sample by its tokens and pictures.

        Which of the tokens are boxes or carry loss is not known there: both cost little beside the language model.
        """
        pair = attention_flops(self.attention_width, self.layers, 0.5)
        return CostWeights(self.per_token, float(self.per_picture), pair)

    def __call__(self, batch: Mapping[str, Any]) -> float:
        """Returns the FLOPs of forward and backward pass for a collated batch on the CPU."""
        mask = batch["attention_mask"].bool()
        is_frame = (batch["input_ids"] == FRAME_TOKEN_INDEX) & mask
        is_image = ((batch["input_ids"] == IMAGE_TOKEN_INDEX) & mask) | is_frame
        boxes = batch.get("boxes") if self.with_objects else None
        counts = torch.tensor([len(box) for box in boxes] if boxes is not None else [0] * int(is_image.sum()))
        widths = mask.double()
        images = torch.where(is_frame[is_image], self.num_frame_tokens, self.num_image_tokens)
        widths[is_image] = (images + counts).double()
        lengths = widths.sum(dim=1)
        supervised = int((batch["labels"][:, 1:] != IGNORE_INDEX).sum())
        return (
            self.per_picture * int(is_image.sum())
            + self.per_box * int(counts.sum())
            + self.per_token * float(lengths.sum())
            + attention_flops(self.attention_width, self.layers, float((lengths**2).sum()) / 2)
            + self.per_supervised * supervised
        )


def low_res_flops(encoder: LowResEncoder, trained: bool) -> float:
    """FLOPs of one picture in the low-resolution encoder: patches, layers, attention of all tokens with all."""
    tokens = encoder.num_tokens + encoder.num_prefix_tokens
    layers = list(encoder.layers)
    in_layers = {id(module) for layer in layers for module in layer.modules()}
    others = [module for module in encoder.modules() if id(module) not in in_layers and not list(module.children())]
    patches = sum(weight_flops(module, backward=False) for module in others) * encoder.num_tokens
    work = sum(weight_flops(layer, backward=trained) for layer in layers) * tokens
    return patches + work + attention_flops(encoder.channels, len(layers), tokens**2, trained)


def high_res_flops(encoder: HighResEncoder, trained: bool = False) -> float:
    """FLOPs of one picture in the high-resolution encoder, counted in a pass of its shape alone."""
    with meta_init(), FlopCounterMode(display=False) as counter, torch.set_grad_enabled(trained):
        shape = type(encoder)(encoder.exported_config(), encoder.image_size).eval()
        wanted = {name for name, weight in encoder.named_parameters() if weight.requires_grad}
        for name, weight in shape.named_parameters():
            weight.requires_grad_(name in wanted)
        total = sum(stage.sum() for stage in shape(encoder.blank_picture()))
        if trained:
            total.backward()
    return float(counter.get_total_flops())
