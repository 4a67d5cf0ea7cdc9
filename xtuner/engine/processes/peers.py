"""Who else is there: a process that died ends the others, and one that is waited for is named.

Every rank keeps a connection to rank 0 from before its data are prepared until it has finished. The system closes it
when a process dies, however it dies and however busy it was, so that nobody waits half an hour for somebody who is
gone. Over the same connections the ranks tell how many meetings (`waiting`) they have come to.
"""

from __future__ import annotations

import atexit
import json
import logging
import os
import secrets
import selectors
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from torch.distributed import DistError, Store, rendezvous

from xtuner.errors import XTunerError, reason_of
from xtuner.json_values import parse_json
from xtuner.log import get_logger

WAIT_SECONDS = 60.0
_TELL_SECONDS = 5.0
_GRACE_SECONDS = 5.0
_START = timedelta(minutes=10)
_LOOK_SECONDS = 0.5
_DIED = 1
_LONGEST_GREETING = 4096
_STRANGERS = 64
"""Connections that have not said who they are, beyond those of the ranks."""


@dataclass
class _Meetings:
    """How many meetings of all ranks this process has come to, and since when it waits in one."""

    count: int = 0
    since: float | None = None


_meetings = _Meetings()


@contextmanager
def waiting() -> Iterator[None]:
    """Marks what all ranks do together, as often and in the same order on each."""
    _meetings.count += 1
    _meetings.since = time.monotonic()
    try:
        yield
    finally:
        _meetings.since = None


@dataclass
class _Line:
    """A connection to another rank, and what is known of that."""

    socket: socket.socket
    rank: int | None = None
    who: str = ""
    received: bytes = b""
    left: bool = field(default=False)


