"""``torchrun --nproc_per_node 8 tools/generate_boxes.py ARGUMENTS``: `xtuner preprocess boxes` on several GPUs."""

from __future__ import annotations

import sys

from xtuner.cli import main

if __name__ == "__main__":
    sys.exit(main(["preprocess", "boxes", *sys.argv[1:]]))
