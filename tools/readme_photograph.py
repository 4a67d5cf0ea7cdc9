"""Makes docs/images/photograph_boxes.jpg: a real photograph with boxes, drawn by `mg_llava.boxes.draw_boxes`.

    pip install scikit-image
    python tools/readme_photograph.py

The photograph is scikit-image's `astronaut` (Eileen Collins; NASA, in the public domain). No neural detector took part,
since the weights of none travel with this project: scikit-image's own cascade finds the face, the other boxes were read
off a grid laid over the picture. They therefore have no real score; all show 1.00.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image
from skimage import data
from skimage.feature import Cascade

from mg_llava.boxes import PictureBoxes, draw_boxes

PICTURE = Path(__file__).parents[1] / "docs/images/photograph_boxes.jpg"
MEASURED = {
    "astronaut": (18, 15, 364, 512),
    "mission patch": (134, 349, 208, 423),
    "space shuttle": (354, 0, 472, 290),
    "helmet": (276, 343, 512, 512),
}
"""Boxes xyxy in pixels of the photograph, read off a grid."""


def find_face(photograph: np.ndarray) -> tuple[int, int, int, int]:
    """Returns the only face that the cascade finds, xyxy in pixels."""
    cascade = Cascade(data.lbp_frontal_face_cascade_filename())
    found = cascade.detect_multi_scale(
        photograph, scale_factor=1.2, step_ratio=1, min_size=(60, 60), max_size=(123, 123)
    )
    if len(found) != 1:
        raise SystemExit(f"the cascade finds {len(found)} faces, expected one: another version of the photograph?")
    left, top = found[0]["c"], found[0]["r"]
    return left, top, left + found[0]["width"], top + found[0]["height"]


def main() -> None:
    """Writes the picture."""
    photograph = data.astronaut()
    named = {**MEASURED, "face": find_face(photograph)}
    boxes = PictureBoxes(np.array(list(named.values()), np.float32), tuple(named), np.ones(len(named), np.float32))
    # twice as large, so that the labels can be read
    picture = Image.fromarray(photograph)
    picture = picture.resize((2 * picture.width, 2 * picture.height), Image.Resampling.LANCZOS)
    draw_boxes(picture, boxes._replace(boxes=2 * boxes.boxes)).save(PICTURE, quality=85, optimize=True)
    print(PICTURE)


if __name__ == "__main__":
    main()
