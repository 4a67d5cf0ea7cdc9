"""Checkpoints in the original's key layout, as recorded: nothing missing, nothing unexpected, in every file
form.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mg_llava.model import MGLLaVA
from mg_llava.model.checkpoint_names import is_published_layout, to_our_names, to_published_names
from mg_llava.model.encoders import LowResEncoder
from mg_llava.model.fusion import ConvGateFusion
from mg_llava.model.objects import ObjectEncoder
from tests.parity.golden import golden_path
from tests.parity.golden_model import StandInTower
from xtuner.errors import XTunerError
from xtuner.model.files.weight_files import read_state_dict
from xtuner.model.llm import build_llm
from xtuner.model.projector import MLPProjector

KEYS = {name: json.loads(golden_path(f"e_model/{name}_keys.json").read_text()) for name in ("light", "full")}
CASES = [("light", "pretrain"), ("light", "sft"), ("full", "pretrain"), ("full", "sft")]
CONNECTORS = ("fusion", "projector", "object_encoder")


def published(layout: str, kind: str) -> dict[str, torch.Tensor]:
    """Random weights under the recorded names."""
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.randn(shape, generator=generator, dtype=getattr(torch, dtype.removeprefix("torch.")))
        for name, shape, dtype in KEYS[layout][kind]
    }


@pytest.fixture(scope="module")
def model() -> MGLLaVA:
    return MGLLaVA(
        llm={"type": build_llm, "name_or_path": str(golden_path("tiny/llm")), "dtype": "float32"},
        low_res_encoder={"type": LowResEncoder, "name_or_path": str(golden_path("tiny/clip"))},
        high_res_encoder=StandInTower(),
        fusion={"type": ConvGateFusion},
        projector={"type": MLPProjector},
        object_encoder={"type": ObjectEncoder},
    )


@pytest.mark.parametrize(("layout", "kind"), CASES)
@pytest.mark.parametrize("form", ["checkpoint.pth", "state_dict.pth", "weights.safetensors", "sharded"])
def test_nothing_missing_nothing_unexpected(model: MGLLaVA, tmp_path: Path, layout: str, kind: str, form: str) -> None:
    state = published(layout, kind)
    path = write(state, tmp_path / form)
    report = model.load_checkpoint(path)
    assert report.missing == ()
    assert report.unexpected == ()
    assert set(report.loaded_parts) == {*CONNECTORS, *(["llm"] if kind == "sft" else [])}
    loaded = to_published_names(model.full_state_dict())
    for name, value in state.items():
        assert torch.equal(loaded[name], value), name


def write(state: dict[str, torch.Tensor], path: Path) -> Path:
    if path.suffix == ".safetensors":
        save_file(state, path)
    elif path.suffix == ".pth":
        torch.save({"state_dict": state, "meta": {"iter": 3}} if path.stem == "checkpoint" else state, path)
    else:
        path.mkdir()
        names = sorted(state)
        halves = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
        for file, keys in halves.items():
            save_file({key: state[key] for key in keys}, path / file)
        weight_map = {key: file for file, keys in halves.items() for key in keys}
        (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return path


@pytest.mark.parametrize(("layout", "kind"), CASES)
def test_name_table_round_trip(layout: str, kind: str) -> None:
    state = {name: torch.empty(0) for name, _, _ in KEYS[layout][kind]}
    ours = to_our_names(state)
    assert is_published_layout(state)
    assert not is_published_layout(ours)
    assert list(to_published_names(ours)) == list(state)
    assert all(name.split(".")[0] in (*CONNECTORS, "llm") for name in ours)


def test_partial_checkpoint_names_the_absent_parts(model: MGLLaVA, tmp_path: Path) -> None:
    state = published("light", "pretrain")
    partial = {name: value for name, value in state.items() if not name.startswith("bbox_projector")}
    del partial["fuse_module.gate.2.bias"]
    torch.save(partial, tmp_path / "partial.pth")
    before = model.full_state_dict()["projector.layers.0.bias"].clone()
    with pytest.raises(XTunerError) as error:
        model.load_checkpoint(tmp_path / "partial.pth")
    message = str(error.value)
    assert "the part 'object_encoder' is absent (4 weights)" in message
    assert "the part 'fusion' is incomplete: it lacks 1 weight, e.g. fusion.gate.2.bias" in message
    assert "the part 'projector'" not in message
    # all or nothing
    assert torch.equal(model.full_state_dict()["projector.layers.0.bias"], before)


def test_checkpoint_of_another_width_names_both(model: MGLLaVA, tmp_path: Path) -> None:
    state = published("light", "pretrain")
    state["projector.model.2.weight"] = torch.zeros(4096, 64)
    torch.save(state, tmp_path / "wide.pth")
    with pytest.raises(XTunerError, match=r"\(4096, 64\) in the checkpoint and \(64, 64\) in this model"):
        model.load_checkpoint(tmp_path / "wide.pth")


def test_checkpoint_of_another_model(model: MGLLaVA, tmp_path: Path) -> None:
    torch.save({"backbone.weight": torch.zeros(2)}, tmp_path / "other.pth")
    with pytest.raises(XTunerError, match="the part 'fusion' is absent(.|\n)*It holds backbone"):
        model.load_checkpoint(tmp_path / "other.pth")


def test_reading_keeps_types(tmp_path: Path) -> None:
    state = {name: value.to(torch.bfloat16) for name, value in published("light", "pretrain").items()}
    torch.save(state, tmp_path / "half.pth")
    assert all(value.dtype == torch.bfloat16 for value in read_state_dict(tmp_path / "half.pth").values())
