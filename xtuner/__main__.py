"""``python -m xtuner``: the same as the console script ``xtuner``."""

from __future__ import annotations

import sys

from xtuner.cli import main

sys.exit(main())
