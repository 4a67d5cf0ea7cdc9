"""200 records of the tiny world as JSON, Parquet, Arrow and WebDataset: the same samples, the same losses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from mg_llava.data.dataset import MGLLaVADataset
from tests.mg_llava.data.test_source_kinds import same_samples
from tests.source_files import as_rows, write_source
from tools.tiny_world.make import make_data
from tools.tiny_world.parts import SHIPPED
from xtuner.config import load_config
from xtuner.registry import build

COUNT, BATCH, STEPS = 200, 4, 3
KINDS = ("parquet", "arrow folder", "webdataset")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stage 2's records of 200 scenes, some without a picture, with pictures and boxes."""
    folder = tmp_path_factory.mktemp("world")
    make_data(folder / "data", 0, COUNT, Console(quiet=True))
    records = json.loads((folder / "data/sft.json").read_text())[:COUNT]
    assert len(records) == COUNT and not all("image" in record for record in records)
    (folder / "data.json").write_text(json.dumps(records))
    rows = as_rows(records, folder / "data", json.loads((folder / "data/boxes.json").read_text()))
    paths = {kind: write_source(kind, folder / kind.replace(" ", "_"), rows) for kind in KINDS}
    (folder / "paths.json").write_text(json.dumps(paths))
    return folder


def config(world: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("XTUNER_CACHE", str(world / "cache"))
    parts = {"llm_name_or_path": "llm", "visual_encoder_name_or_path": "clip", "visual_encoder_aux_path": "convnext"}
    settings: dict[str, Any] = {name: str(SHIPPED / part) for name, part in parts.items()}
    data = {"data_path": str(world / "data.json"), "image_folder": str(world / "data")}
    data["box_json_path"] = str(world / "data/boxes.json")
    if kind != "json":
        path = json.loads((world / "paths.json").read_text())[kind]
        data = {"data_path": path, "image_folder": "", "box_json_path": None}
    return load_config("tiny_sft", {**settings, **data})


def losses(cfg: Any, dataset: MGLLaVADataset) -> list[float]:
    torch.manual_seed(0)
    model = build(cfg.model).train()
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.01)
    found = []
    for step in range(STEPS):
        batch = dataset.collate_fn([dataset[number] for number in range(step * BATCH, (step + 1) * BATCH)])
        loss = model(**model.data_preprocessor(batch, True))["loss_sum"] / BATCH
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_samples(kind: str, world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, reference = (build(config(world, one, monkeypatch).train_dataset) for one in (kind, "json"))
    assert len(reference) == COUNT
    same_samples(ours, reference)


@pytest.mark.slow
def test_the_same_losses(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = {}
    for kind in ("json", *KINDS):
        cfg = config(world, kind, monkeypatch)
        found[kind] = losses(cfg, build(cfg.train_dataset))
    assert len(set(found["json"])) == STEPS
    for kind in KINDS:
        # the same inputs; threads may add in another order
        assert found[kind] == pytest.approx(found["json"], rel=1e-6)
