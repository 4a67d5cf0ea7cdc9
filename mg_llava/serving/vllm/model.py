"""MG-LLaVA as vLLM runs it: the vision side of training, and vLLM's own language model."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from vllm.config import VllmConfig
from vllm.model_executor.models.interfaces import MultiModalEmbeddings, SupportsMultiModal, SupportsPP
from vllm.model_executor.models.module_mapping import MultiModelKeys
from vllm.model_executor.models.utils import (
    AutoWeightsLoader,
    WeightsMapper,
    init_vllm_registered_model,
    maybe_prefix,
)
from vllm.multimodal import MULTIMODAL_REGISTRY

from mg_llava.hf.configuration import MGLLaVAConfig
from mg_llava.hf.parts import build_vision, saved_dtype
from mg_llava.model.vision import CONNECTORS, ENCODERS
from mg_llava.pictures.normalize import PixelNormalizer
from mg_llava.serving.vllm.processing import DummyInputs, ProcessingInfo, Processor
from xtuner.constants import IMAGE_TOKEN
from xtuner.data.text.rendered import VIDEO_PLACE
from xtuner.errors import XTunerError

_LLM = "language_model"


@MULTIMODAL_REGISTRY.register_processor(Processor, info=ProcessingInfo, dummy_inputs=DummyInputs)
class MGLLaVAForConditionalGeneration(nn.Module, SupportsMultiModal, SupportsPP):
    """An exported folder in vLLM.

    The vision side is whole on each rank of tensor parallel; the language model is vLLM's class for its architecture,
    split as vLLM splits it.

    Args:
        vllm_config: of the engine; its ``hf_config`` is the folder's `MGLLaVAConfig`.
        prefix: of this model's modules.
    """

    packed_modules_mapping = {"qkv_proj": ["q_proj", "k_proj", "v_proj"], "gate_up_proj": ["gate_proj", "up_proj"]}
    hf_to_vllm_mapper = WeightsMapper(
        orig_to_new_prefix={"llm.": f"{_LLM}.", **{f"{part}.": f"vision.{part}." for part in (*ENCODERS, *CONNECTORS)}}
    )

    language_model: Any
    # vLLM's, which is not there where types are checked
    configure_mm_token_handling: Any
    _mark_tower_model: Any
    _mark_language_model: Any

    @classmethod
    def get_placeholder_str(cls, modality: str, i: int) -> str | None:
        """What stands for a picture or a video in a text."""
        if modality.startswith("image"):
            return IMAGE_TOKEN
        if modality.startswith("video"):
            return VIDEO_PLACE
        raise XTunerError(f"a request has a part of kind {modality!r}: expected text, pictures and videos.")

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__()
        model_config = vllm_config.model_config
        config: MGLLaVAConfig = model_config.hf_config
        config.check(model_config.model)
        self.config = config
        text: Any = config.text_config
        self.configure_mm_token_handling(text.vocab_size, [config.image_token_id])
        # each part as it was saved, unless another format was asked for
        dtype = None if saved_dtype(config, "llm") == model_config.dtype else model_config.dtype
        with self._mark_tower_model(vllm_config, "image"):
            self.vision = build_vision(config, dtype).eval().requires_grad_(False)
        self.normalizer = PixelNormalizer(**config.pixels)
        with self._mark_language_model(vllm_config):
            self.language_model = init_vllm_registered_model(
                vllm_config=vllm_config, hf_config=text, prefix=maybe_prefix(prefix, _LLM)
            )
        self.make_empty_intermediate_tensors = self.language_model.make_empty_intermediate_tensors

    def embed_multimodal(self, **kwargs: object) -> MultiModalEmbeddings:
        """Returns what the language model reads in place of each picture: (V + N, D), image then object tokens; and of
        each video: those of its frames, one behind the other.
        """
        found: list[torch.Tensor] = []
        if kwargs.get("pixel_values") is not None:
            frames = list(map(bool, _numbers(kwargs["is_frame"])))
            found += self._embed(kwargs["pixel_values"], kwargs["boxes"], kwargs["box_counts"], frames)
        if kwargs.get("video_pixel_values") is not None:
            of_frames = iter(
                self._embed(kwargs["video_pixel_values"], kwargs["video_boxes"], kwargs["video_box_counts"])
            )
            for length in _numbers(kwargs["video_frame_counts"]):
                found.append(torch.cat([next(of_frames) for _ in range(length)]))
        return found

    def _embed(self, pixels: Any, boxes: Any, given: Any, frames: list[bool] | None = None) -> list[torch.Tensor]:
        """Tokens of each picture; all are frames where `frames` does not say."""
        pixels = pixels if isinstance(pixels, torch.Tensor) else _joined(pixels)
        boxes = boxes if isinstance(boxes, torch.Tensor) else torch.cat(list(boxes))
        counts = _numbers(given)
        device = self.normalizer.constant_bits.device
        high, low = self.normalizer(pixels.to(device), self.vision.low_res_size)
        per_picture = boxes.reshape(-1, 4).to(device, torch.float32).split(counts)
        image_tokens, object_tokens = self.vision.encode(high, low, list(per_picture))
        objects = object_tokens.to(image_tokens).split(counts)
        frames = [True] * len(counts) if frames is None else frames
        images = [tokens for run in self.vision.pool(image_tokens, frames) for tokens in run]
        return [torch.cat(tokens) for tokens in zip(images, objects, strict=True)]

    def forward(
        self,
        input_ids: torch.Tensor | None,
        positions: torch.Tensor,
        intermediate_tensors: Any = None,
        inputs_embeds: torch.Tensor | None = None,
        **_: object,
    ) -> Any:
        """Hidden states of the language model, as vLLM asks for them."""
        if intermediate_tensors is not None:
            inputs_embeds = None
        return self.language_model.model(input_ids, positions, intermediate_tensors, inputs_embeds=inputs_embeds)

    def compute_logits(self, hidden_states: torch.Tensor) -> torch.Tensor | None:
        """Logits of hidden states."""
        return self.language_model.compute_logits(hidden_states)

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        """Loads a folder's weights and returns the names of those that were filled."""
        self.normalizer.reset_constants()
        return AutoWeightsLoader(self).load_weights(weights, mapper=self.hf_to_vllm_mapper)

    def get_mm_mapping(self) -> MultiModelKeys:
        """Which module is what."""
        return MultiModelKeys.from_string_field(
            language_model=_LLM,
            connector=[f"vision.{part}" for part in CONNECTORS],
            tower_model=[f"vision.{part}" for part in ENCODERS],
        )


def _joined(pixels: Any) -> torch.Tensor:
    """(I, 3, S, S) of pictures or of runs of them."""
    side_by_side = 4
    return torch.cat([one if one.ndim == side_by_side else one.unsqueeze(0) for one in pixels])


def _numbers(given: Any) -> list[int]:
    """Whole numbers of a tensor or of several."""
    tensors = [given] if isinstance(given, torch.Tensor) else [torch.as_tensor(one) for one in given]
    return [int(number) for tensor in tensors for number in tensor.flatten().tolist()]
