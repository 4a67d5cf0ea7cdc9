from __future__ import annotations

import os
import sys

import pytest

from xtuner.errors import XTunerError
from xtuner.launch import count_processes, torchrun_command

RUN = [sys.executable, "-m", "torch.distributed.run"]


@pytest.mark.parametrize("environ", [{}, {"NPROC_PER_NODE": "1"}, {"NPROC_PER_NODE": "8", "LOCAL_RANK": "3"}])
def test_one_process_stays(environ: dict[str, str]) -> None:
    assert torchrun_command(["train", "c"], environ) is None


def test_one_node_picks_a_port() -> None:
    expected = [*RUN, "--nproc_per_node=2", "--standalone", "-m", "xtuner", "train", "c"]
    assert torchrun_command(["train", "c"], {"NPROC_PER_NODE": "2"}) == expected


def test_several_nodes() -> None:
    environ = {"NPROC_PER_NODE": "8", "NNODES": "4", "NODE_RANK": "2", "ADDR": "10.0.0.1", "PORT": "2345"}
    where = ["--nnodes=4", "--node_rank=2", "--master_addr=10.0.0.1", "--master_port=2345"]
    assert torchrun_command(["train"], environ) == [
        *RUN,
        "--nproc_per_node=8",
        *where,
        "-m",
        "xtuner",
        "train",
    ]


@pytest.mark.parametrize(
    ("environ", "message"),
    [({"NNODES": "2"}, "ADDR is not set"), ({"NPROC_PER_NODE": "two"}, "NPROC_PER_NODE is 'two'")],
)
def test_refuses(environ: dict[str, str], message: str) -> None:
    with pytest.raises(XTunerError, match=message):
        torchrun_command(["train"], environ)


@pytest.mark.parametrize(
    ("environ", "count"),
    [({}, 1), ({"NPROC_PER_NODE": "4", "NNODES": "2"}, 8), ({"NPROC_PER_NODE": "cpu"}, os.cpu_count())],
)
def test_how_many_processes(environ: dict[str, str], count: int) -> None:
    assert count_processes(environ) == count


def test_how_many_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 3)
    assert count_processes({"NPROC_PER_NODE": "gpu", "NNODES": "2"}) == 6
    with pytest.raises(XTunerError, match="NPROC_PER_NODE is 'two'"):
        count_processes({"NPROC_PER_NODE": "two"})
