"""How far the preparing of a file is: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import os
import time
from types import TracebackType

from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from xtuner.log import console, tell_from_any_rank

_SECONDS_BETWEEN_LINES = 30


class FileProgress:
    """Shows the share of a file that was read, records per second, and the time left.

    Args:
        path: the file.
        doing: what is done with it, "Preparing" say.
        size: bytes to be read; None = the file's.
    """

    def __init__(self, path: str, doing: str, size: int | None = None) -> None:
        self.doing = f"{doing} {os.path.basename(path)}"
        self.size = max(1, size if size is not None else os.path.getsize(path) if os.path.isfile(path) else 0)
        self.read = 0
        self.records = 0
        self._started = self._told = time.monotonic()
        self._bar: Progress | None = None
        if console.is_terminal and os.environ.get("RANK", "0") == "0":
            columns = (
                TextColumn(self.doing),
                BarColumn(),
                TextColumn("{task.fields[records]:,} records, {task.fields[rate]:,.0f}/s"),
                TimeRemainingColumn(),
            )
            self._bar = Progress(*columns, console=console, transient=True)
            self._task = self._bar.add_task(self.doing, total=self.size, records=0, rate=0.0)

    def __enter__(self) -> FileProgress:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def on_bytes(self, position: int) -> None:
        """Takes note that `position` bytes have been read."""
        self.read = position

    def advance(self, records: int) -> None:
        """Takes note of `records` more records that are done, and shows it where it is time."""
        self.records += records
        now = time.monotonic()
        seconds = max(now - self._started, 1e-9)
        rate = self.records / seconds
        if self._bar is not None:
            self._bar.update(self._task, completed=self.read, records=self.records, rate=rate)
        elif now - self._told > _SECONDS_BETWEEN_LINES:
            self._told = now
            left = seconds * (self.size - self.read) / max(self.read, 1)
            tell_from_any_rank(
                f"{self.doing}: {self.read / self.size:.0%}, {self.records:,} records, {rate:,.0f}/s, "
                f"about {left / 60:.0f} min left"
            )
