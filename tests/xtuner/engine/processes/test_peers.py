"""Processes without a launcher: one that dies ends the others, one that is late is named."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from torch.distributed import TCPStore

from xtuner.engine.processes.peers import PeerWatch

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
    # in a run, too, nobody has finished before all have begun
    watch._store.add("begun", 1)
    while watch._store.add("begun", 0) < 3:
        time.sleep(0.05)
    watch.leave()
elif ends == "late":
    from xtuner.engine.processes.environment import Collective, setup_environment
    setup_environment("pytorch")
    collective = Collective()
    if rank == 1:
        time.sleep(4)
    collective.barrier()
    watch.leave()
elif ends == "stepping":
    import torch
    from xtuner.engine.processes.environment import Collective, setup_environment
    from xtuner.errors import XTunerError
    setup_environment("pytorch")
    try:
        with watch.naming_the_dead():
            while True:
                torch.distributed.all_reduce(torch.ones(1000))
                time.sleep(0.01)
    except XTunerError as error:
        sys.exit(str(error))
else:
    time.sleep(60)
"""


PORTS: list[int] = []


def start(ends: str) -> list[subprocess.Popen[str]]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        PORTS.append(listener.getsockname()[1])
    environ = {
        **os.environ,
        "WORLD_SIZE": "3",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(PORTS[-1]),
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


@pytest.mark.parametrize("dead", [0, 2])
def test_one_that_dies_in_the_middle_of_a_step_is_named_without_a_traceback(dead: int) -> None:
    ranks = start("stepping")
    time.sleep(8)
    ranks[dead].send_signal(signal.SIGKILL)
    for number, (code, said) in enumerate(ends_of(ranks)):
        assert code == (-signal.SIGKILL if number == dead else 1)
        assert number == dead or f"rank {dead} (" in said and "Traceback" not in said


def test_an_own_fault_is_not_blamed_on_others() -> None:
    watch = PeerWatch.__new__(PeerWatch)
    with pytest.raises(RuntimeError, match="shapes"), watch.naming_the_dead():
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")


def test_strangers_at_the_port_change_nothing() -> None:
    ranks = start("sleeping")
    store = TCPStore("127.0.0.1", PORTS[-1], is_master=False)
    port = int(store.get("xtuner/peers").split()[0])
    said = [
        b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", b"\n", b"[]\n", b'{"token": 1}\n', b"\xff\xfe\n", b"x" * 100_000,
        b'{"token": "a", "rank": 9, "who": "me"}\n{"died": "ha"}\n', b"[" * 5000 + b"\n", b"",
    ]  # fmt: skip
    for words in said:
        with socket.create_connection(("127.0.0.1", port), timeout=10) as stranger:
            stranger.sendall(words)
    waiting = [socket.create_connection(("127.0.0.1", port), timeout=10) for _ in range(100)]
    time.sleep(2)
    assert [rank.poll() for rank in ranks] == [None] * 3
    ranks[2].send_signal(signal.SIGKILL)
    ends = ends_of(ranks)
    for stranger in waiting:
        stranger.close()
    assert all("rank 2 (" in text and "Traceback" not in text for _, text in ends[:2])


def test_those_that_have_finished_end_nobody() -> None:
    assert [code for code, _ in ends_of(start("together"))] == [0, 0, 0]


def test_the_one_that_is_waited_for_is_named() -> None:
    ends = ends_of(start("late"))
    assert [code for code, _ in ends] == [0, 0, 0]
    assert "Waiting for rank 1 (process" in ends[0][1] and ends[0][1].count("Waiting for") == 1
    assert "Waiting for" not in ends[1][1] + ends[2][1]
