"""Which engine answers, and what does not go together."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("fastapi", reason="fastapi is not installed: pip install '.[serve]'")

from mg_llava.serving import backend, command  # noqa: E402
from mg_llava.serving.requests.settings import Limits  # noqa: E402
from mg_llava.serving.vllm import versions  # noqa: E402
from xtuner.errors import XTunerError  # noqa: E402


def arguments(folder: Any, *words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return parser.parse_args([str(folder), *words])


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "installed_version", lambda: "0.32.0")


@pytest.mark.usefixtures("installed")
class TestChosen:
    def test_the_own_engine_unless_another_is_asked_for(self, exported: Path) -> None:
        assert backend.choose(arguments("no/config")) == "own"
        assert backend.choose(arguments(exported, "--backend", "own")) == "own"
        assert backend.choose(arguments(exported, "--backend", "vllm")) == "vllm"
        assert backend.choose(arguments(exported, "--backend-url", "http://a:1")) == "vllm"

    @pytest.mark.parametrize(("gpu", "folder", "words", "chosen"), [
        (False, True, (), "own"),
        (True, True, (), "vllm"),
        (True, True, ("--quantization", "4bit"), "own"),
        (True, False, (), "own"),
    ])  # fmt: skip
    def test_auto(
        self,
        exported: Path,
        monkeypatch: pytest.MonkeyPatch,
        gpu: bool,
        folder: bool,
        words: tuple[str, ...],
        chosen: str,
    ) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
        model = exported if folder else "some/config.py"
        assert backend.choose(arguments(model, "--backend", "auto", *words)) == chosen

    def test_auto_without_vllm(self, exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        for version in (None, "0.9.1"):
            monkeypatch.setattr(versions, "installed_version", lambda version=version: version)
            assert backend.choose(arguments(exported, "--backend", "auto")) == "own"

    def test_sizes_and_options(self, exported: Path) -> None:
        assert [backend.batch_of("own", None), backend.batch_of("vllm", None), backend.batch_of("vllm", 3)] == [
            8,
            64,
            3,
        ]
        args = arguments(exported, "--backend", "vllm", "--precision", "fp32", "--backend-args", "--max-model-len '99'")
        options = backend.vllm_options(args, Limits(max_batch=5))
        assert options == [
            "--max-num-seqs", "5", "--limit-mm-per-prompt", '{"image": 8}', "--dtype", "float32",
            "--max-model-len", "99",
        ]  # fmt: skip


class TestMistakes:
    @pytest.mark.parametrize(
        ("version", "message"), [(None, "vLLM is not installed: run"), ("0.9.1", "vLLM 0.9.1 is installed, but")]
    )
    def test_vllm_of_another_version_or_absent(
        self, exported: Path, monkeypatch: pytest.MonkeyPatch, version: str | None, message: str
    ) -> None:
        monkeypatch.setattr(versions, "installed_version", lambda: version)
        with pytest.raises(XTunerError, match=message):
            backend.choose(arguments(exported, "--backend", "vllm"))
        # one that runs elsewhere needs none here
        assert backend.choose(arguments(exported, "--backend-url", "http://a:1")) == "vllm"

    @pytest.mark.usefixtures("installed")
    @pytest.mark.parametrize(
        ("config", "message"),
        [
            ("", "has no config.json: pass one that `xtuner convert pth_to_hf` wrote"),
            ('{"model_type": "llava_llama"}', "is a model of type 'llava_llama', for which no package"),
            ('{"model_type": "mg_llava_other"}', "for which no package is installed"),
        ],
    )
    def test_folders_that_vllm_does_not_run(self, tmp_path: Path, config: str, message: str) -> None:
        """The original layout has parts as folders and no config.json of this package's."""
        (tmp_path / "visual_encoder").mkdir()
        if config:
            (tmp_path / "config.json").write_text(config)
        with pytest.raises(XTunerError, match=message):
            backend.choose(arguments(tmp_path, "--backend", "vllm"))
        with pytest.raises(XTunerError, match="is no folder: vLLM runs folders"):
            backend.choose(arguments(tmp_path / "absent", "--backend", "vllm"))

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (("--backend", "own", "--backend-url", "http://a:1"), "drop --backend own"),
            (("--backend", "vllm", "--checkpoint", "x.pth"), "--checkpoint is for the own engine"),
            (("--backend-url", "http://a:1", "--quantization", "4bit"), "--quantization is for the own engine"),
            (("--backend-url", "http://a:1", "--precision", "bf16"), "for a vLLM that is started here"),
            (("--backend-url", "http://a:1", "--backend-args", "x"), "for a vLLM that is started here"),
            (("--backend", "vllm", "--backend-model", "x"), "--backend-model is a name at --backend-url"),
            (("--backend-args", "x"), "--backend-args is for vLLM: add --backend vllm"),
            (("--backend", "vllm", "--backend-args", "'"), "cannot be read as words .*close its quotes"),
            (("--backend", "vllm", "--backend-args", "--port 9"), "has --port, by which this command reaches"),
            (("--backend", "vllm", "--backend-args=--api_key=x"), "has --api-key, by which this command reaches"),
        ],
    )
    def test_what_does_not_go_together(self, words: tuple[str, ...], message: str) -> None:
        with pytest.raises(XTunerError, match=message):
            backend.choose(arguments("folder", *words))
