"""An exported tiny model whose sources are gone, and what it was made from."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from mg_llava.hf import MGLLaVAForConditionalGeneration, MGLLaVAProcessor, save_pretrained
from mg_llava.inference.assistant import Assistant
from tests.tiny_assistant import randomize, tiny_assistant


@dataclass(frozen=True)
class Exported:
    """A folder and the assistant that was saved to it."""

    folder: Path
    assistant: Assistant


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    root = tmp_path_factory.mktemp("export")
    assistant, node = tiny_assistant(root / "parts")
    folder = save_pretrained(randomize(assistant), node, root / "hf", {"config": "tiny"})
    shutil.rmtree(root / "parts" / "convnext")
    return Exported(folder, assistant)


@pytest.fixture(scope="module")
def model(exported: Exported) -> MGLLaVAForConditionalGeneration:
    torch.manual_seed(0)
    return MGLLaVAForConditionalGeneration.from_pretrained(exported.folder)


@pytest.fixture(scope="module")
def processor(exported: Exported) -> MGLLaVAProcessor:
    return MGLLaVAProcessor.from_pretrained(exported.folder)
