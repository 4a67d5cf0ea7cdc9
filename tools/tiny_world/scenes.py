"""Scenes of the tiny world: which things stand where, before anything is drawn or asked."""

from __future__ import annotations

from dataclasses import dataclass

from tools.tiny_world.dice import Dice

SHAPES = ("circle", "square", "triangle", "cross", "ring")
COLOURS = ("red", "green", "blue", "yellow", "purple", "orange")
LETTERS = ("A", "H", "L", "T", "X", "Z")
SIZES = ((192, 192), (192, 128), (128, 192))
"""Picture sizes (width, height): square, wide and tall ones, so that padding to a square matters."""

CELL = 32
"""Things stand in cells of this many pixels, one per cell, so they never touch."""
GRID = 192 // CELL
"""Cells along each side of the padded picture, and of both encoders' last maps."""
THING_SIZE = (8, 11)
"""Smallest and largest side of a shape in pixels. In the 84 px view that is 3.5 to 5 px: colour and place
survive, the shape is blurred; at 192 px it is clear."""
LETTER_SIZE = (5, 7)
"""Width and height of a printed letter in pixels."""
BAR_SIZES = ((16, 4), (4, 16), (9, 9))
"""Widths and heights of the distractors in pixels."""
NUM_THINGS = (3, 6)
NUM_DISTRACTORS = (2, 4)


@dataclass(frozen=True)
class Thing:
    """A shape, a letter or a distractor at an integer place.

    Args:
        kind: One of SHAPES, a letter, or 'bar' for a distractor.
        colour: One of COLOURS, 'white' for letters, 'grey' for distractors.
        box: x1, y1, x2, y2 in pixels of the picture; x2 and y2 are exclusive.
        place: 'top left', 'top right', 'bottom left' or 'bottom right' quarter of the picture.
    """

    kind: str
    colour: str
    box: tuple[int, int, int, int]
    place: str

    @property
    def name(self) -> str:
        """What a caption calls it."""
        return f"the letter {self.kind}" if self.kind in LETTERS else f"a {self.colour} {self.kind}"


@dataclass(frozen=True)
class Scene:
    """One picture's content.

    Args:
        name: Unique stem of the picture's file and id of its records.
        width: Pixels.
        height: Pixels.
        things: Shapes in reading order.
        letter: The printed letter, if any.
        distractors: Grey bars that no question asks for.
        noise_keys: Names the stream of the ground's noise.
    """

    name: str
    width: int
    height: int
    things: tuple[Thing, ...]
    letter: Thing | None
    distractors: tuple[Thing, ...]
    noise_keys: tuple[int, ...]

    @property
    def named_things(self) -> tuple[Thing, ...]:
        """Shapes and the letter in reading order: what a caption tells and a detector should find."""
        found = (*self.things, self.letter) if self.letter else self.things
        return tuple(sorted(found, key=lambda thing: (thing.box[1] // CELL, thing.box[0])))


def make_scene(seed: int, split: str, index: int) -> Scene:
    """Draws the content of scene ``index`` of a split.

    Args:
        seed: The world's seed.
        split: 'train' or 'test'; the streams of the two differ.
        index: Number of the scene within its split.
    """
    keys = (seed, ("train", "test").index(split), index)
    dice = Dice(*keys, 0)
    width, height = dice.choice(SIZES)
    num_things, num_bars = dice.between(*NUM_THINGS), dice.between(*NUM_DISTRACTORS)
    has_letter = dice.percent(50)
    cells = [(x, y) for y in range(height // CELL) for x in range(width // CELL)]
    cells = dice.sample(cells, num_things + num_bars + has_letter)

    def place(kind: str, colour: str, size: tuple[int, int]) -> Thing:
        column, row = cells.pop()
        x = column * CELL + 1 + dice.below(CELL - 1 - size[0])
        y = row * CELL + 1 + dice.below(CELL - 1 - size[1])
        vertical = "top" if row * 2 * CELL < height else "bottom"
        horizontal = "left" if column * 2 * CELL < width else "right"
        return Thing(kind, colour, (x, y, x + size[0], y + size[1]), f"{vertical} {horizontal}")

    things = []
    for _ in range(num_things):
        side = dice.between(*THING_SIZE)
        things.append(place(dice.choice(SHAPES), dice.choice(COLOURS), (side, side)))
    letter = place(dice.choice(LETTERS), "white", LETTER_SIZE) if has_letter else None
    bars = [place("bar", "grey", dice.choice(BAR_SIZES)) for _ in range(num_bars)]
    things.sort(key=lambda thing: (thing.box[1] // CELL, thing.box[0]))
    return Scene(f"{split}_{index:05d}", width, height, tuple(things), letter, tuple(bars), (*keys, 1))


def caption(scene: Scene) -> str:
    """Tells what stands where, in reading order."""
    parts = [f"{thing.name} at the {thing.place}" for thing in scene.named_things]
    return ", ".join(parts[:-1]) + f" and {parts[-1]}."
