"""No file that anything reads can run code: a poisoned one at every door, and no door beside the one."""

from __future__ import annotations

import ast
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mg_llava.boxes.store import BoxStore
from mg_llava.detectors import Owlv2Detector
from mg_llava.hf import load_assistant, save_pretrained
from mg_llava.model.encoders import HighResEncoder, LowResEncoder
from tests.tiny_assistant import box_record, tiny_assistant
from tests.tiny_parts import tiny_clip_folder, tiny_convnext_folder, tiny_llm, tiny_llm_folder, tiny_model
from tests.zero_checkpoint import save_zero_checkpoint
from xtuner.cli import main
from xtuner.constants import RESTRICT_TORCH
from xtuner.engine.checkpoints.checkpoint import CheckpointFolder
from xtuner.engine.checkpoints.integrity import TRAINER_FILE
from xtuner.engine.strategies.deepspeed import DeepSpeedBackend
from xtuner.engine.strategies.plain import PlainBackend
from xtuner.errors import XTunerError
from xtuner.model.files.pickles import restricted_loading
from xtuner.model.files.weight_files import read_state_dict
from xtuner.model.llm import build_llm

ROOT = Path(__file__).parents[1]
READERS = {
    *("torch.load", "pickle.load", "pickle.loads", "pickle.Unpickler", "np.load", "numpy.load", "pd.read_pickle"),
    *(
        "joblib.load",
        "marshal.loads",
        "shelve.open",
        "dill.load",
        "cloudpickle.load",
        "torch.jit.load",
        "torch.package",
    ),
}


class Bomb:
    """A pickle that makes a folder when it is loaded."""

    def __init__(self, target: Path) -> None:
        self.target = str(target)

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.makedirs, (self.target,)


class Poison:
    """Writes poisoned files, and tells whether one went off."""

    def __init__(self, folder: Path) -> None:
        self.exploded = folder / "exploded"

    def save(self, path: Path, **content: Any) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save({**content, "bomb": Bomb(self.exploded)}, path)
        return path

    def array(self, path: Path) -> Path:
        values = np.empty(2, object)
        values[0] = Bomb(self.exploded)
        with path.open("wb") as file:
            np.save(file, values, allow_pickle=True)
        return path


@pytest.fixture
def poison(tmp_path: Path) -> Poison:
    return Poison(tmp_path)


def _no_safetensors(folder: Path) -> Path:
    for file in folder.glob("*.safetensors*"):
        file.unlink()
    return folder


def _weights_file(tmp_path: Path, poison: Poison) -> None:
    read_state_dict(poison.save(tmp_path / "a.pth", state_dict={}))


def _plain_pickle(tmp_path: Path, poison: Poison) -> None:
    (tmp_path / "a.bin").write_bytes(pickle.dumps(Bomb(poison.exploded)))
    read_state_dict(tmp_path / "a.bin")


def _shard(tmp_path: Path, poison: Poison) -> None:
    poison.save(tmp_path / "pytorch_model-00001-of-00001.bin")
    index = {"weight_map": {"a": "pytorch_model-00001-of-00001.bin"}}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    read_state_dict(tmp_path)


def _pretrained_pth(tmp_path: Path, poison: Poison) -> None:
    tiny_model(tmp_path, pretrained_pth=str(poison.save(tmp_path / "a.pth")))


def _zero_model_states(tmp_path: Path, poison: Poison) -> None:
    folder = save_zero_checkpoint({"a": torch.ones(4)}, tmp_path / "z", 2)
    poison.save(folder / "mp_rank_00_model_states.pt", module={})
    read_state_dict(folder)


def _zero_optim_states(tmp_path: Path, poison: Poison) -> None:
    folder = save_zero_checkpoint({"a": torch.ones(4)}, tmp_path / "z", 2)
    poison.save(sorted(folder.glob("*optim_states.pt"))[-1])
    read_state_dict(folder)


def _resume_file(tmp_path: Path, poison: Poison) -> None:
    poison.save(tmp_path / "iter_3.pth", state_dict={}, optimizer={}, trainer={})
    CheckpointFolder(tmp_path).find("auto")


def _resume_state(tmp_path: Path, poison: Poison) -> None:
    PlainBackend.load(object.__new__(PlainBackend), poison.save(tmp_path / "iter_3.pth"))


def _resume_trainer(tmp_path: Path, poison: Poison) -> None:
    PlainBackend.read_trainer(object.__new__(PlainBackend), poison.save(tmp_path / "iter_3.pth"))


def _resume_deepspeed(tmp_path: Path, poison: Poison) -> None:
    folder = save_zero_checkpoint({"a": torch.ones(4)}, tmp_path / "iter_3.pth", 2)
    poison.save(sorted(folder.glob("*optim_states.pt"))[0])
    DeepSpeedBackend(_Engine(), None, torch.device("cpu")).load(folder)  # type: ignore[arg-type]


def _resume_universal(tmp_path: Path, poison: Poison) -> None:
    poison.save(tmp_path / "u" / "zero" / "w" / "fp32.pt")
    DeepSpeedBackend(_Engine(), None, torch.device("cpu")).load(tmp_path / "u")  # type: ignore[arg-type]


class _Engine:
    """Reads as DeepSpeed does."""

    def load_checkpoint(self, parent: str, tag: str, load_module_strict: bool) -> tuple[str, dict[str, Any]]:
        for file in (Path(parent) / tag).rglob("*.pt"):
            torch.load(file, weights_only=False)
        return tag, {}


