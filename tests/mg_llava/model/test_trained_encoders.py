"""Encoders that are trained, wholly or in part: gradients, modes, what is saved and how it is read back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from mg_llava.hf.streaming import CheckpointWeights
from mg_llava.model import MGLLaVA
from tests.tiny_assistant import tiny_model_node
from tests.tiny_parts import tiny_batch, tiny_model
from xtuner.errors import XTunerError
from xtuner.model.files.base import describe_base
from xtuner.model.files.checkpoints import save_file_atomic
from xtuner.model.meta import meta_init
from xtuner.registry import build

TOWERS = ("low_res_encoder", "high_res_encoder")
CONNECTORS = ("fusion", "projector", "object_encoder")


def loss_of(model: MGLLaVA, pictures: int = 1) -> torch.Tensor:
    batch = model.data_preprocessor(tiny_batch((12,), (pictures,)), True)
    return model(**batch, mode="loss")["loss_sum"]


def trained(model: MGLLaVA) -> dict[str, nn.Parameter]:
    return {name: weight for name, weight in model.named_parameters() if weight.requires_grad}


def blocks(model: MGLLaVA) -> list[Any]:
    return [module for module in model.high_res_encoder.modules() if hasattr(module, "drop_path")]


class TestGradients:
    @pytest.mark.parametrize("recompute", [False, True])
    def test_every_trained_weight_has_one(self, tmp_path: Path, recompute: bool) -> None:
        """CLIP's last norm as well, which does not show in the tokens: DDP would wait for it."""
        model = tiny_model(tmp_path, trainable=(*CONNECTORS, *TOWERS), activation_checkpointing=recompute).train()
        for block in blocks(model):
            block.drop_path.drop_prob = 0.0
        loss_of(model).backward()
        zero = [name for name, weight in trained(model).items() if not weight.grad.any()]
        assert zero and all("post_layernorm" in name for name in zero)

    @pytest.mark.parametrize("blank", [False, True])
    @pytest.mark.parametrize("fused", [True, False])
    def test_zero_without_pictures(self, tmp_path: Path, blank: bool, fused: bool) -> None:
        without = {} if fused else {"fusion": None}
        model = tiny_model(tmp_path, trainable=TOWERS, **without).train()
        batch = model.data_preprocessor(tiny_batch((12,), (0,)), True)
        plain = model(**batch)["loss_sum"]
        loss = model(**batch, blank_picture=blank)["loss_sum"]
        loss.backward()
        assert torch.equal(loss, plain)
        assert all(weight.grad is not None and not weight.grad.any() for weight in trained(model).values())

    def test_recomputing_changes_nothing(self, tmp_path: Path) -> None:
        gradients, runs = [], []
        for recompute in (False, True):
            model = tiny_model(tmp_path, trainable=TOWERS, activation_checkpointing=recompute).train()
            counters: list[int] = []
            for module in (
                model.high_res_encoder.stages[1].blocks[0],
                model.low_res_encoder.clip.encoder.layers[0].mlp,
            ):
                module.register_forward_pre_hook(lambda *_, seen=counters: seen.append(1))
            torch.manual_seed(0)
            loss_of(model).backward()
            runs.append(len(counters))
            gradients.append({name: weight.grad for name, weight in trained(model).items()})
        assert runs == [2, 4]
        assert all(torch.equal(gradients[1][name], gradient) for name, gradient in gradients[0].items())

    def test_below_a_trained_layer_there_is_no_graph(self, tmp_path: Path) -> None:
        model = tiny_model(tmp_path, trainable=("low_res_encoder.layers.1-",)).train()
        seen = {}
        for number, layer in enumerate(model.low_res_encoder.clip.encoder.layers):
            layer.register_forward_hook(lambda _m, _i, out, number=number: seen.update({number: out.requires_grad}))
        loss_of(model).backward()
        assert seen == {0: False, 1: True}
        assert {name.split(".layers.")[1][0] for name in trained(model)} == {"1"}


class TestModes:
    def test_drop_path_of_a_trained_convnext(self, tmp_path: Path) -> None:
        model = tiny_model(tmp_path, trainable=("high_res_encoder",)).train()
        for block in blocks(model):
            # as initialised a block adds a millionth
            nn.init.ones_(block.gamma)
        torch.manual_seed(0)
        assert len({loss_of(model).item() for _ in range(8)}) > 1
        model.eval()
        assert torch.equal(loss_of(model), loss_of(model))

    def test_a_rate_of_its_own(self, tmp_path: Path) -> None:
        node = tiny_model_node(tmp_path)
        node["high_res_encoder"]["drop_path_rate"] = 0.0
        node["trainable"] = ("high_res_encoder",)
        model = build(node).train()
        assert torch.equal(loss_of(model), loss_of(model))

    def test_modules_with_a_frozen_weight_stay_in_eval(self, tmp_path: Path) -> None:
        model = tiny_model(tmp_path, trainable=("high_res_encoder.stages.3",)).train()
        high = model.high_res_encoder
        assert all(module.training for module in high.stages[3].modules())
        assert not any(module.training for module in (high, *high.stages[2].modules(), *high.stem.modules()))
        assert not any(module.training for module in model.low_res_encoder.modules())
        assert not any(module.training for module in model.eval().modules())

    def test_batch_norms_keep_their_statistics(self, tmp_path: Path) -> None:
        model = tiny_model(tmp_path, trainable=("projector",))
        model.projector.layers.append(nn.BatchNorm1d(4))
        assert not model.train().projector.layers[-1].training and model.projector.layers[0].training


