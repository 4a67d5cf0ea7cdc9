"""The model as transformers knows it: ``AutoModelForImageTextToText`` loads it, ``generate`` and Trainer run it."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from transformers import GenerationConfig, GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from mg_llava.hf.configuration import MGLLaVAConfig
from mg_llava.hf.parts import PART_NAMES, build_text, build_vision
from mg_llava.hf.quantization import unpack
from mg_llava.model.encoders import ENCODER_CLASSES
from mg_llava.model.splice import placeholder_positions
from mg_llava.model.vision import ENCODERS
from mg_llava.pictures.frames import sides
from mg_llava.pictures.normalize import PixelNormalizer
from xtuner.constants import IGNORE_INDEX
from xtuner.errors import XTunerError
from xtuner.model.meta import meta_init
from xtuner.registry import build

_SHOWN = 5
_ALIGNMENT = 64
_TIMM_REFILL = "init_non_persistent_buffers"


class MGLLaVAForConditionalGeneration(PreTrainedModel, GenerationMixin):
    """`MGLLaVA` behind transformers' interface; the parts and the forward pass are that model's own.

    ``input_ids`` come from `MGLLaVAProcessor`: each picture takes V placeholders (``config.image_token_id``) and then
    one per box. Loading refuses a folder that lacks weights or has unknown ones, where transformers would only warn.

    Args:
        config: of the folder; see `MGLLaVAConfig`.

    Attributes:
        core: the training model, made of the same parts.
    """

    # torch types attributes of modules as tensors or modules, transformers its own as configs
    core: Any
    llm: Any
    data_preprocessor: Any

    config_class = MGLLaVAConfig
    base_model_prefix = ""
    main_input_name = "input_ids"
    input_modalities = ["image", "text"]
    supports_gradient_checkpointing = True
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = _supports_attention_backend = True
    _no_split_modules = [*ENCODER_CLASSES, "ConvGateFusion", "ObjectEncoder", "MLPProjector"]
    _skip_keys_device_placement = ["past_key_values", "cache"]

    def __init__(self, config: MGLLaVAConfig) -> None:
        super().__init__(config)
        core = _build_core(config)
        # not a submodule: its parts are, under their own names, which are the names of the weights in the files
        object.__setattr__(self, "core", core)
        for name, part in core.parts().items():
            setattr(self, name, part)
        self.data_preprocessor = core.data_preprocessor
        self.post_init()

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """As in transformers, with ``device_map``, ``dtype``, ``quantization_config`` and the rest of its arguments.

        Without a ``dtype`` each part gets the one it was saved in. Quantisation concerns the language model only.

        Raises:
            XTunerError: no exported folder, one of another version, or weights are absent or unknown.
        """
        wants_info = kwargs.pop("output_loading_info", False)
        config = kwargs.pop("config", None)
        if not isinstance(config, MGLLaVAConfig):
            hub = {key: kwargs[key] for key in ("cache_dir", "revision", "token", "local_files_only") if key in kwargs}
            config = MGLLaVAConfig.from_pretrained(pretrained_model_name_or_path, **hub)
        config.check(str(pretrained_model_name_or_path))
        if kwargs.get("dtype", kwargs.get("torch_dtype")) not in (None, "auto"):
            config.part_dtypes = {}
        quantization = kwargs.get("quantization_config")
        if quantization is not None and getattr(quantization, "llm_int8_skip_modules", False) is None:
            quantization.llm_int8_skip_modules = [*(name for name in PART_NAMES if name != "llm"), "lm_head"]
        loaded: Any = super().from_pretrained(
            pretrained_model_name_or_path, *args, config=config, output_loading_info=True, **kwargs
        )
        model, info = loaded
        _refuse_other_weights(info, str(pretrained_model_name_or_path))
        unpack(model)
        _align(model)
        return (model, info) if wants_info else model

    def _init_weights(self, module: torch.nn.Module) -> None:
        # parts start as their own constructors say, and are never left to chance when loaded
        if isinstance(module, PixelNormalizer):
            module.reset_constants()
        elif _holds_timm_tables(module):
            if not hasattr(module, _TIMM_REFILL):
                raise XTunerError(
                    f"{type(module).__name__} of the installed timm cannot fill its tables again after loading: "
                    "install a newer timm."
                )
            getattr(module, _TIMM_REFILL)()

    def train(self, mode: bool = True) -> MGLLaVAForConditionalGeneration:
        """Sets the mode; the encoders stay in eval mode, as in training."""
        super().train(mode)
        self.core.train(mode)
        return self

    def get_input_embeddings(self) -> torch.nn.Module:
        """The language model's."""
        return self.llm.get_input_embeddings()

    def set_input_embeddings(self, value: torch.nn.Module) -> None:
        """Replaces the language model's."""
        self.llm.set_input_embeddings(value)

    def get_output_embeddings(self) -> torch.nn.Module:
        """The language model's head."""
        return self.llm.get_output_embeddings()

    def set_output_embeddings(self, value: torch.nn.Module) -> None:
        """Replaces the language model's head."""
        self.llm.set_output_embeddings(value)

    def embed(
        self,
        input_ids: torch.Tensor,
        pixel_values: torch.Tensor | None = None,
        boxes: torch.Tensor | None = None,
        box_counts: torch.Tensor | None = None,
        is_frame: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Steps 1–6 of `MGLLaVA`: what the language model reads, (B, T, D).

        Args:
            input_ids: (B, T) with a placeholder for each image and object token.
            pixel_values: (I, 3, S, S) uint8, all pictures in order.
            boxes: (ΣN, 4) xyxy in pixels of the S frame, picture after picture.
            box_counts: (I,) boxes of each picture; None = no boxes.
            is_frame: (I,) bool, which pictures are frames of videos, as the processor says where these are pooled;
                None = none.

        Raises:
            XTunerError: pictures of another size, or the numbers do not fit together.
        """
        preprocessor = self.core.data_preprocessor
        is_image = input_ids == self.config.image_token_id
        if pixel_values is None:
            pixel_values = torch.zeros((0, 3, *sides(preprocessor.image_size)), dtype=torch.uint8)
        counts = [0] * len(pixel_values) if box_counts is None else [int(count) for count in box_counts.tolist()]
        if boxes is None:
            boxes = torch.zeros((0, 4))
        frames = [False] * len(pixel_values) if is_frame is None else [bool(one) for one in is_frame.tolist()]
        if sum(counts) != len(boxes) or not len(counts) == len(pixel_values) == len(frames):
            raise XTunerError(
                f"{len(pixel_values)} pictures, {len(counts)} box_counts of {sum(counts)}, {len(boxes)} boxes and "
                f"{len(frames)} is_frame: give box_counts one number per picture, which together are the boxes, and "
                "is_frame one value per picture."
            )
        each = self.core.vision.image_tokens
        image_counts = [each.frame if one else each.picture for one in frames]
        image_positions, object_positions = placeholder_positions(is_image, image_counts, counts)
        preprocessor.check_pixels(pixel_values)
        high, low = preprocessor.normalizer(pixel_values.to(preprocessor.device), preprocessor.low_res_size)
        device_boxes = list(boxes.to(preprocessor.device, torch.float32).split(counts)) if counts else []
        # placeholders may lie beyond the table; what stands there is replaced
        ids = input_ids.masked_fill(is_image, 0)
        return self.core.embed(ids, high, low, device_boxes, image_positions, object_positions, frames=frames)

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        boxes: torch.Tensor | None = None,
        box_counts: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        is_frame: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Logits and, with `labels`, the mean loss.

        Args:
            input_ids, pixel_values, boxes, box_counts, is_frame: see `embed`.
            attention_mask: (B, T), 1 = a token.
            position_ids: (B, T); by default counted from each row's first token.
            inputs_embeds: (B, T, D) in place of ids and pictures.
            labels: (B, T), -100 where not supervised; placeholders never are.
            kwargs: of the language model's forward (cache, use_cache, logits_to_keep, …).
        """
        if inputs_embeds is None:
            if input_ids is None:
                raise XTunerError("neither input_ids nor inputs_embeds: give what the processor returns.")
            if labels is not None:
                labels = labels.masked_fill(input_ids == self.config.image_token_id, IGNORE_INDEX)
            inputs_embeds = self.embed(input_ids, pixel_values, boxes, box_counts, is_frame)
        if position_ids is None and attention_mask is not None and attention_mask.shape[1] == inputs_embeds.shape[1]:
            position_ids = (attention_mask.long().cumsum(1) - 1).clamp(min=0)
        return self.llm(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            labels=labels,
            **kwargs,
        )

    @torch.no_grad()
    def generate(
        self,
        input_ids: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        boxes: torch.Tensor | None = None,
        box_counts: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        is_frame: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """As in transformers: prompt and answer, (B, T + T_new), or its output object where asked for.

        The pictures are encoded once, also with beams; the language model then generates by its own ``generate``.

        Args:
            input_ids, pixel_values, boxes, box_counts, is_frame: see `embed`.
            attention_mask: (B, T), 1 = a token; padding stands on the left.
            generation_config: default: the folder's.
            kwargs: of ``generate``: max_new_tokens, num_beams, do_sample, streamer, …; they go before the config.
        """
        input_ids = kwargs.pop("inputs", None) if input_ids is None else input_ids
        if input_ids is None:
            raise XTunerError("generate has no input_ids: give what the processor returns.")
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask.long()
        embeds = self.embed(input_ids, pixel_values, boxes, box_counts, is_frame)
        config = copy.deepcopy(self.generation_config if generation_config is None else generation_config)
        # transformers is about to refuse a config and arguments of it together
        kwargs = config.update(**kwargs)
        rows = self.get_input_embeddings().num_embeddings
        if self.config.image_token_id >= rows:
            # penalties look ids up in the logits
            input_ids = input_ids.masked_fill(input_ids == self.config.image_token_id, self._padding_id(config))
        return self.llm.generate(
            input_ids=input_ids.to(embeds.device),
            inputs_embeds=embeds,
            attention_mask=mask.to(embeds.device),
            generation_config=config,
            **kwargs,
        )

    @staticmethod
    def _padding_id(config: GenerationConfig) -> int:
        pad = config.pad_token_id
        return int(pad) if isinstance(pad, int) else 0


def _build_core(config: MGLLaVAConfig) -> Any:
    """Builds the training model's parts from the config alone, without weights."""
    trainable = [name for name in PART_NAMES if name not in ENCODERS]
    with meta_init(device=None):
        # frame_pooling, which has no weights, stands in config.parts
        parts = {**build_vision(config).parts(), "llm": build_text(config)}
        core = build({**config.parts, **parts, "trainable": trainable, "pretrained_pth": None})
    core.end_ids = tuple(config.stop_token_ids)
    core.data_preprocessor.normalizer = PixelNormalizer(**config.pixels)
    return core


def _holds_timm_tables(module: torch.nn.Module) -> bool:
    """True for a module of timm with buffers that no file holds: window indices, rotary angles."""
    return type(module).__module__.startswith("timm.") and bool(module._non_persistent_buffers_set)


@torch.no_grad()
def _align(model: torch.nn.Module) -> None:
    """Copies weights that lie at odd addresses, as in a mapped file: CPU kernels are slower there and round
    differently.
    """
    for parameter in model.parameters():
        if parameter.device.type == "cpu" and parameter.data_ptr() % _ALIGNMENT:
            parameter.data = parameter.data.clone()


def _refuse_other_weights(info: Mapping[str, Any], where: str) -> None:
    """Transformers fills absent weights with random numbers and warns; a wrong answer is worse than none."""
    problems = []
    for kind, word in (("missing_keys", "lacks"), ("unexpected_keys", "has unknown"), ("mismatched_keys", "has other")):
        names = sorted(str(name) for name in info.get(kind) or ())
        if names:
            more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
            problems.append(f"{word} {len(names)} weights of its model: {', '.join(names[:_SHOWN])}{more}")
    if problems:
        raise XTunerError(
            f"'{where}' " + "; it ".join(problems) + ". Copy the whole folder again, or convert the checkpoint again."
        )
