from __future__ import annotations

import os
import subprocess
import sys

import pytest

from xtuner.threads import SPIN_COUNT, describe_waiting, settle_waiting

CODE = """
import os
from xtuner.threads import settle_waiting
settled = settle_waiting()
import torch
torch.ones(300, 300) @ torch.ones(300, 300)
print(settled, os.environ.get("GOMP_SPINCOUNT"))
"""


def said(**variables: str) -> str:
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_WAIT", "GOMP_", "KMP_"))}
    done = subprocess.run(
        [sys.executable, "-c", CODE], env={**environ, **variables}, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def test_before_torch_is_loaded() -> None:
    assert said() == f"True {SPIN_COUNT}"


@pytest.mark.parametrize("name", ["OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"])
def test_what_the_user_says_counts(name: str) -> None:
    value = {"OMP_WAIT_POLICY": "ACTIVE"}.get(name, "5")
    environ = {name: value}
    assert said(**environ).startswith("False")
    assert describe_waiting(environ) == f"{name}={value}"


def test_too_late_where_torch_is_loaded() -> None:
    import torch

    environ: dict[str, str] = {}
    assert torch.get_num_threads() >= 1 and not settle_waiting(environ) and not environ
    assert describe_waiting(environ) == "OpenMP's own way of waiting"
