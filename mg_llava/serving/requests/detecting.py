"""One detector for many threads."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence

from PIL import Image

from mg_llava.boxes.selection import PictureBoxes
from mg_llava.inference.chat import Detector

_REMEMBERED = 64
_LOOK_SECONDS = 0.1
"""How often one that waits for the detector looks whether it is still waited for."""


class SharedDetector:
    """Looks at one picture at a time, whoever asks, and remembers the last ones: each turn brings its picture again.

    Args:
        detector: finds boxes.
        remembered: pictures whose boxes are kept.
    """

    def __init__(self, detector: Detector, remembered: int = _REMEMBERED) -> None:
        self.detector = detector
        self.remembered = remembered
        self._found: OrderedDict[bytes, PictureBoxes] = OrderedDict()
        self._lock = threading.Lock()

    def __call__(self, pictures: Sequence[Image.Image]) -> list[PictureBoxes]:
        """Returns one `PictureBoxes` per picture; see `mg_llava.detectors.base.Detector`."""
        return [self.look(picture) for picture in pictures]

    def look(self, picture: Image.Image, check: Callable[[], None] = lambda: None) -> PictureBoxes:
        """Returns the boxes of a picture.

        Args:
            picture: RGB.
            check: called while others' pictures are looked at; what it raises ends the waiting.
        """
        key = hashlib.blake2b(f"{picture.size}".encode() + picture.tobytes(), digest_size=16).digest()
        while not self._lock.acquire(timeout=_LOOK_SECONDS):
            check()
        try:
            if key not in self._found:
                check()
                (self._found[key],) = self.detector([picture])
            self._found.move_to_end(key)
            while len(self._found) > self.remembered:
                self._found.popitem(last=False)
            return self._found[key]
        finally:
            self._lock.release()
