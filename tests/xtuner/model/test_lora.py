"""Adapters: what they target, train, save, and how they load."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel

from mg_llava.model import MGLLaVA
from tests.tiny_parts import tiny_batch, tiny_clip, tiny_llm, tiny_llm_folder, tiny_model
from xtuner.engine.steps.optim import build_optimizer
from xtuner.errors import XTunerError
from xtuner.model.files.checkpoints import save_file_atomic
from xtuner.model.llm import build_llm
from xtuner.model.lora import add_adapters, linear_names, merged_weights, save_adapters

CONNECTORS = ("fusion", "projector", "object_encoder")
LORA = {"type": LoraConfig, "r": 2, "lora_alpha": 4}


def train_a_bit(model: torch.nn.Module) -> None:
    optimizer = build_optimizer(model, torch.device("cpu"), lr=0.05)
    for step in range(3):
        batch = model.data_preprocessor(tiny_batch((12, 9), (1, 0), seed=step), True)
        optimizer.backward(model(**batch)["loss_sum"])
        optimizer.step()


def lora_model(folder: Path, connectors_of: MGLLaVA | None = None, **arguments: Any) -> MGLLaVA:
    """`tiny_model` with adapters; with another model's connectors, since building adapters draws random numbers."""
    model = tiny_model(folder, **{"llm_lora": LORA, **arguments})
    if connectors_of is not None:
        state = {k: v for k, v in connectors_of.full_state_dict().items() if k.startswith(CONNECTORS)}
        model.load_state_dict(state, strict=False)
    return model


