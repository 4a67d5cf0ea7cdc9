"""The vision side: one part under everything that encodes pictures, whose weights keep the model's names."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

from tests.tiny_parts import HIGH_SIZE, tiny_batch, tiny_model


def test_the_model_encodes_by_it(tmp_path: Path) -> None:
    model = tiny_model(tmp_path)
    batch = model.data_preprocessor(tiny_batch((12, 9), (1, 1)))
    image_tokens, object_tokens = model.vision.encode(batch["high_pixels"], batch["low_pixels"], batch["boxes"])
    embeds = model.embed(
        **{key: batch[key] for key in ("input_ids", "high_pixels", "low_pixels", "boxes")},
        image_positions=batch["image_positions"],
        object_positions=batch["object_positions"],
    )
    rows = embeds.flatten(0, 1)
    assert torch.equal(rows[batch["image_positions"]], image_tokens.flatten(0, 1))
    assert torch.equal(rows[batch["object_positions"]], object_tokens)


def test_weights_keep_the_names_and_the_order_of_checkpoints(tmp_path: Path) -> None:
    model = tiny_model(tmp_path)
    names = list(dict.fromkeys(name.split(".")[0] for name, _ in model.named_parameters()))
    # the order decides which weight an optimizer's saved state belongs to
    assert names == ["low_res_encoder", "high_res_encoder", "llm", "fusion", "object_encoder", "projector"]
    assert not any(name.startswith("vision") for name in model.state_dict())


def test_a_copy_of_a_model_has_one_of_its_own(tmp_path: Path) -> None:
    model = tiny_model(tmp_path)
    twin = copy.deepcopy(model)
    for name, part in twin.vision.parts().items():
        assert part is getattr(twin, name) and part is not getattr(model, name)


def test_only_trained_encoders_get_gradients(tmp_path: Path) -> None:
    model = tiny_model(tmp_path)
    assert model.vision.trained == frozenset()
    model.low_res_encoder.requires_grad_(True)
    batch = model.data_preprocessor(tiny_batch())
    image_tokens, _ = model.vision.encode(batch["high_pixels"], batch["low_pixels"], batch["boxes"])
    image_tokens.sum().backward()
    assert all(weight.grad is None for weight in model.low_res_encoder.parameters())
    assert model.projector.layers[0].weight.grad is not None


def test_without_pictures_nothing_comes_out(tmp_path: Path) -> None:
    vision = tiny_model(tmp_path).vision
    image_tokens, object_tokens = vision.encode(torch.zeros(0, 3, 64, 64), torch.zeros(0, 3, 32, 32), [])
    assert image_tokens.shape == (0, vision.num_image_tokens, 32) and object_tokens.shape == (0, 32)


@pytest.mark.parametrize("low_res_only", [False, True])
def test_says_what_a_processor_has_to_know(tmp_path: Path, low_res_only: bool) -> None:
    vision = tiny_model(tmp_path, low_res_only=low_res_only).vision
    assert vision.with_objects is not low_res_only
    assert vision.num_image_tokens == vision.low_res_encoder.num_tokens
    assert vision.image_size == (vision.low_res_size if low_res_only else HIGH_SIZE)
