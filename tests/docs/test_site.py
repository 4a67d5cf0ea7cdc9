"""The site of the documentation builds without a warning, with the reference of every room."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_site(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "WARNING" not in done.stderr
    for page, name in [("api/mg_llava.model", "pool_boxes"), ("api/xtuner.config", "load_config"), ("data", "tar")]:
        assert name in (tmp_path / page / "index.html").read_text("utf-8")
    assert "architecture.svg" in (tmp_path / "index.html").read_text("utf-8")
