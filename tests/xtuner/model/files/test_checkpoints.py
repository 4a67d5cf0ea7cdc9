"""Loading into parts, all or nothing; files that appear whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from xtuner.errors import XTunerError
from xtuner.model.files.checkpoints import load_parts, save_file_atomic
from xtuner.model.files.weight_files import read_state_dict


def two_parts() -> dict[str, nn.Module]:
    return {"encoder": nn.Linear(2, 3), "head": nn.Linear(3, 1)}


def state_of(parts: dict[str, nn.Module]) -> dict[str, torch.Tensor]:
    return {f"{part}.{name}": value for part, module in parts.items() for name, value in module.state_dict().items()}


class TestLoadParts:
    def test_whole(self) -> None:
        source, target = two_parts(), two_parts()
        report = load_parts(target, state_of(source), required=["head"])
        assert report.loaded_parts == ("encoder", "head")
        assert report.unexpected == ()
        assert torch.equal(target["encoder"].weight, source["encoder"].weight)

    def test_parts_that_are_not_required_may_be_absent(self) -> None:
        state = {name: value for name, value in state_of(two_parts()).items() if name.startswith("head")}
        assert load_parts(two_parts(), state, required=["head"]).loaded_parts == ("head",)

    def test_unknown_weights_are_reported(self) -> None:
        report = load_parts(two_parts(), {**state_of(two_parts()), "tail.bias": torch.zeros(1)}, required=[])
        assert report.unexpected == ("tail.bias",)

    def test_all_problems_at_once_and_nothing_loaded(self) -> None:
        target = two_parts()
        before = target["head"].weight.clone()
        state = {"encoder.weight": torch.zeros(5, 5), "head.weight": torch.zeros(1, 3)}
        with pytest.raises(XTunerError) as error:
            load_parts(target, state, required=["head"], source="x.pth")
        message = str(error.value)
        assert message.startswith("x.pth does not fit this model:")
        assert "encoder.weight is (5, 5) in the checkpoint and (3, 2) in this model" in message
        assert "the part 'encoder' is incomplete: it lacks 1 weight, e.g. encoder.bias" in message
        assert "the part 'head' is incomplete: it lacks 1 weight, e.g. head.bias" in message
        assert torch.equal(target["head"].weight, before)

    def test_stage_1_is_named(self) -> None:
        parts = {**two_parts(), "llm": nn.Linear(2, 2)}
        state = state_of(two_parts())
        with pytest.raises(XTunerError, match=r"this is a stage-1 checkpoint, which holds encoder, head, but not"):
            load_parts(parts, state, required=list(parts))
        with pytest.raises(XTunerError) as error:
            load_parts(parts, {name: state[name] for name in state if name.startswith("head")}, required=list(parts))
        assert "stage-1" not in str(error.value)

    def test_long_lists_are_cut(self) -> None:
        parts = {f"part{i}": nn.Linear(1, 1) for i in range(20)}
        with pytest.raises(XTunerError, match="and 8 more"):
            load_parts(parts, {}, required=list(parts))

    def test_number_format_of_the_model_is_kept(self) -> None:
        target = two_parts()
        state = {name: value.to(torch.bfloat16) for name, value in state_of(two_parts()).items()}
        load_parts(target, state, required=["head"])
        assert target["head"].weight.dtype == torch.float32


class TestSaveFileAtomic:
    @pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors"])
    def test_round_trip(self, tmp_path: Path, name: str) -> None:
        state = {"a": torch.arange(6.0).view(2, 3).T, "b": torch.ones(2, dtype=torch.bfloat16)}
        save_file_atomic(state, tmp_path / "new" / name)
        loaded = read_state_dict(tmp_path / "new" / name)
        assert all(torch.equal(loaded[key], value) for key, value in state.items())
        assert [file.name for file in (tmp_path / "new").iterdir()] == [name]

    def test_failure_leaves_the_old_file(self, tmp_path: Path) -> None:
        path = tmp_path / "weights.pth"
        save_file_atomic({"a": torch.zeros(1)}, path)
        with pytest.raises(AttributeError):
            save_file_atomic({"a": lambda: None}, path)
        assert list(read_state_dict(path)) == ["a"]
        assert [file.name for file in tmp_path.iterdir()] == ["weights.pth"]
