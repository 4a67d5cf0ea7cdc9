"""Processes without a launcher: one that dies ends the others, one that is late is named."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[4]
pytestmark = pytest.mark.multi_process

RANK = """
import os, sys, time
from xtuner.engine.processes import peers
peers.WAIT_SECONDS = peers._TELL_SECONDS = 1.0
rank, ends = int(os.environ["RANK"]), sys.argv[1]
watch = peers.join_peers(rank, 3, os.environ)
print("joined", flush=True)
if ends == "together":
    watch.leave()
elif ends == "late":
    from xtuner.engine.processes.environment import Collective, setup_environment
    setup_environment("pytorch")
    collective = Collective()
    if rank == 1:
        time.sleep(4)
    collective.barrier()
    watch.leave()
else:
    time.sleep(60)
"""


def start(ends: str) -> list[subprocess.Popen[str]]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = str(listener.getsockname()[1])
    environ = {
        **os.environ,
        "WORLD_SIZE": "3",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "PYTHONPATH": str(ROOT),
    }
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", RANK, ends],
            env={**environ, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(3)
    ]
    for rank in ranks:
        assert rank.stdout is not None and rank.stdout.readline() == "joined\n"
    return ranks


def ends_of(ranks: list[subprocess.Popen[str]]) -> list[tuple[int, str]]:
    try:
        said = [rank.communicate(timeout=40)[1] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    return [(rank.returncode, " ".join(text.split())) for rank, text in zip(ranks, said, strict=True)]


@pytest.mark.parametrize("dead", [0, 2])
def test_one_that_dies_while_preparing_ends_the_others(dead: int) -> None:
    ranks = start("sleeping")
    ranks[dead].send_signal(signal.SIGKILL)
    for number, (code, said) in enumerate(ends_of(ranks)):
        assert code == (-signal.SIGKILL if number == dead else 1)
        assert number == dead or f"rank {dead} (" in said and "has ended or died" in said


def test_those_that_have_finished_end_nobody() -> None:
    assert [code for code, _ in ends_of(start("together"))] == [0, 0, 0]


def test_the_one_that_is_waited_for_is_named() -> None:
    ends = ends_of(start("late"))
    assert [code for code, _ in ends] == [0, 0, 0]
    assert "Waiting for rank 1 (process" in ends[0][1] and ends[0][1].count("Waiting for") == 1
    assert "Waiting for" not in ends[1][1] + ends[2][1]
