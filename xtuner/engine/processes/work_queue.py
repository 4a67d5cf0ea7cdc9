"""Numbers of work packages that processes take in turn, so that none waits while another has much left."""

from __future__ import annotations

import os
from collections.abc import Iterator

from torch.distributed import TCPStore

from xtuner.engine.processes.environment import Collective


class WorkQueue:
    """Hands out the numbers 0, 1, …, each to one process only, to whoever asks first.

    All processes make their queues in the same order; rank 0 keeps the count for all, so it must outlive the others'
    last `take`: end with a barrier.

    Args:
        collective: this process among the others.
        count: packages.
    """

    _stores: dict[int, TCPStore] = {}
    _made = 0

    def __init__(self, collective: Collective, count: int) -> None:
        self.count = count
        self._taken = 0
        self._store = None if collective.world_size == 1 else self._shared_store(collective)
        WorkQueue._made += 1
        self._key = f"taken/{WorkQueue._made}"

    @classmethod
    def _shared_store(cls, collective: Collective) -> TCPStore:
        """One store for all queues of this process: opened at the first."""
        if collective.world_size not in cls._stores:
            host = os.environ.get("MASTER_ADDR", "127.0.0.1")
            store = None
            if collective.rank == 0:
                # a free port; the others join when they know it
                store = TCPStore(host, 0, is_master=True, wait_for_workers=False)
            port = collective.gather(None if store is None else store.port)[0]
            cls._stores[collective.world_size] = store or TCPStore(host, port, is_master=False)
        return cls._stores[collective.world_size]

    def take(self) -> int | None:
        """Returns the next number, None where all are given out."""
        if self._store is None:
            self._taken += 1
            number = self._taken
        else:
            number = self._store.add(self._key, 1)
        return number - 1 if number <= self.count else None

    def close(self) -> None:
        """Gives out nothing more, to any process."""
        self._taken = self.count
        if self._store is not None:
            self._store.add(self._key, self.count)

    def __iter__(self) -> Iterator[int]:
        """Yields the numbers that this process gets."""
        while (number := self.take()) is not None:
            yield number
