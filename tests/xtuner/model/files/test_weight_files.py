"""Every form that weights come in, and files that are refused."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tests.tiny_parts import tiny_llm
from xtuner.errors import XTunerError
from xtuner.model.files.pickles import load_pickle
from xtuner.model.files.weight_files import read_state_dict

STATE = {"tower.a": torch.arange(3.0), "tower.b": torch.ones(2, 2), "head.c": torch.zeros(1)}


def assert_same(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], value) for name, value in wanted.items())


class TestForms:
    def test_files(self, tmp_path: Path) -> None:
        torch.save(STATE, tmp_path / "plain.pth")
        torch.save({"state_dict": STATE, "meta": {"iter": 7}}, tmp_path / "run.pth")
        torch.save({f"module.{name}": value for name, value in STATE.items()}, tmp_path / "wrapped.pt")
        save_file(STATE, tmp_path / "weights.safetensors")
        for file in sorted(tmp_path.iterdir()):
            assert_same(read_state_dict(file), STATE)

    @pytest.mark.parametrize("suffix", ["safetensors", "bin"])
    def test_prefix(self, tmp_path: Path, suffix: str) -> None:
        path = tmp_path / f"weights.{suffix}"
        save_file(STATE, path) if suffix == "safetensors" else torch.save(STATE, path)
        assert_same(read_state_dict(path, prefix="tower."), {"a": STATE["tower.a"], "b": STATE["tower.b"]})

    @pytest.mark.parametrize("shard_size", ["10KB", "1GB"])
    def test_folder_of_transformers(self, tmp_path: Path, shard_size: str) -> None:
        llm = tiny_llm()
        llm.save_pretrained(tmp_path, max_shard_size=shard_size)
        assert (tmp_path / "model.safetensors.index.json").is_file() == (shard_size == "10KB")
        assert_same(read_state_dict(tmp_path), llm.state_dict())

    def test_empty_file(self, tmp_path: Path) -> None:
        torch.save({}, tmp_path / "empty.pth")
        assert read_state_dict(tmp_path / "empty.pth") == {}


class TestRefused:
    def test_missing(self, tmp_path: Path) -> None:
        with pytest.raises(XTunerError, match="does not exist"):
            read_state_dict(tmp_path / "none.pth")

    def test_missing_shard(self, tmp_path: Path) -> None:
        tiny_llm().save_pretrained(tmp_path, max_shard_size="10KB")
        sorted(tmp_path.glob("model-*.safetensors"))[0].unlink()
        with pytest.raises(XTunerError, match="lacks 1 of its"):
            read_state_dict(tmp_path)

    def test_some_folder(self, tmp_path: Path) -> None:
        (tmp_path / "notes.txt").write_text("")
        with pytest.raises(XTunerError, match=r"is no checkpoint: .* found notes\.txt"):
            read_state_dict(tmp_path)

    @pytest.mark.parametrize("name", ["cut.pth", "cut.safetensors"])
    def test_cut_off(self, tmp_path: Path, name: str) -> None:
        path = tmp_path / name
        torch.save(STATE, path) if name.endswith("pth") else save_file(STATE, path)
        path.write_bytes(path.read_bytes()[:-60])
        with pytest.raises(XTunerError, match="cannot be read"):
            read_state_dict(path)

    def test_not_a_dictionary(self, tmp_path: Path) -> None:
        torch.save([1, 2], tmp_path / "list.pth")
        with pytest.raises(XTunerError, match="holds a list: expected a dictionary"):
            read_state_dict(tmp_path / "list.pth")


@pytest.mark.parametrize("content", [b"hello world", b"", b"PK\x03\x04", b"<html>not found</html>"])
def test_any_other_file(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    with pytest.raises(XTunerError, match="weights.pth' (cannot be read|is refused)"):
        read_state_dict(path)


class Bomb:
    """A pickle that makes a folder when loaded."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (self.path,)


class TestPickleBombs:
    def test_file(self, tmp_path: Path) -> None:
        torch.save({"a": torch.zeros(1), "b": Bomb(tmp_path / "exploded")}, tmp_path / "bomb.pth")
        with pytest.raises(XTunerError, match=r"is refused: .*mkdir(.|\n)*convert it once") as error:
            read_state_dict(tmp_path / "bomb.pth")
        assert "weights_only=False" in str(error.value)
        assert not (tmp_path / "exploded").exists()

    def test_plain_pickle(self, tmp_path: Path) -> None:
        (tmp_path / "bomb.pth").write_bytes(pickle.dumps(Bomb(tmp_path / "exploded")))
        with pytest.raises(XTunerError, match="is refused"):
            load_pickle(tmp_path / "bomb.pth")
        assert not (tmp_path / "exploded").exists()

    def test_deepspeed_folder(self, tmp_path: Path) -> None:
        torch.save({"module": STATE, "x": Bomb(tmp_path / "exploded")}, tmp_path / "mp_rank_00_model_states.pt")
        with pytest.raises(XTunerError, match="is refused: it holds more than tensors .*mkdir"):
            read_state_dict(tmp_path)
        assert not (tmp_path / "exploded").exists()

    def test_deepspeed_folder_without_its_optimizer_files(self, tmp_path: Path) -> None:
        torch.save({"module": STATE}, tmp_path / "mp_rank_00_model_states.pt")
        with pytest.raises(XTunerError, match=r"has no \*_optim_states\.pt"):
            read_state_dict(tmp_path)