class TestFiles:
    def node(self, folder: Path, *trainable: str) -> dict:
        return {**tiny_model_node(folder), "trainable": (*CONNECTORS, *trainable)}

    def save(self, node: dict, path: Path) -> MGLLaVA:
        """A model whose trained weights are no longer those of its parts, and the checkpoint a run leaves of it."""
        torch.manual_seed(4)
        model = build(node).eval()
        for weight in trained(model).values():
            weight.data += 0.1 * torch.randn_like(weight)
        base = describe_base(
            node, node.get("pretrained_pth"), model.from_checkpoint, model.unsaved_parts(), path.parent
        )
        marks = model.base_marks()
        base["parts"] = {name: {**facts, "marks": marks[name]} for name, facts in base["parts"].items()}
        save_file_atomic({"state_dict": model.state_dict(), "trainer": {"base": base}}, path)
        return model

    @pytest.mark.parametrize(
        "towers",
        [TOWERS, ("low_res_encoder.layers.1-",), ("high_res_encoder.stages.2-", r"low_res_encoder\..*bias$")],
    )
    def test_saved_loaded_and_exported(self, tmp_path: Path, towers: tuple[str, ...]) -> None:
        node = self.node(tmp_path, *towers)
        model = self.save(node, tmp_path / "iter_1.pth")
        assert set(model.state_dict()) >= set(trained(model))
        expected = model.full_state_dict()
        again = build(node)
        again.load_checkpoint(tmp_path / "iter_1.pth", required=again.trainable)
        with meta_init():
            shape = build(node)
        exported = dict(CheckpointWeights(shape, node, tmp_path / "iter_1.pth"))
        for found in (again.full_state_dict(), exported):
            assert found.keys() == expected.keys()
            assert all(torch.equal(found[name], value) for name, value in expected.items())

    def test_the_next_stage_starts_from_it_and_saves_nothing_twice(self, tmp_path: Path) -> None:
        """Stage 1 trains some layers, stage 2 freezes them again: the second checkpoint stands on the first."""
        first = self.save(self.node(tmp_path, "low_res_encoder.layers.1-"), tmp_path / "one" / "iter_1.pth")
        node = {**self.node(tmp_path), "pretrained_pth": str(tmp_path / "one" / "iter_1.pth")}
        second = self.save(node, tmp_path / "two" / "iter_1.pth")
        low = first.low_res_encoder.state_dict()
        assert all(torch.equal(second.low_res_encoder.state_dict()[name], value) for name, value in low.items())
        assert not any(name.startswith("low_res_encoder") for name in second.state_dict())
        again = build({**node, "pretrained_pth": None})
        again.load_checkpoint(tmp_path / "two" / "iter_1.pth", required=again.trainable)
        assert all(torch.equal(again.low_res_encoder.state_dict()[name], value) for name, value in low.items())

    def test_other_frozen_weights_of_a_partly_trained_encoder_are_refused(self, tmp_path: Path) -> None:
        node = self.node(tmp_path, "low_res_encoder.layers.1-")
        self.save(node, tmp_path / "iter_1.pth")
        other = build(node)
        with torch.no_grad():
            other.low_res_encoder.clip.embeddings.class_embedding += 1
        with pytest.raises(XTunerError, match="low_res_encoder: other weights than those of clip"):
            other.load_checkpoint(tmp_path / "iter_1.pth", required=other.trainable)

    def test_weights_alone(self, tmp_path: Path) -> None:
        node = self.node(tmp_path, "high_res_encoder.stages.3")
        model = self.save(node, tmp_path / "iter_1.pth")
        save_file_atomic(model.state_dict(), tmp_path / "weights.safetensors")
        again = build(node)
        again.load_checkpoint(tmp_path / "weights.safetensors", required=again.trainable)
        assert all(torch.equal(again.full_state_dict()[name], value) for name, value in model.full_state_dict().items())


def test_adapters_and_a_pattern_for_one_part(tmp_path: Path) -> None:
    from peft import LoraConfig

    with pytest.raises(XTunerError, match="trainable has a pattern for low_res_encoder, which adapters train"):
        tiny_model(tmp_path, trainable=("low_res_encoder.layers.1",), visual_encoder_lora=LoraConfig(r=2))