def _deepspeed_by_itself(tmp_path: Path, poison: Poison) -> None:
    file = poison.save(tmp_path / "zero" / "w" / "fp32.pt")
    with restricted_loading():
        torch.load(file, weights_only=False)


def _universal(tmp_path: Path, poison: Poison) -> None:
    folder = save_zero_checkpoint({"a": torch.ones(4)}, tmp_path / "iter_3.pth", 2)
    torch.save({"trainer": {"iter": 3}}, folder / TRAINER_FILE)
    poison.save(sorted(folder.glob("*optim_states.pt"))[0])
    _run("convert", "universal", str(folder), str(tmp_path / "u"))


def _universal_trainer(tmp_path: Path, poison: Poison) -> None:
    folder = save_zero_checkpoint({"a": torch.ones(4)}, tmp_path / "iter_3.pth", 2)
    poison.save(folder / TRAINER_FILE)
    _run("convert", "universal", str(folder), str(tmp_path / "u"))


def _llm(tmp_path: Path, poison: Poison) -> None:
    folder = _no_safetensors(tiny_llm_folder(tmp_path))
    poison.save(folder / "pytorch_model.bin", **tiny_llm().state_dict())
    build_llm(str(folder))


def _clip(tmp_path: Path, poison: Poison) -> None:
    folder = _no_safetensors(tiny_clip_folder(tmp_path))
    poison.save(folder / "pytorch_model.bin")
    LowResEncoder(str(folder))


def _convnext(tmp_path: Path, poison: Poison) -> None:
    folder = _no_safetensors(tiny_convnext_folder(tmp_path))
    poison.save(folder / "open_clip_pytorch_model.bin")
    HighResEncoder(str(folder), image_size=64)


def _exported(tmp_path: Path, poison: Poison) -> None:
    assistant, node = tiny_assistant(tmp_path / "parts")
    folder = _no_safetensors(save_pretrained(assistant, node, tmp_path / "hf"))
    poison.save(folder / "pytorch_model.bin")
    load_assistant(folder)


def _adapter(tmp_path: Path, poison: Poison) -> None:
    base = tiny_llm_folder(tmp_path)
    adapter = tmp_path / "adapter"
    poison.save(adapter / "adapter_model.bin")
    config = {"peft_type": "LORA", "target_modules": ["q_proj"], "r": 2, "base_model_name_or_path": "x"}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    _run("convert", "merge", str(base), str(adapter), str(tmp_path / "out"))


def _detector(tmp_path: Path, poison: Poison) -> None:
    from tests.tiny_detectors import tiny_owlv2

    folder = _no_safetensors(Path(tiny_owlv2(tmp_path / "owl")))
    poison.save(folder / "pytorch_model.bin")
    Owlv2Detector(str(folder), vocabulary=None)


def _box_index(tmp_path: Path, poison: Poison) -> None:
    (tmp_path / "boxes.json").write_text(json.dumps([box_record("a.png")]))
    before = os.environ.get("XTUNER_CACHE")
    os.environ["XTUNER_CACHE"] = str(tmp_path / "cache")
    try:
        BoxStore(str(tmp_path / "boxes.json"))
        for table in (tmp_path / "cache").rglob("images.keys"):
            poison.array(table)
        BoxStore(str(tmp_path / "boxes.json"))
    finally:
        os.environ.pop("XTUNER_CACHE") if before is None else os.environ.update(XTUNER_CACHE=before)


def _run(*words: str) -> None:
    """A command, whose message stands for the error."""
    import contextlib
    import io

    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        code = main(words)
    assert code == 1
    raise XTunerError(said.getvalue())


DOORS: dict[str, Callable[[Path, Poison], None]] = {
    function.__name__: function
    for function in (
        *(_weights_file, _plain_pickle, _shard, _pretrained_pth, _zero_model_states, _zero_optim_states),
        *(_resume_file, _resume_state, _resume_trainer, _resume_deepspeed, _resume_universal),
        *(_deepspeed_by_itself, _universal, _universal_trainer),
        *(_llm, _clip, _convnext, _exported, _adapter, _detector, _box_index),
    )
}


@pytest.mark.parametrize("door", DOORS)
def test_nothing_runs(door: str, tmp_path: Path, poison: Poison) -> None:
    with pytest.raises(XTunerError, match="refused") as error:
        DOORS[door](tmp_path, poison)
    assert not poison.exploded.exists()
    assert "Traceback" not in str(error.value)


def test_there_is_no_other_door() -> None:
    """All that reads pickles in the packages: `load_pickle` and `load_array`; numpy's is told not to."""
    found = []
    for package in ("xtuner", "mg_llava"):
        for path in sorted((ROOT / package).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call) and ast.unparse(node.func) in READERS:
                    found.append(f"{path.relative_to(ROOT).as_posix()}: {ast.unparse(node.func)}")
    assert found == ["xtuner/data/store/arrays.py: np.load", "xtuner/model/files/pickles.py: torch.load"]


def test_the_bomb_is_real(tmp_path: Path, poison: Poison, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(RESTRICT_TORCH, raising=False)
    torch.load(poison.save(tmp_path / "a.pth"), weights_only=False)
    assert poison.exploded.exists()
