"""Arrays in files of numpy, read so that nothing in them runs."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np

from xtuner.errors import XTunerError, reason_of


def load_array(path: Path, mmap_mode: Literal["r"] | None = None) -> np.ndarray:
    """Reads an array of numbers.

    Args:
        path: a .npy file.
        mmap_mode: ``r`` maps it.

    Raises:
        XTunerError: the file is absent, damaged, or holds Python objects, which are pickles and could run code.
    """
    try:
        return np.load(path, mmap_mode=mmap_mode, allow_pickle=False)
    except (OSError, ValueError, EOFError, SyntaxError) as error:
        raise XTunerError(
            f"'{path}' is refused: it holds no plain array of numbers ({reason_of(error)}). "
            "Remove the folder that it is in; the next start makes it anew."
        ) from error
