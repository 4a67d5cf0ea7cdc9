"""MG-LLaVA: low resolution, high resolution and objects, spliced into a language model's input."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers import PreTrainedModel

from mg_llava.model.batch import BatchPreprocessor
from mg_llava.model.checkpoint_names import own_names
from mg_llava.model.flops import StepFlops
from mg_llava.model.splice import splice
from mg_llava.model.vision import CONNECTORS, ENCODERS, VisionSide, check_parts
from mg_llava.pictures.pooling import FramePooling
from xtuner.errors import XTunerError
from xtuner.log import get_logger
from xtuner.model.base import TrainableParts
from xtuner.model.files.base import open_on_base
from xtuner.model.files.checkpoints import LoadReport, load_parts, refuse_left_adapters
from xtuner.model.flops import CostWeights
from xtuner.model.generation import end_ids, take_generation
from xtuner.model.head import check_fused_loss, supervised_logits, supervised_loss
from xtuner.model.layers import checkpoint_activations, checkpointing_layers, compile_modules
from xtuner.model.meta import in_meta_init
from xtuner.registry import build


class MGLLaVA(TrainableParts):
    """The model of MG-LLaVA (arXiv 2406.17770), and without its high-resolution parts the LLaVA-1.5 baseline.

    The forward pass, and the order of everything here:

    1.–5. the vision side (see `VisionSide`): low-resolution encoder, high-resolution encoder, fusion, projector, object
       encoder: pictures (I, 3, S, S) → image tokens (I, V, D) and object tokens (ΣN, D);
    6. splice: each ``<image>`` becomes its V image tokens and then its object tokens; frames of videos may have fewer
       (`frame_pooling`);
    7. language model: loss on supervised tokens, logits, or new tokens.

    Args:
        llm: node of or built causal language model of transformers.
        low_res_encoder, high_res_encoder, fusion, projector, object_encoder: nodes or built parts. Sizes are
            passed on at build: fusion reads the encoders' channels, projector and object encoder also the
            language model's width. Without a high-resolution encoder there is neither fusion nor object encoder;
            with one there is at least one of them. Without fusion the image tokens are low resolution only.
        trainable: what is trained: parts, and patterns of weights in them (``low_res_encoder.layers.20-``, or a
            regular expression); see `xtuner.model.selection.matching`.
        llm_lora, visual_encoder_lora: node of or built ``peft.LoraConfig``: trains adapters in the language model or
            in the low-resolution encoder instead of their weights. Without ``target_modules`` all linear layers but
            the head get one.
        pack: train on a batch's samples joined in one row, without padding, instead of on padded rows. Pays with flash
            attention; elsewhere the dense mask of a long row can cost more than the padding.
        activation_checkpointing: recompute the layers of the language model and of trained encoders in the backward
            pass instead of keeping them; a number is the share of layers, see `checkpoint_activations`.
        compile: compile both encoders and each layer of the language model (``torch.compile``); a string names the
            backend.
        fused_loss: head and loss in one kernel of liger-kernel; needs a GPU, and leaves single sources' losses out.
        frame_pooling: node of or built `FramePooling`: joins the image tokens of videos' frames. The image processor
            gets the same one, for the lengths.
        pretrained_pth: checkpoint to start from, with this model's or the published one's names; it must hold
            the connecting parts, and may hold the language model.

    Attributes:
        vision: steps 1–5, made of this model's own parts.
        asked_generation: what the language model's ``generation_config.json`` says; nothing of it acts but `end_ids`.
        end_ids: ids that end an answer, by that file.

    Raises:
        XTunerError: parts that do not fit together or are half given, or a checkpoint that does not fit.
    """

    vision: VisionSide

    part_names = (*ENCODERS, *CONNECTORS, "llm")

    def __init__(
        self,
        llm: Mapping[str, Any] | PreTrainedModel,
        low_res_encoder: Mapping[str, Any] | nn.Module,
        projector: Mapping[str, Any] | nn.Module,
        high_res_encoder: Mapping[str, Any] | nn.Module | None = None,
        fusion: Mapping[str, Any] | nn.Module | None = None,
        object_encoder: Mapping[str, Any] | nn.Module | None = None,
        trainable: Collection[str] = CONNECTORS,
        llm_lora: Mapping[str, Any] | Any = None,
        visual_encoder_lora: Mapping[str, Any] | Any = None,
        pack: bool = False,
        activation_checkpointing: bool | float = True,
        compile: bool | str = False,
        fused_loss: bool = False,
        frame_pooling: Mapping[str, Any] | FramePooling | None = None,
        pretrained_pth: str | None = None,
    ) -> None:
        super().__init__()
        low, high = build(low_res_encoder), build(high_res_encoder)
        # before the language model, whose weights take longest to read
        check_parts(low, high, fusion, object_encoder)
        self.low_res_encoder, self.high_res_encoder = low, high
        self.llm = build(llm)
        self.asked_generation = take_generation(self.llm)
        self.end_ids = end_ids(self.asked_generation)
        width = self.llm.get_input_embeddings().embedding_dim
        vision = VisionSide(low, projector, width, high, fusion, object_encoder, frame_pooling)
        # not a submodule: its parts are, under their own names, which are the names of the weights in checkpoints
        object.__setattr__(self, "vision", vision)
        self.fusion, self.object_encoder, self.projector = vision.fusion, vision.object_encoder, vision.projector
        self.data_preprocessor = self._build_preprocessor(pack)
        for part, setting, lora in (
            ("llm", "llm_lora", llm_lora),
            ("low_res_encoder", "visual_encoder_lora", visual_encoder_lora),
        ):
            if lora is not None:
                self.add_adapters(part, build(lora), setting)
        self.set_trainable(trainable)
        for part in ("llm", *self.vision.trained):
            checkpoint_activations(getattr(self, part), float(activation_checkpointing))
        self._flops: StepFlops | None = None
        self.fused_loss = fused_loss
        if fused_loss and not in_meta_init():
            check_fused_loss(self.llm)
        if compile and not in_meta_init():
            self.compile_parts(compile if isinstance(compile, str) else "inductor")
        if pretrained_pth is not None and not in_meta_init():
            self.load_checkpoint(pretrained_pth)

    def _build_preprocessor(self, pack: bool) -> BatchPreprocessor:
        vision = self.vision
        return BatchPreprocessor(
            vision.make_normalizer(),
            image_size=vision.image_size,
            low_res_size=vision.low_res_size,
            image_tokens=vision.image_tokens,
            vocab_size=self.llm.get_input_embeddings().num_embeddings,
            with_objects=vision.with_objects,
            pack=pack,
        )

    def compile_parts(self, backend: str = "inductor") -> None:
        """Compiles both encoders, for any number of pictures, and each layer of the language model, for any length."""
        encoders = [part for part in (self.low_res_encoder, self.high_res_encoder) if part is not None]
        compile_modules(encoders, backend, any_size=False)
        compile_modules(checkpointing_layers(self.llm), backend)

    def set_trainable(self, names: Collection[str]) -> None:
        """Trains what `names` say, freezes all else; see `TrainableParts.set_trainable`.

        Raises:
            XTunerError: an unknown part, a pattern that matches nothing or everything, or a quantised language model.
        """
        super().set_trainable(names)
        self.vision.set_trained(name for name in ENCODERS if name in self.trainable)
        if "llm" in self.trainable and "llm" not in self._adapters and getattr(self.llm, "is_quantized", False):
            raise XTunerError(
                "the language model is quantised, so its weights cannot be trained: give llm_lora as well."
            )

    def train(self, mode: bool = True) -> MGLLaVA:
        """Sets the mode of the trained parts; a frozen language model still recomputes its layers if asked to."""
        super().train(mode)
        if "llm" in self.parts():
            # transformers only recomputes layers in train mode; their dropout below stays in eval mode
            for layer in checkpointing_layers(self.llm):
                layer.training = mode
        return self

    def step_flops(self, batch: Mapping[str, Any]) -> float:
        """Returns the floating-point operations of forward and backward pass for a collated batch."""
        return self._step_flops()(batch)

    def cost_weights(self) -> CostWeights:
        """Returns the floating-point operations that a sample takes, by its tokens and pictures."""
        return self._step_flops().weights()

    def _step_flops(self) -> StepFlops:
        if self._flops is None:
            self._flops = StepFlops(self.parts(), self.trainable, self.vision.image_tokens.frame)
        return self._flops

    def has_rare_inputs(self, batch: Mapping[str, Any]) -> bool:
        """True for a collated batch with pictures."""
        pixels = batch.get("pixel_values")
        return pixels is not None and len(pixels) > 0

    def keep_in_step(self, batch: dict[str, Any], elsewhere: bool, partitioned: bool) -> dict[str, Any]:
        """Adds a blank picture, which nothing sees, where the encoders have to run as they do on other ranks."""
        trained = bool(self.vision.trained)
        return {**batch, "blank_picture": (elsewhere or trained) if partitioned else (elsewhere and trained)}

    def load_checkpoint(
        self,
        path: str | Path,
        required: Collection[str] | None = None,
        base: str | Path | None = None,
        configured: str | Path | None = None,
    ) -> LoadReport:
        """Loads weights into the parts that a checkpoint holds, or stands on, and logs the report.

        Args:
            path: anything `read_state_dict` reads, with this model's or the published names.
            required: parts that must be in it, where its model is wanted as it was trained; by default fusion,
                projector and object encoder, to start from, but for those that its model had none of.
            base, configured: where what it stands on is; see `open_on_base`.

        Raises:
            XTunerError: a part is absent, incomplete or of another shape, or the checkpoint stands on other weights.
        """
        weights, stands_on, held, partial = open_on_base(path, own_names, base, configured)
        state = {name: weight.load() for name, weight in weights.items()}
        whole = required is not None
        parts = self.parts()
        if required is None:
            new = (stands_on or {}).get("new_parts", ())
            required = [name for name in CONNECTORS if name in parts and name not in new]
        partial |= self.partly_held(state)
        report = load_parts(parts, state, required, f"checkpoint '{path}'", self._adapters, partial)
        report.log(str(path))
        refuse_left_adapters(report, path)
        self.from_checkpoint = frozenset(report.loaded_parts) & parts.keys()
        if not whole and (begun := [name for name in CONNECTORS if name in parts and name not in report.loaded_parts]):
            get_logger().info("%s has no %s: training starts them anew", path, ", ".join(begun))
        if stands_on is not None:
            # adapters are of use on their own base alone; connectors may be tried on another one
            strict = parts if whole else [name for name in parts if f"{name} adapters" in report.loaded_parts]
            self.check_base(stands_on, path, strict, held)
        return report

    def forward(
        self,
        input_ids: torch.Tensor,
        high_pixels: torch.Tensor,
        low_pixels: torch.Tensor,
        boxes: Sequence[torch.Tensor],
        image_positions: torch.Tensor,
        object_positions: torch.Tensor,
        target_positions: torch.Tensor,
        targets: torch.Tensor,
        labels: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        target_sources: torch.Tensor | None = None,
        blank_picture: bool = False,
        frames: Sequence[bool] = (),
        mode: str = "loss",
    ) -> Any:
        """Runs a batch as `data_preprocessor` makes it: `SplicePlan`'s tensors, pixels and boxes.

        Samples are padded on the right, where no token can see the padding, or packed with restarting positions, which
        keep them apart in transformers' models; so the language model needs no mask.

        Args:
            target_sources: (S, K) one-hot source of each target.
            blank_picture: run the encoders although there are no pictures; see `keep_in_step`.
            frames: which pictures are frames of videos; needed where these are pooled.
            mode: ``loss`` or ``logits``.

        Returns:
            ``loss``: ``loss_sum``, the summed cross entropy of the supervised tokens in float32, and
                ``num_supervised``; with `target_sources` ``by_source`` (2, K), both of each source.
            ``logits``: (B, T', vocabulary).
        """
        places = (image_positions, object_positions)
        embeds = self.embed(input_ids, high_pixels, low_pixels, boxes, *places, blank_picture, frames)
        if mode == "logits":
            return self.llm(inputs_embeds=embeds, position_ids=position_ids, use_cache=False).logits
        if mode != "loss":
            raise XTunerError(f"mode is '{mode}': expected 'loss' or 'logits'.")
        losses: dict[str, torch.Tensor] = {}
        if target_sources is None or self.fused_loss:
            loss = supervised_loss(self.llm, embeds, position_ids, target_positions, targets, self.fused_loss)
        else:
            logits = supervised_logits(self.llm, embeds, position_ids, target_positions).float()
            loss = functional.cross_entropy(logits, targets, reduction="sum")
            each = functional.cross_entropy(logits.detach(), targets, reduction="none")
            losses["by_source"] = torch.stack([each @ target_sources, target_sources.sum(dim=0)])
        return {"loss_sum": loss, "num_supervised": torch.ones_like(targets).sum(), **losses}

    def embed(
        self,
        input_ids: torch.Tensor,
        high_pixels: torch.Tensor,
        low_pixels: torch.Tensor,
        boxes: Sequence[torch.Tensor],
        image_positions: torch.Tensor,
        object_positions: torch.Tensor,
        blank_picture: bool = False,
        frames: Sequence[bool] = (),
    ) -> torch.Tensor:
        """Steps 1–6: what the language model reads, (B, T', D)."""
        image_tokens, object_tokens = self.vision.encode(high_pixels, low_pixels, boxes, blank_picture)
        runs = self.vision.pool(image_tokens, frames)
        image_tokens = runs[0] if len(runs) == 1 else torch.cat([run.flatten(0, 1) for run in runs])
        text_embeds = self.llm.get_input_embeddings()(input_ids)
        return splice(text_embeds, image_tokens, object_tokens, image_positions, object_positions)

    # not inference_mode: evaluation during training must leave no tensors behind that autograd refuses
    @torch.no_grad()
    def generate(
        self,
        input_ids: torch.Tensor,
        pixel_values: torch.Tensor | None = None,
        boxes: Sequence[torch.Tensor] | None = None,
        attention_mask: torch.Tensor | None = None,
        **generation: Any,
    ) -> torch.Tensor:
        """Generates after prompts; steps 1–7 as in training.

        Args:
            input_ids: (B, T) on the CPU, `IMAGE_TOKEN_INDEX` at each picture's place, padded on either side.
            pixel_values: (I, 3, S, S) uint8, all pictures in order.
            boxes: I tensors (N, 4), xyxy in pixels of the S frame.
            attention_mask: (B, T), True = a token; all, if not given.
            generation: arguments of transformers' ``generate``, ``max_new_tokens`` for instance.

        Returns:
            (B, T_new) ids of the new tokens only, padded after each answer's end.
        """
        data = {
            "input_ids": input_ids,
            "pixel_values": pixel_values,
            "boxes": boxes,
            "attention_mask": attention_mask,
        }
        batch = self.data_preprocessor(data, training=False, pad_left=True)
        for unused in ("labels", "position_ids", "target_positions", "targets"):
            batch.pop(unused)
        mask = batch.pop("attention_mask")
        # in step with other processes, which may have pictures, the encoders run here too
        embeds = self.embed(**batch, blank_picture=generation.get("synced_gpus", False))
        return self.llm.generate(inputs_embeds=embeds, attention_mask=mask.long(), **generation)