def loss_of(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(**model.data_preprocessor(tiny_batch((12, 9), (1, 0))))["loss_sum"]


class TestTargets:
    def test_all_linear_layers_but_the_head(self) -> None:
        attention, mlp = ["k_proj", "o_proj", "q_proj", "v_proj"], ["down_proj", "gate_proj", "up_proj"]
        assert linear_names(tiny_llm()) == sorted(attention + mlp)
        assert linear_names(tiny_clip()) == sorted(["fc1", "fc2", "k_proj", "out_proj", "q_proj", "v_proj"])

    def test_given_ones(self) -> None:
        trained = add_adapters(tiny_llm(), LoraConfig(r=2, target_modules=["q_proj"]), "llm_lora")
        assert len(trained) == 2 * 2 and all("q_proj.lora_" in name for name in trained)

    def test_pattern(self) -> None:
        trained = add_adapters(tiny_llm(), LoraConfig(r=2, target_modules=r".*\.0\..*q_proj"), "llm_lora")
        assert len(trained) == 2

    @pytest.mark.parametrize("names", [["q_prj"], ["v_proj", "q_prj"], "q_prj"])
    def test_no_match(self, names: list[str] | str) -> None:
        """Not even where other names match: peft would take those and say nothing."""
        with pytest.raises(
            XTunerError, match=r"llm_lora: target_modules \['q_prj'\] match no .* Did you mean 'q_proj'"
        ):
            add_adapters(tiny_llm(), LoraConfig(target_modules=names), "llm_lora")


class TestModel:
    def test_only_adapters_are_trained_and_saved(self, tmp_path: Path) -> None:
        model = tiny_model(tmp_path, trainable=CONNECTORS, llm_lora=LORA, visual_encoder_lora=LORA)
        assert model.trainable == ("low_res_encoder", *CONNECTORS, "llm")
        trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        assert set(model.state_dict()) == trained
        adapters = {name for name in trained if not name.startswith(CONNECTORS)}
        assert adapters and all(".lora_" in name for name in adapters)
        assert {name.split(".")[0] for name in adapters} == {"low_res_encoder", "llm"}

    def test_starts_as_the_plain_model(self, tmp_path: Path) -> None:
        plain = tiny_model(tmp_path / "plain")
        assert torch.equal(loss_of(lora_model(tmp_path, plain, visual_encoder_lora=LORA)), loss_of(plain))

    @pytest.mark.parametrize("pictures", [(1, 0), (0, 0)])
    def test_every_adapter_has_a_gradient_also_without_pictures(
        self, tmp_path: Path, pictures: tuple[int, int]
    ) -> None:
        model = tiny_model(tmp_path, llm_lora=LORA, visual_encoder_lora=LORA).train()
        model(**model.data_preprocessor(tiny_batch((12, 9), pictures), True))["loss_sum"].backward()
        assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
        of_clip = [p.grad for n, p in model.low_res_encoder.named_parameters() if n.endswith("lora_B.default.weight")]
        assert any(gradient.any() for gradient in of_clip) == (pictures == (1, 0))

    def test_checkpoint_goes_back_in(self, tmp_path: Path) -> None:
        model = tiny_model(tmp_path, llm_lora=LORA, visual_encoder_lora=LORA)
        train_a_bit(model)
        save_file_atomic({"state_dict": model.state_dict()}, tmp_path / "lora.pth")
        again = tiny_model(tmp_path, llm_lora=LORA, visual_encoder_lora=LORA)
        assert not torch.equal(loss_of(again), loss_of(model))
        again.load_checkpoint(tmp_path / "lora.pth", required=again.trainable)
        assert torch.equal(loss_of(again), loss_of(model))

    def test_stage_2_on_stage_1(self, tmp_path: Path) -> None:
        first = tiny_model(tmp_path)
        train_a_bit(first)
        save_file_atomic({"state_dict": first.state_dict()}, tmp_path / "stage1.pth")
        second = lora_model(tmp_path)
        second.load_checkpoint(tmp_path / "stage1.pth")
        assert torch.equal(loss_of(second), loss_of(first))

    def test_whole_language_model_below_adapters(self, tmp_path: Path) -> None:
        full = tiny_model(tmp_path, trainable=(*CONNECTORS, "llm"))
        train_a_bit(full)
        save_file_atomic({"state_dict": full.state_dict()}, tmp_path / "full.pth")
        adapted = lora_model(tmp_path)
        adapted.load_checkpoint(tmp_path / "full.pth")
        assert torch.equal(loss_of(adapted), loss_of(full))

    def test_test_needs_the_adapters(self, tmp_path: Path) -> None:
        save_file_atomic({"state_dict": tiny_model(tmp_path).state_dict()}, tmp_path / "stage1.pth")
        model = tiny_model(tmp_path, llm_lora=LORA)
        with pytest.raises(XTunerError, match="this is a stage-1 checkpoint"):
            model.load_checkpoint(tmp_path / "stage1.pth", required=model.trainable)

    def test_merged_is_a_plain_model(self, tmp_path: Path) -> None:
        model = tiny_model(tmp_path, llm_lora=LORA, visual_encoder_lora=LORA)
        train_a_bit(model)
        before = loss_of(model)
        plain = tiny_model(tmp_path / "plain")
        weights = dict(model.merged_weights())
        assert set(weights) == set(plain.full_state_dict())
        for name, part in plain.parts().items():
            part.load_state_dict({key: weights[f"{name}.{key}"] for key in part.state_dict()})
        # W x + B A x against (W + B A) x: worst seen 2e-7
        torch.testing.assert_close(loss_of(plain), before, rtol=1e-5, atol=0)

    def test_what_was_merged_leaves_memory(self) -> None:
        llm = tiny_llm()
        add_adapters(llm, LoraConfig(r=2), "llm_lora")
        held = []
        for _, _ in merged_weights(llm):
            held.append(sum(p.numel() for p in llm.parameters() if not p.is_meta))
        assert held == sorted(held, reverse=True) and held[-1] < 0.5 * held[0]


def test_saved_as_peft_reads_them(tmp_path: Path) -> None:
    llm, lora = tiny_llm(), LoraConfig(r=2, init_lora_weights=False)
    add_adapters(llm, lora, "llm_lora")
    ids = torch.arange(3, 12).unsqueeze(0)
    expected = llm(ids).logits
    save_adapters(llm, lora, tmp_path / "adapter", "base")
    read = PeftModel.from_pretrained(tiny_llm(), str(tmp_path / "adapter"))
    assert torch.equal(read(ids).logits, expected)
    merged = tiny_llm()
    merged.load_state_dict(dict(merged_weights(llm)))
    torch.testing.assert_close(merged(ids).logits, expected, rtol=1e-4, atol=1e-5)


class TestQuantized:
    @pytest.fixture(autouse=True)
    def needs_bitsandbytes(self) -> None:
        pytest.importorskip("bitsandbytes")

    @pytest.mark.parametrize(("quantization", "stored"), [("4bit", torch.uint8), ("8bit", torch.int8)])
    def test_trains_adapters_only(self, tmp_path: Path, quantization: str, stored: torch.dtype) -> None:
        llm = build_llm(str(tiny_llm_folder(tmp_path, hidden_size=64)), quantization=quantization)
        model = tiny_model(tmp_path, llm=llm, llm_lora=LORA)
        base = {name: p.clone() for name, p in llm.named_parameters() if ".lora_" not in name}
        before = loss_of(model)
        train_a_bit(model)
        assert loss_of(model) != before
        assert all(torch.equal(llm.get_parameter(name), tensor) for name, tensor in base.items())
        assert any(p.dtype == stored for p in base.values())

    def test_8bit_answers_like_the_whole_model(self, tmp_path: Path) -> None:
        folder = str(tiny_llm_folder(tmp_path, hidden_size=64))
        ids = torch.arange(3, 12).unsqueeze(0)
        with torch.no_grad():
            expected, found = (build_llm(folder, quantization=kind)(ids).logits for kind in (None, "8bit"))
        # worst seen 6e-3 of logits up to 0.5: a weight has 256 steps
        torch.testing.assert_close(found.float(), expected, rtol=0, atol=0.02)
        assert not torch.equal(found.float(), expected)

    @pytest.mark.parametrize("quantization", ["4bit", "8bit"])
    def test_training_after_an_evaluation(self, tmp_path: Path, quantization: str) -> None:
        """On the CPU an evaluation must not change the weights' format to one without gradients."""
        llm = build_llm(str(tiny_llm_folder(tmp_path, hidden_size=64)), quantization=quantization)
        model = tiny_model(tmp_path, llm=llm, llm_lora=LORA)
        batch = model.data_preprocessor(tiny_batch((12, 9), (1, 0)))
        gradients = []
        for _ in range(2):
            model.zero_grad()
            model.train()(**batch)["loss_sum"].backward()
            gradients.append(model.projector.layers[0].weight.grad.clone())
            with torch.no_grad():
                model.eval()(**batch)
        assert torch.equal(*gradients) and gradients[0].any()

    def test_refuses_to_train_its_weights(self, tmp_path: Path) -> None:
        llm = build_llm(str(tiny_llm_folder(tmp_path, hidden_size=64)), quantization="4bit")
        with pytest.raises(XTunerError, match="quantised, so its weights cannot be trained: give llm_lora"):
            tiny_model(tmp_path, llm=llm, trainable=(*CONNECTORS, "llm"))

    def test_unknown_kind(self, tmp_path: Path) -> None:
        with pytest.raises(XTunerError, match="quantization is '2bit': expected None, '4bit' or '8bit'"):
            build_llm(str(tiny_llm_folder(tmp_path)), quantization="2bit")
