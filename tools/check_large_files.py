"""Fails when a file is too large for the repository: ``python tools/check_large_files.py FILE ...``."""

from __future__ import annotations

import sys
from pathlib import Path

LIMIT_BYTES = 2 * 1024 * 1024


def main(names: list[str]) -> int:
    """Prints the files of `names` over the limit; returns 1 if there are any."""
    large = [(name, Path(name).stat().st_size) for name in names if Path(name).is_file()]
    large = [(name, size) for name, size in large if size > LIMIT_BYTES]
    for name, size in large:
        print(
            f"{name}: {size / 2**20:.1f} MB, the limit is {LIMIT_BYTES / 2**20:.0f} MB. Make it with a script instead."
        )
    return 1 if large else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
