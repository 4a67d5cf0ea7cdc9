"""One logger and one terminal for the whole framework."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.logging import RichHandler

# in a file or a pipe a line stays one line: rich would break it at 80 columns
console = Console(stderr=True, width=None if sys.stderr.isatty() else 240)
"""Terminal for progress bars, tables and messages; standard output stays free for results."""

_NAME = "xtuner"


def get_logger() -> logging.Logger:
    """Returns the framework's logger; ranks other than 0 only show warnings and errors."""
    logger = logging.getLogger(_NAME)
    if not logger.handlers:
        logger.addHandler(RichHandler(console=console, show_path=False, rich_tracebacks=True))
        logger.setLevel(logging.INFO if int(os.environ.get("RANK", "0")) == 0 else logging.WARNING)
        logger.propagate = False
    return logger


@contextmanager
def warnings_only() -> Iterator[None]:
    """Keeps information off the log: for what is only looked at, and said again by whoever uses it."""
    logger = get_logger()
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)


def tell_from_any_rank(message: str, *values: object) -> None:
    """Logs what one process did for all, as information, also where it is not rank 0."""
    logger = get_logger()
    # past the level, by which other ranks say warnings only
    logger.handle(logger.makeRecord(logger.name, logging.INFO, __file__, 0, message, values, None))
