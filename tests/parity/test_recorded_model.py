"""The whole model against what the original implementation recorded: embeddings, loss, logits, gradients,
generation.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch

from mg_llava.model import MGLLaVA
from mg_llava.model.checkpoint_names import to_published_names
from tests.parity.golden import golden_arrays, golden_path
from tests.parity.golden_model import golden_model, golden_pixels, golden_samples
from xtuner.model.llm import build_llm

GOLDEN = golden_arrays("e_model/light.npz")
CONNECTORS = ("fusion", "projector", "object_encoder")
TRAINABLE = {"pretrain": CONNECTORS, "sft": (*CONNECTORS, "llm")}
BATCHES = {"b1": ["single"], "b2": ["single", "image_end"], "text1": ["text_only"]}


@pytest.fixture(scope="module", params=["pretrain", "sft"])
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def model(kind: str) -> MGLLaVA:
    return golden_model(TRAINABLE[kind])


def prepared(model: MGLLaVA, name: str) -> dict[str, Any]:
    return model.data_preprocessor(golden_samples(BATCHES[name]))


@pytest.mark.parametrize("name", BATCHES)
def test_labels_and_positions(model: MGLLaVA, kind: str, name: str) -> None:
    batch = prepared(model, name)
    for key in ("labels", "position_ids"):
        # a text-only batch has one extra, fully masked row there
        np.testing.assert_array_equal(batch[key], GOLDEN[f"{kind}/{name}/{key}"][: len(batch[key])])


@pytest.mark.parametrize("name", ["b1", "b2"])
def test_image_and_object_tokens(model: MGLLaVA, kind: str, name: str) -> None:
    batch = prepared(model, name)
    with torch.no_grad():
        image_tokens, object_tokens = model.vision.encode(batch["high_pixels"], batch["low_pixels"], batch["boxes"])
    recorded = {key: GOLDEN[f"{kind}/{name}/{key}"] for key in ("projected_image_tokens_slice", "inputs_embeds_slice")}
    # values up to 4.9; measured worst case 2.6e-6: convolutions over 1536 channels in another order
    np.testing.assert_allclose(image_tokens[:, ::24], recorded["projected_image_tokens_slice"], rtol=0, atol=1e-5)
    expected = [GOLDEN[f"{kind}/{name}/bbox_feats_{i}"] for i in range(len(batch["boxes"]))]
    # measured worst case 4.2e-7
    np.testing.assert_allclose(object_tokens, np.concatenate(expected), rtol=0, atol=2e-6)

    batch = {key: batch[key] for key in batch if key not in ("labels", "attention_mask", "position_ids")}
    batch = {key: value for key, value in batch.items() if not key.startswith("target")}
    with torch.no_grad():
        embeds = model.embed(**batch)
    assert list(embeds.shape) == GOLDEN[f"{kind}/{name}/inputs_embeds_shape"].tolist()
    text_end = [int(mask.sum()) for mask in prepared(model, name)["attention_mask"]]
    for row, end in enumerate(text_end):
        found, wanted = embeds[row, :end:16], recorded["inputs_embeds_slice"][row]
        # measured worst case 2.6e-6
        np.testing.assert_allclose(found, wanted[: len(found)], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", BATCHES)
def test_loss_and_logits(model: MGLLaVA, kind: str, name: str) -> None:
    batch = prepared(model, name)
    with torch.no_grad():
        output = model(**batch, mode="loss")
        logits = model(**batch, mode="logits")
    loss = output["loss_sum"] / output["num_supervised"]
    # measured 0.0 with one thread
    np.testing.assert_allclose(loss, GOLDEN[f"{kind}/{name}/loss"], rtol=1e-6)
    assert output["num_supervised"] == (batch["labels"] != -100).sum()
    for row, mask in enumerate(batch["attention_mask"]):
        end = int(mask.sum())
        found = logits[row, :end:40, :32]
        wanted = GOLDEN[f"{kind}/{name}/logits_slice"][row, : len(found)]
        # logits up to 3.7; measured worst case 1.9e-6, of the means 2.4e-7
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5)
        means = GOLDEN[f"{kind}/{name}/logits_absmean"][row, :end]
        np.testing.assert_allclose(logits[row, :end].abs().mean(-1), means, rtol=0, atol=2e-6)


def test_gradients(model: MGLLaVA, kind: str) -> None:
    model.zero_grad()
    output = model(**prepared(model, "b1"), mode="loss")
    (output["loss_sum"] / output["num_supervised"]).backward()
    gradients = to_published_names({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    prefix = f"{kind}/b1/gradnorm/"
    assert set(gradients) == {key.removeprefix(prefix) for key in GOLDEN if key.startswith(prefix)}
    for name, gradient in gradients.items():
        # measured worst case 5.8e-7
        np.testing.assert_allclose(gradient.norm(), GOLDEN[prefix + name], rtol=1e-5, err_msg=name)
        if f"{kind}/b1/gradslice/{name}" in GOLDEN:
            wanted = GOLDEN[f"{kind}/b1/gradslice/{name}"]
            found = gradient.flatten()[:: max(1, gradient.numel() // 64)][:64]
            # measured worst case 1.4e-6 of a slice's largest number
            np.testing.assert_allclose(found, wanted, rtol=0, atol=2e-5 * np.abs(wanted).max(), err_msg=name)


@pytest.mark.parametrize("name", ["single", "image_end"])
def test_greedy_generation(model: MGLLaVA, kind: str, name: str) -> None:
    recorded = json.loads(golden_path("e_model/light_generate.json").read_text())["gens"][name]
    sample = golden_samples([name])
    tokens = model.generate(
        torch.tensor([recorded["prompt_ids"]]),
        sample["pixel_values"],
        sample["boxes"],
        do_sample=False,
        max_new_tokens=len(recorded["generated"]) - 1,
        pad_token_id=2,
    )
    # the original's list leads with a bos that was never generated
    assert tokens[0].tolist() == recorded["generated"][1:]


def test_clip_tower(model: MGLLaVA) -> None:
    towers = golden_arrays("e_model/towers.npz")
    pixels = golden_pixels([str(towers["clip_image"][0])])
    _, low = model.data_preprocessor.normalizer(pixels, 336)
    with torch.no_grad():
        tokens = model.low_res_encoder(low)
    # values up to 6; measured 1.7e-6
    np.testing.assert_allclose(tokens[:, ::6], towers["clip_hidden_m2_tokens"], rtol=0, atol=1e-5)


def test_llama() -> None:
    towers = golden_arrays("e_model/towers.npz")
    llm = build_llm(str(golden_path("tiny/llm")), dtype="float32")
    with torch.no_grad():
        logits = llm(torch.from_numpy(towers["llama_ids"])).logits
    # measured 0.0 with one thread
    np.testing.assert_allclose(logits, towers["llama_logits"], rtol=0, atol=2e-6)