class PeerWatch:
    """Watches the other ranks in a thread; see this module's head.

    Args:
        rank, world_size: of this process.
        host: address of rank 0.
        store: where rank 0 says how to reach it.

    Raises:
        XTunerError: rank 0 cannot be reached.
    """

    def __init__(self, rank: int, world_size: int, host: str, store: Store) -> None:
        self.rank = rank
        self.world_size = world_size
        # rank 0 serves the others for as long as it holds this
        self._store = store
        self._selector = selectors.DefaultSelector()
        self._lines: list[_Line] = []
        self._counts: dict[int, int] = {}
        self._who: dict[int, str] = {rank: f"process {os.getpid()} on {socket.gethostname()}"}
        self._leaving = threading.Event()
        self._dead = threading.Event()
        self._reason = ""
        self._told = 0
        self._listener = self._listen() if rank == 0 else None
        if rank != 0:
            self._token, line = self._connect(host)
            self._send(line, {"token": self._token, "rank": rank, "who": self._who[rank]})
        self._thread = threading.Thread(target=self._watch, name="peers", daemon=True)
        self._thread.start()

    def leave(self) -> None:
        """Says that this process has finished: nobody ends because it is gone."""
        self._leaving.set()
        self._thread.join()

    def _listen(self) -> socket.socket:
        both = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if both else socket.AF_INET
        listener = socket.create_server(("", 0), family=family, backlog=self.world_size, dualstack_ipv6=both)
        self._token = secrets.token_hex(16)
        self._selector.register(listener, selectors.EVENT_READ)
        self._store.set("xtuner/peers", f"{listener.getsockname()[1]} {self._token}")
        return listener

    def _connect(self, host: str) -> tuple[str, _Line]:
        try:
            port, token = self._store.get("xtuner/peers").decode().split()
            line = self._add(socket.create_connection((host, int(port)), timeout=WAIT_SECONDS))
        except (OSError, RuntimeError) as error:
            raise XTunerError(
                f"rank {self.rank} cannot reach rank 0 at {host}: {reason_of(error)}. Its own log says "
                "whether it has started; set ADDR (MASTER_ADDR) to an address that all machines reach."
            ) from error
        line.rank, line.who = 0, f"rank 0 at {host}"
        return token, line

    def _add(self, connection: socket.socket) -> _Line:
        connection.settimeout(_GRACE_SECONDS)
        # a machine that has lost its power closes nothing
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3)):
            if hasattr(socket, name):
                connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
        line = _Line(connection)
        self._lines.append(line)
        self._selector.register(connection, selectors.EVENT_READ, line)
        return line

    def _accept(self) -> None:
        assert self._listener is not None
        try:
            connection = self._listener.accept()[0]
        except OSError:
            return  # gone again before it was taken
        if sum(line.rank is None for line in self._lines) >= self.world_size + _STRANGERS:
            connection.close()
        else:
            self._add(connection)

    def _watch(self) -> None:
        told_at = time.monotonic()
        while not self._leaving.is_set():
            for key, _ in self._selector.select(_LOOK_SECONDS):
                if key.data is None:
                    self._accept()
                else:
                    self._receive(key.data)
            if time.monotonic() - told_at >= _TELL_SECONDS:
                told_at = time.monotonic()
                self._tell()
                self._name_late_ranks()
        for line in self._lines:
            self._send(line, {"left": True})
            line.socket.close()
        if self._listener is not None:
            self._listener.close()

    def _tell(self) -> None:
        self._counts[self.rank] = _meetings.count
        news: dict[str, Any] = {"counts": self._counts if self.rank == 0 else {self.rank: _meetings.count}}
        if self.rank == 0:
            news["names"] = self._who
        for line in list(self._lines):
            if line.rank is not None:
                self._send(line, news)

    def _send(self, line: _Line, news: Mapping[str, Any]) -> None:
        try:
            line.socket.sendall(json.dumps(news).encode() + b"\n")
        except OSError:
            return  # the end of the connection is read too, and acted upon there

    def _receive(self, line: _Line) -> None:
        try:
            part = line.socket.recv(1 << 16)
        except OSError:
            part = b""
        if not part:
            self._close(line)
            return
        *whole, line.received = (line.received + part).split(b"\n")
        if line.rank is None and not self._admit(line, whole.pop(0) if whole else None):
            return
        for text in whole:
            self._take(line, json.loads(text))

    def _admit(self, line: _Line, greeting: bytes | None) -> bool:
        """Tells whether a connection is a rank's; whatever else has found the port is closed."""
        if greeting is None and len(line.received) <= _LONGEST_GREETING:
            return False  # the rest of it is on its way
        try:
            news = parse_json(greeting or b"")
            admitted = secrets.compare_digest(str(news["token"]).encode(), self._token.encode())
            rank, who = int(news["rank"]), str(news["who"])
        except (ValueError, TypeError, KeyError):
            admitted = False
        if not admitted:
            self._close(line)
            return False
        line.rank, line.who = rank, who
        self._who[rank] = who
        return True

    def _take(self, line: _Line, news: Mapping[str, Any]) -> None:
        if "died" in news:
            self._end(news["died"])
        line.left = line.left or news.get("left", False)
        self._counts.update({int(rank): count for rank, count in news.get("counts", {}).items()})
        self._who.update({int(rank): who for rank, who in news.get("names", {}).items()})

    def _close(self, line: _Line) -> None:
        self._selector.unregister(line.socket)
        self._lines.remove(line)
        line.socket.close()
        if line.rank is not None and not line.left and not self._leaving.is_set():
            who = self._who.get(line.rank, line.who)
            self._end(f"rank {line.rank} ({who}) has ended or died: its own output says why")

    @contextmanager
    def naming_the_dead(self) -> Iterator[None]:
        """Says which rank has died where an operation of all ranks fails for want of it.

        Raises:
            XTunerError: in the place of the failure.
        """
        try:
            yield
        except RuntimeError as error:
            # the failure may be here a moment before the end of the connection
            if not _is_of_communication(error) or not self._dead.wait(2 * _GRACE_SECONDS):
                raise
            atexit.register(_leave_at_once)
            raise XTunerError(f"{self._reason}. Rank {self.rank} cannot go on without it.") from error

    def _end(self, reason: str) -> None:
        """Tells the others, gives this process time to end by itself, then ends it."""
        self._reason = reason
        # before anything else: this process may end as soon as it knows, and the others would blame it
        for line in self._lines:
            self._send(line, {"died": reason})
        self._dead.set()
        # all may have found the same fault, and each says it best itself
        if not self._leaving.wait(_GRACE_SECONDS):
            get_logger().error("%s. Rank %d waits no longer.", reason, self.rank)
            os._exit(_DIED)

    def _name_late_ranks(self) -> None:
        since, count = _meetings.since, _meetings.count
        if since is None or count == self._told or time.monotonic() - since < WAIT_SECONDS:
            return
        late = [rank for rank in range(self.world_size) if self._counts.get(rank, 0) < count]
        # one of those that wait speaks for all
        if late and all(rank in late for rank in range(self.rank)):
            self._told = count
            names = ", ".join(f"rank {rank} ({self._who.get(rank, 'not there yet')})" for rank in late)
            get_logger().warning("Waiting for %s for more than %.0f s.", names, WAIT_SECONDS)


def _is_of_communication(error: RuntimeError) -> bool:
    words = str(error)
    return isinstance(error, DistError) or any(word in words for word in ("gloo", "Gloo", "NCCL", "onnection"))


def join_peers(rank: int, world_size: int, environ: Mapping[str, str]) -> PeerWatch | None:
    """Starts to watch the other ranks; None with a single process. Needs torch's rendezvous variables.

    Raises:
        XTunerError: rank 0 cannot be reached.
    """
    if world_size == 1:
        return None
    try:
        store, _, _ = next(rendezvous("env://", timeout=_START))
    except (RuntimeError, ValueError) as error:
        raise XTunerError(
            f"rank {rank} cannot reach rank 0 at {environ.get('MASTER_ADDR')}:{environ.get('MASTER_PORT')}: "
            f"{reason_of(error)}."
        ) from error
    return PeerWatch(rank, world_size, environ["MASTER_ADDR"], store)


def _leave_at_once() -> None:
    """Ends the process before the interpreter takes itself down: threads of a group that has lost a member would abort
    it there, and the exit code would be that of a crash.
    """
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(_DIED)
