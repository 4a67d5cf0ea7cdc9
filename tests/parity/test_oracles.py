"""Independent oracles from the libraries: transformers' LLaVA, timm's intermediates, and each sample by
itself.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from transformers import LlavaConfig, LlavaForConditionalGeneration

from mg_llava.model import MGLLaVA
from mg_llava.model.encoders import HighResEncoder, read_trunk_config
from tests.tiny_parts import HIGH_SIZE, LOW_SIZE, VOCAB, tiny_batch, tiny_convnext_folder, tiny_model
from xtuner.constants import IMAGE_TOKEN_INDEX
from xtuner.model.meta import meta_init


def hf_llava(model: MGLLaVA, clip_folder: Path, image_token: int) -> LlavaForConditionalGeneration:
    """transformers' LLaVA with `model`'s weights."""
    from transformers import CLIPVisionConfig, CLIPVisionModel

    config = LlavaConfig(
        vision_config=CLIPVisionConfig.from_pretrained(clip_folder),
        text_config=model.llm.config,
        image_token_index=image_token,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        projector_hidden_act="gelu",
    )
    llava = LlavaForConditionalGeneration(config).eval()
    llava.model.vision_tower.load_state_dict(CLIPVisionModel.from_pretrained(clip_folder).state_dict())
    llava.model.language_model.load_state_dict(model.llm.model.state_dict())
    llava.lm_head.load_state_dict(model.llm.lm_head.state_dict())
    projector = llava.model.multi_modal_projector
    projector.linear_1.load_state_dict(model.projector.layers[0].state_dict())
    projector.linear_2.load_state_dict(model.projector.layers[2].state_dict())
    return llava


def test_low_resolution_model_equals_transformers_llava(tmp_path: Path) -> None:
    model = tiny_model(tmp_path, low_res_only=True)
    batch = tiny_batch((12, 12), (1, 2), size=LOW_SIZE)
    prepared = model.data_preprocessor(batch)
    with torch.no_grad():
        ours = model(**prepared, mode="logits")

    # transformers wants one placeholder id per image token; an id that the text does not use
    image_token = VOCAB - 1
    rows = []
    for ids in batch["input_ids"]:
        ids = ids.clone()
        ids[ids == image_token] = 5
        widths = torch.where(ids == IMAGE_TOKEN_INDEX, model.low_res_encoder.num_tokens, 1)
        rows.append(torch.where(ids == IMAGE_TOKEN_INDEX, image_token, ids).repeat_interleave(widths))
    length = max(map(len, rows))
    input_ids = torch.stack([torch.nn.functional.pad(row, (0, length - len(row))) for row in rows])
    mask = torch.stack([torch.arange(length) < len(row) for row in rows]).long()
    assert not (batch["input_ids"] == image_token).any()
    llava = hf_llava(model, tmp_path / "clip", image_token)
    with torch.no_grad():
        theirs = llava(input_ids=input_ids, attention_mask=mask, pixel_values=prepared["low_pixels"]).logits
    for row, ids in enumerate(rows):
        # measured 0.0 on logits up to 0.44
        torch.testing.assert_close(ours[row, : len(ids)], theirs[row, : len(ids)], rtol=0, atol=1e-6)


def stage_maps_of_timm(name: str, encoder: HighResEncoder, pixels: torch.Tensor) -> list[torch.Tensor]:
    trunk = timm.create_model(name, pretrained=False, num_classes=0).eval()
    missing, unexpected = trunk.load_state_dict(encoder.state_dict(), strict=False)
    assert not unexpected
    assert all(key.startswith("head.") for key in missing)
    with torch.no_grad():
        return trunk.forward_intermediates(pixels, intermediates_only=True)


@pytest.mark.parametrize("weights", ["open_clip_model.safetensors", "open_clip_pytorch_model.bin"])
def test_stage_maps_equal_timm(tmp_path: Path, weights: str) -> None:
    encoder = HighResEncoder(str(tiny_convnext_folder(tmp_path, weights)), HIGH_SIZE).eval()
    pixels = torch.randn(2, 3, HIGH_SIZE, HIGH_SIZE)
    with torch.no_grad():
        ours = encoder(pixels)
    theirs = stage_maps_of_timm("test_convnext", encoder, pixels)
    for found, wanted, channels, stride in zip(ours, theirs, encoder.channels, encoder.strides, strict=True):
        assert found.shape == (2, channels, HIGH_SIZE // stride, HIGH_SIZE // stride)
        assert torch.equal(found, wanted)


@pytest.mark.slow
def test_stage_maps_at_the_real_shape(tmp_path: Path) -> None:
    """open_clip's own convnext_large_d_320, random weights, written and read as its folder."""
    import json

    import open_clip

    folder = tmp_path / "CLIP-convnext_large_d_320"
    folder.mkdir()
    with meta_init():
        vision = read_trunk_config(str(folder))
    assert vision["timm_model_name"] == "convnext_large"
    config = open_clip.get_model_config("convnext_large_d_320")
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
    trunk = timm.create_model("convnext_large", pretrained=False, num_classes=0).eval()
    save_file({f"visual.trunk.{k}": v for k, v in trunk.state_dict().items()}, folder / "model.safetensors")
    encoder = HighResEncoder(str(folder), 768).eval()
    assert encoder.channels == [192, 384, 768, 1536]
    assert encoder.strides == [4, 8, 16, 32]
    assert encoder.grid == (24, 24)
    # a smaller picture: each of the 36 blocks runs all the same
    pixels = torch.randn(1, 3, 256, 256)
    with torch.no_grad():
        ours, theirs = encoder(pixels), trunk.forward_intermediates(pixels, intermediates_only=True)
    for found, wanted in zip(ours, theirs, strict=True):
        assert torch.equal(found, wanted)


