"""``python -m xtuner``: the same as the console script ``xtuner``."""

from __future__ import annotations

import sys

from xtuner.cli import main

# processes that are spawned, vLLM's among them, import this file under another name
if __name__ == "__main__":
    sys.exit(main())
