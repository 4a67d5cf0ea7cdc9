"""``torchrun --nproc_per_node 8 tools/generate_boxes.py ARGUMENTS``: `xtuner preprocess boxes` on several GPUs."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # also where not installed

from xtuner.cli import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main(["preprocess", "boxes", *sys.argv[1:]]))