def loss_logits_and_gradients(
    model: MGLLaVA, batch: dict[str, Any]
) -> tuple[torch.Tensor, list[torch.Tensor], dict[str, torch.Tensor]]:
    """Summed loss, logits of each sample's own tokens, and gradients of that sum."""
    model.zero_grad()
    prepared = model.data_preprocessor(batch)
    loss = model(**prepared, mode="loss")["loss_sum"]
    loss.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    with torch.no_grad():
        logits = model(**prepared, mode="logits")
    rows = [row[mask] for row, mask in zip(logits, prepared["attention_mask"], strict=True)]
    return loss.detach(), rows, gradients


def one_sample(batch: dict[str, Any], row: int) -> dict[str, Any]:
    """Sample `row` of a batch by itself, without padding."""
    mask = batch["attention_mask"][row]
    per_sample = (batch["input_ids"] == IMAGE_TOKEN_INDEX).sum(dim=1).tolist()
    first, count = sum(per_sample[:row]), per_sample[row]
    return {
        "input_ids": batch["input_ids"][row : row + 1, mask],
        "labels": batch["labels"][row : row + 1, mask],
        "attention_mask": mask[mask].unsqueeze(0),
        "pixel_values": batch["pixel_values"][first : first + count],
        "boxes": batch["boxes"][first : first + count],
    }


@pytest.mark.parametrize(
    "trainable", [("fusion", "projector", "object_encoder"), ("fusion", "projector", "object_encoder", "llm")]
)
def test_batch_equals_each_sample_alone(tmp_path: Path, trainable: tuple[str, ...]) -> None:
    """One picture, two pictures, text only, all of different lengths: together (padded) as each by itself."""
    model = tiny_model(tmp_path, trainable=trainable)
    batch = tiny_batch((12, 9, 7), (1, 2, 0))
    loss, logits, gradients = loss_logits_and_gradients(model, batch)
    alone = [loss_logits_and_gradients(model, one_sample(batch, row)) for row in range(3)]
    # measured: loss 6.5e-8 of its value, logits 7.5e-8 on up to 0.38, gradients 5.6e-7 of a gradient's largest number
    torch.testing.assert_close(loss, sum(part[0] for part in alone), rtol=1e-6, atol=0)
    for found, (_, wanted, _) in zip(logits, alone, strict=True):
        torch.testing.assert_close(found, wanted[0], rtol=0, atol=1e-6)
    for name, gradient in gradients.items():
        wanted = sum(part[2][name] for part in alone)
        torch.testing.assert_close(gradient, wanted, rtol=0, atol=1e-5 * float(gradient.abs().max()) + 1e-9)


def test_generation_in_a_padded_batch_equals_each_alone(tmp_path: Path) -> None:
    model = tiny_model(tmp_path)
    batch = tiny_batch((12, 9, 7), (1, 2, 0))
    options = {"do_sample": False, "max_new_tokens": 6, "eos_token_id": None}
    keys = ("input_ids", "attention_mask", "pixel_values", "boxes")
    together = model.generate(**{key: batch[key] for key in keys}, **options)
    for row, tokens in enumerate(together):
        sample = one_sample(batch, row)
        assert torch.equal(model.generate(**{key: sample[key] for key in keys}, **options)[0], tokens)
