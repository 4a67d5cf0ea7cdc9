"""The assembled model: what runs when, what is trained and saved, what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from mg_llava.model import MGLLaVA
from mg_llava.model.encoders import LowResEncoder
from mg_llava.model.fusion import ConcatFusion, ConvGateFusion
from mg_llava.model.objects import ObjectEncoder
from tests.tiny_parts import (
    HIGH_SIZE,
    LOW_SIZE,
    VOCAB,
    tiny_batch,
    tiny_clip_folder,
    tiny_llm,
    tiny_llm_folder,
    tiny_model,
)
from xtuner.errors import XTunerError
from xtuner.model.files.checkpoints import save_file_atomic
from xtuner.model.llm import build_llm
from xtuner.model.meta import meta_init
from xtuner.model.projector import MLPProjector

CONNECTORS = ("fusion", "projector", "object_encoder")


def calls(module: nn.Module) -> list[int]:
    """Counts calls of a module from here on; as they begin, for a recomputation stops before its last module ends."""
    counter: list[int] = []
    module.register_forward_pre_hook(lambda *_: counter.append(1))
    return counter


def loss_of(model: MGLLaVA, batch: dict[str, Any]) -> torch.Tensor:
    return model(**model.data_preprocessor(batch, True), mode="loss")["loss_sum"]


class TestForward:
    def test_loss_is_that_of_the_logits(self, tmp_path: Path) -> None:
        model = tiny_model(tmp_path)
        batch = model.data_preprocessor(tiny_batch((12, 9), (1, 0)))
        output, logits = model(**batch, mode="loss"), model(**batch, mode="logits")
        expected = nn.functional.cross_entropy(
            logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten(), reduction="sum"
        )
        torch.testing.assert_close(output["loss_sum"], expected)
        assert output["num_supervised"] == (batch["labels"][:, 1:] != -100).sum()

    def test_every_part_shows_in_the_loss(self, tmp_path: Path) -> None:
        model = tiny_model(tmp_path, trainable=(*CONNECTORS, "llm"))
        loss_of(model, tiny_batch((12, 9), (1, 1))).backward()
        assert all(p.grad is not None and p.grad.any() for n, p in model.named_parameters() if p.requires_grad)

    def test_boxes_show_in_the_logits(self, tmp_path: Path) -> None:
        model = tiny_model(tmp_path)
        batch = tiny_batch()
        moved = {**batch, "boxes": [box * 0.5 for box in batch["boxes"]]}
        assert not torch.equal(loss_of(model, batch), loss_of(model, moved))

    def test_no_boxes(self, tmp_path: Path) -> None:
        model = tiny_model(tmp_path)
        batch = {**tiny_batch(), "boxes": [torch.zeros(0, 4)]}
        assert loss_of(model, batch).isfinite()
        without = {key: value for key, value in batch.items() if key != "boxes"}
        assert torch.equal(loss_of(model, batch), loss_of(model, without))

    def test_sample_without_supervised_tokens(self, tmp_path: Path) -> None:
        model = tiny_model(tmp_path)
        batch = tiny_batch()
        batch["labels"].fill_(-100)
        output = model(**model.data_preprocessor(batch))
        output["loss_sum"].backward()
        assert (output["loss_sum"], output["num_supervised"]) == (0, 0)

    def test_unknown_mode(self, tmp_path: Path) -> None:
        model = tiny_model(tmp_path)
        with pytest.raises(XTunerError, match="mode is 'predict': expected 'loss' or 'logits'"):
            model(**model.data_preprocessor(tiny_batch()), mode="predict")

    def test_autocast(self, tmp_path: Path) -> None:
        model = tiny_model(tmp_path, trainable=(*CONNECTORS, "llm"))
        batch = tiny_batch((12, 9), (1, 0))
        plain = loss_of(model, batch)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = loss_of(model, batch)
        loss.backward()
        # bf16 keeps 8 bits; measured 2e-4
        torch.testing.assert_close(loss.float(), plain, rtol=1e-2, atol=0)

    def test_all_in_bfloat16(self, tmp_path: Path) -> None:
        model = tiny_model(tmp_path)
        plain = loss_of(model, tiny_batch())
        loss = loss_of(model.to(torch.bfloat16), tiny_batch())
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss, plain, rtol=1e-2, atol=0)


class TestPacked:
    """Text-only samples, pictures and different lengths in one row: the same loss and gradients as padded rows."""

    @pytest.mark.parametrize("attention", ["sdpa", "eager"])
    @pytest.mark.parametrize("recompute", [False, True])
    def test_equals_padded(self, tmp_path: Path, attention: str, recompute: bool) -> None:
        model = tiny_model(tmp_path, trainable=(*CONNECTORS, "llm"), activation_checkpointing=recompute).train()
        model.llm.set_attn_implementation(attention)
        batch = tiny_batch((12, 9, 7, 15), (1, 0, 2, 1))
        padded = self.loss_and_gradients(model, batch)
        model.data_preprocessor.pack = True
        assert model.data_preprocessor(batch, True)["input_ids"].shape[0] == 1
        packed = self.loss_and_gradients(model, batch)
        # float32 sums in another order: worst seen 0 in the loss, 4e-7 of the largest number in a gradient
        torch.testing.assert_close(packed[0], padded[0], rtol=1e-5, atol=0)
        for name, gradient in padded[1].items():
            torch.testing.assert_close(packed[1][name], gradient, rtol=1e-4, atol=1e-5, msg=name)

    def test_only_in_training(self, tmp_path: Path) -> None:
        model = tiny_model(tmp_path, pack=True)
        assert model.data_preprocessor(tiny_batch((12, 9), (1, 0)), False)["input_ids"].shape[0] == 2

    @staticmethod
    def loss_and_gradients(model: MGLLaVA, batch: dict[str, Any]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        model.zero_grad()
        loss = loss_of(model, batch)
        loss.backward()
        return loss.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


class TestTextOnly:
    def test_no_vision_work(self, tmp_path: Path) -> None:
        model = tiny_model(tmp_path)
        counters = [calls(model.low_res_encoder), calls(model.high_res_encoder)]
        batch = model.data_preprocessor(tiny_batch((12, 9), (0, 0)))
        assert batch["input_ids"].shape == (2, 12)
        loss = model(**batch)["loss_sum"]
        loss.backward()
        assert counters == [[], []]
        # zero, not absent: ranks with pictures exchange gradients with this one
        trained = [p for p in model.parameters() if p.requires_grad]
        assert all(p.grad is not None and not p.grad.any() for p in trained)

    @pytest.mark.parametrize("elsewhere", [True, False])
    def test_encoders_run_in_step_with_other_ranks(self, tmp_path: Path, elsewhere: bool) -> None:
        """Where ranks gather weights together, a blank picture keeps them in step and changes nothing."""
        model = tiny_model(tmp_path)
        batch = model.data_preprocessor(tiny_batch((12,), (0,)))
        plain = model(**batch)["loss_sum"]
        counters = [calls(model.low_res_encoder), calls(model.high_res_encoder)]
        assert torch.equal(model(**model.keep_in_step(batch, elsewhere, partitioned=True))["loss_sum"], plain)
        assert counters == ([[1], [1]] if elsewhere else [[], []])

    def test_only_pictures_are_rare(self, tmp_path: Path) -> None:
        model = tiny_model(tmp_path)
        assert model.has_rare_inputs(tiny_batch((12,), (1,)))
        assert not model.has_rare_inputs(tiny_batch((12,), (0,))) and not model.has_rare_inputs({})


class TestTraining:
    def test_what_is_frozen(self, tmp_path: Path) -> None:
        model = tiny_model(tmp_path).train()
        assert model.trainable == CONNECTORS
        for name, part in model.parts().items():
            trained = name in CONNECTORS
            assert all(p.requires_grad == trained for p in part.parameters())
            assert part.training == trained

    def test_frozen_encoders_are_deterministic_in_train_mode(self, tmp_path: Path) -> None:
        model = tiny_model(tmp_path).train()
        batch = tiny_batch()
        assert torch.equal(loss_of(model, batch), loss_of(model, batch))

    def test_checkpoints_hold_trained_parts_only(self, tmp_path: Path) -> None:
        model = tiny_model(tmp_path)
        assert {name.split(".")[0] for name in model.state_dict()} == set(CONNECTORS)
        assert {name.split(".")[0] for name in model.full_state_dict()} == set(model.parts())

    def test_unknown_part(self, tmp_path: Path) -> None:
        with pytest.raises(XTunerError, match="'projektor' in trainable .* Did you mean 'projector'"):
            tiny_model(tmp_path, trainable=("projektor",))

    @pytest.mark.parametrize("trainable", [CONNECTORS, (*CONNECTORS, "llm")])
    def test_activation_checkpointing_recomputes_and_changes_nothing(
        self, tmp_path: Path, trainable: tuple[str, ...]
    ) -> None:
        gradients, runs = [], []
        for checkpointing in (False, True):
            model = tiny_model(tmp_path, trainable=trainable, activation_checkpointing=checkpointing).train()
            counter = calls(model.llm.model.layers[0].mlp)
            loss_of(model, tiny_batch()).backward()
            runs.append(len(counter))
            gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
        # the second run of a layer is the recomputation, also where the language model is frozen
        assert runs == [1, 2]
        assert gradients[0].keys() == gradients[1].keys()
        for name, gradient in gradients[0].items():
            torch.testing.assert_close(gradients[1][name], gradient, rtol=0, atol=1e-6)

    def test_eval_mode_ends_recomputation(self, tmp_path: Path) -> None:
        model = tiny_model(tmp_path, activation_checkpointing=True).train().eval()
        assert not any(module.training for module in model.modules())


class TestGenerate:
    def test_first_token_is_that_of_the_logits(self, tmp_path: Path) -> None:
        model = tiny_model(tmp_path)
        batch = tiny_batch((8, 6), (1, 0))
        prepared = model.data_preprocessor(batch)
        with torch.no_grad():
            logits = model(**prepared, mode="logits")
        last = prepared["attention_mask"].sum(1) - 1
        expected = logits[torch.arange(2), last].argmax(-1)
        keys = ("input_ids", "attention_mask", "pixel_values", "boxes")
        tokens = model.generate(**{key: batch[key] for key in keys}, do_sample=False, max_new_tokens=3)
        assert torch.equal(tokens[:, 0], expected)

    def test_text_only(self, tmp_path: Path) -> None:
        model = tiny_model(tmp_path)
        ids = torch.tensor([[1, 5, 6]])
        ours = model.generate(ids, do_sample=False, max_new_tokens=3)
        theirs = model.llm.generate(ids, do_sample=False, max_new_tokens=3)
        assert torch.equal(ours, theirs[:, 3:])


class TestBuild:
    def test_grids_must_agree(self, tmp_path: Path) -> None:
        low = {"type": LowResEncoder, "name_or_path": str(tiny_clip_folder(tmp_path, 42))}
        with pytest.raises(XTunerError, match=r"low resolution 3x3 \(42 px\), high resolution 2x2 .* to 96"):
            tiny_model(tmp_path / "other", low_res_encoder=low)

    def test_fusion_needs_an_encoder(self, tmp_path: Path) -> None:
        with pytest.raises(XTunerError, match="a fusion but no high_res_encoder"):
            tiny_model(tmp_path, low_res_only=True, fusion={"type": ConvGateFusion})

    def test_an_encoder_that_nothing_reads(self, tmp_path: Path) -> None:
        with pytest.raises(XTunerError, match="a high_res_encoder that nothing reads"):
            tiny_model(tmp_path, fusion=None, object_encoder=None)

    def test_objects_without_fusion(self, tmp_path: Path) -> None:
        model = tiny_model(tmp_path, fusion=None, trainable=("projector", "object_encoder"))
        assert "fusion" not in model.parts()
        assert model.projector.in_channels == model.low_res_encoder.channels
        batch = tiny_batch()
        moved = {**batch, "boxes": [box * 0.5 for box in batch["boxes"]]}
        assert not torch.equal(loss_of(model, batch), loss_of(model, moved))

    def test_grids_may_differ_without_fusion(self, tmp_path: Path) -> None:
        low = {"type": LowResEncoder, "name_or_path": str(tiny_clip_folder(tmp_path, 42))}
        model = tiny_model(
            tmp_path / "other", low_res_encoder=low, fusion=None, trainable=("projector", "object_encoder")
        )
        assert loss_of(model, tiny_batch()).isfinite()

    def test_projector_reads_the_fusions_width(self, tmp_path: Path) -> None:
        model = tiny_model(tmp_path, fusion={"type": ConcatFusion})
        assert model.projector.in_channels == model.low_res_encoder.channels + model.high_res_encoder.channels[-1]
        assert loss_of(model, tiny_batch()).isfinite()

    def test_without_objects(self, tmp_path: Path) -> None:
        model = tiny_model(tmp_path, object_encoder=None)
        batch = model.data_preprocessor(tiny_batch((12,), (1,)))
        assert batch["input_ids"].shape[1] == 12 - 1 + model.low_res_encoder.num_tokens
        assert model(**batch)["loss_sum"].isfinite()

    def test_low_resolution_only(self, tmp_path: Path) -> None:
        model = tiny_model(tmp_path, low_res_only=True)
        assert list(model.parts()) == ["low_res_encoder", "projector", "llm"]
        assert loss_of(model, tiny_batch((12, 9), (1, 0), size=LOW_SIZE)).isfinite()

    def test_under_meta_init(self, tmp_path: Path) -> None:
        folder = tiny_llm_folder(tmp_path)
        with meta_init():
            model = MGLLaVA(
                llm={"type": build_llm, "name_or_path": str(folder)},
                low_res_encoder={"type": LowResEncoder, "name_or_path": "openai/clip-vit-large-patch14-336"},
                projector={"type": MLPProjector},
                pretrained_pth="not/read.pth",
            )
        assert all(parameter.is_meta for parameter in model.parameters())
        assert model.projector.in_channels == 1024


class TestBatchChecks:
    def test_pictures_of_another_size(self, tmp_path: Path) -> None:
        model = tiny_model(tmp_path)
        with pytest.raises(XTunerError, match=rf"pictures are \(3, 32, 32\).* built for \(3, {HIGH_SIZE}"):
            model.data_preprocessor(tiny_batch(size=32))

    def test_boxes_for_other_pictures(self, tmp_path: Path) -> None:
        batch = tiny_batch()
        with pytest.raises(XTunerError, match="1 picture but 2 lists of boxes"):
            tiny_model(tmp_path).data_preprocessor({**batch, "boxes": batch["boxes"] * 2})

    def test_ids_beyond_the_vocabulary(self, tmp_path: Path) -> None:
        batch = tiny_batch()
        batch["input_ids"][0, -1] = VOCAB
        with pytest.raises(XTunerError, match=f"token id {VOCAB}, .* table has {VOCAB} rows"):
            tiny_model(tmp_path).data_preprocessor(batch)


class TestPretrained:
    def test_takes_over_what_was_saved(self, tmp_path: Path) -> None:
        first = tiny_model(tmp_path)
        save_file_atomic({"state_dict": first.state_dict()}, tmp_path / "stage1.pth")
        second = tiny_model(tmp_path, trainable=(*CONNECTORS, "llm"))
        nn.init.zeros_(second.projector.layers[0].weight)
        report = second.load_checkpoint(tmp_path / "stage1.pth")
        assert report.loaded_parts == CONNECTORS
        assert torch.equal(second.projector.layers[0].weight, first.projector.layers[0].weight)

    def test_language_model_of_another_width_names_both(self, tmp_path: Path) -> None:
        save_file_atomic(tiny_model(tmp_path).state_dict(), tmp_path / "stage1.pth")
        with pytest.raises(XTunerError, match="its language model is 32 wide, this model's is 64: ") as caught:
            tiny_model(tmp_path, hidden_size=64, pretrained_pth=str(tmp_path / "stage1.pth"))
        assert "projector.layers.0.weight is (32, 24) in the checkpoint and (64, 24) in this model" in str(caught.value)

    def test_no_such_file(self, tmp_path: Path) -> None:
        with pytest.raises(XTunerError, match="does not exist"):
            tiny_model(tmp_path, pretrained_pth=str(tmp_path / "none.pth"))

    def test_tied_language_model(self, tmp_path: Path) -> None:
        """Tied weights are in a checkpoint once or twice; both are complete."""
        first = tiny_model(tmp_path, llm=tiny_llm(tie_word_embeddings=True), trainable=(*CONNECTORS, "llm"))
        state = first.state_dict()
        for absent in (None, "llm.lm_head.weight", "llm.model.embed_tokens.weight"):
            kept = {name: value for name, value in state.items() if name != absent}
            save_file_atomic(kept, tmp_path / "tied.pth")
            assert "llm" in first.load_checkpoint(tmp_path / "tied.pth", required=["llm"]).loaded_parts


def test_parts_can_be_given_built(tmp_path: Path) -> None:
    projector, objects = MLPProjector(24, 32), ObjectEncoder(sum((24, 32, 48, 64)), 32, HIGH_SIZE)
    model = tiny_model(tmp_path, projector=projector, object_encoder=objects)
    assert model.projector is projector
