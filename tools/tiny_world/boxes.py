"""What an imperfect detector would report for a scene, in the published box format."""

from __future__ import annotations

from typing import Any

from tools.tiny_world.dice import Dice
from tools.tiny_world.drawing import picture_name
from tools.tiny_world.scenes import LETTERS, SHAPES, Scene, Thing

MISSED_PERCENT = 5
WRONG_LABEL_PERCENT = 5
FALSE_PERCENT = 25
_JITTER_TENTHS = 18
"""Each side of a box is off by up to this many tenths of a pixel."""


def _jittered(thing: Thing, scene: Scene, dice: Dice) -> list[float]:
    limits = (scene.width, scene.height, scene.width, scene.height)
    tenths = (10 * value + dice.between(-_JITTER_TENTHS, _JITTER_TENTHS) for value in thing.box)
    return [min(max(tenth, 0), 10 * limit) / 10 for tenth, limit in zip(tenths, limits, strict=True)]


def _label(thing: Thing, dice: Dice) -> str:
    if thing.kind in LETTERS:
        return "letter"
    return dice.choice(SHAPES) if dice.percent(WRONG_LABEL_PERCENT) else thing.kind


def find_things(scene: Scene, dice: Dice) -> dict[str, Any]:
    """Returns boxes, labels and scores: some things missed, some distractors taken for shapes.

    Boxes are xyxy in pixels of the original picture; scores are between 0 and 1; labels are names.
    """
    found = [
        (_jittered(thing, scene, dice), _label(thing, dice), dice.between(350, 980))
        for thing in scene.named_things
        if not dice.percent(MISSED_PERCENT)
    ]
    found += [
        (_jittered(bar, scene, dice), dice.choice(SHAPES), dice.between(100, 450))
        for bar in scene.distractors
        if dice.percent(FALSE_PERCENT)
    ]
    found.sort(key=lambda entry: -entry[2])
    return {
        "boxes": [box for box, _, _ in found],
        "labels": [label for _, label, _ in found],
        "scores": [score / 1000 for _, _, score in found],
    }


def detect(scene: Scene, dice: Dice) -> dict[str, Any]:
    """Returns the box record of a scene; see `find_things`."""
    about = {"image": picture_name(scene), "id": scene.name, "width": scene.width, "height": scene.height}
    return {**about, **find_things(scene, dice)}
