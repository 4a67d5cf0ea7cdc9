"""Clips of the tiny world: in each a shape moves, or shapes appear, or one changes its colour."""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
from PIL import Image

from tools.tiny_world.boxes import find_things
from tools.tiny_world.dice import Dice
from tools.tiny_world.drawing import draw
from tools.tiny_world.questions import Question
from tools.tiny_world.scenes import CELL, COLOURS, GRID, SHAPES, THING_SIZE, Scene, Thing

EVENTS = ("move", "appear", "move", "move", "change", "move")
"""What happens in a clip, in turn."""
QUARTERS = 4
"""A clip has as many parts of equal length: things change between them."""
LENGTHS = (8, 12, 16)
"""Frames of a clip."""
FRAME_RATE = 4
SIDE = CELL * GRID
_RINGS = tuple(
    ((low, low), (GRID - 1 - low, low), (GRID - 1 - low, GRID - 1 - low), (low, GRID - 1 - low)) for low in (0, 1)
)
"""Cells (column, row) of the corners of two rings, the outer one first, clockwise from the top left."""
_DIRECTIONS = {(1, 0): "right", (-1, 0): "left", (0, 1): "down", (0, -1): "up"}
_CLIP_STREAM, _BOX_STREAM, _ASK_STREAM = 7, 4, 3


@dataclass(frozen=True)
class Actor:
    """A shape, and what becomes of it.

    Args:
        thing: as it is where it is first seen.
        comes: quarter of the clip from which on it is there.
        path: cell (column, row) that it stands in, for each quarter; empty = it stays where it is.
        colours: which it has in each quarter; empty = its own.
    """

    thing: Thing
    comes: int = 0
    path: tuple[tuple[int, int], ...] = ()
    colours: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """What questions call it."""
        return f"{self.thing.colour} {self.thing.kind}"

    @property
    def direction(self) -> str:
        """Where it goes first."""
        (x, y), (to_x, to_y) = self.path[:2]
        return _DIRECTIONS[(to_x > x) - (to_x < x), (to_y > y) - (to_y < y)]

    def at(self, quarter: int, leaving: bool) -> Thing:
        """Returns it as it is in a quarter of the clip; `leaving` = half-way to where it is in the next one."""
        colour = self.colours[quarter] if self.colours else self.thing.colour
        if not self.path:
            return replace(self.thing, colour=colour)
        stops = [self.path[number] for number in (0, quarter, quarter + leaving)]
        x, y = (CELL * (here + there - 2 * first) // 2 for first, here, there in zip(*stops, strict=True))
        left, top, right, bottom = self.thing.box
        return replace(self.thing, colour=colour, box=(left + x, top + y, right + x, bottom + y))


@dataclass(frozen=True)
class Clip:
    """One video's content.

    Args:
        name: Unique stem of the file, and id of its records.
        event: One of EVENTS.
        frames: Their number, one of LENGTHS.
        actors: First those that move, or the one that may change; last those that appear, in order.
        noise_keys: Names the stream of the ground's noise.
    """

    name: str
    event: str
    frames: int
    actors: tuple[Actor, ...]
    noise_keys: tuple[int, ...]

    @property
    def file(self) -> str:
        """Path relative to the folder of the data."""
        return f"videos/{self.name}.mp4"

    def scene(self, frame: int) -> Scene:
        """Returns what a frame shows; in the last frame before another quarter, what moves is under way."""
        length = self.frames // QUARTERS
        quarter, step = divmod(frame, length)
        leaving = quarter + 1 < QUARTERS and step + 1 == length
        things = tuple(actor.at(quarter, leaving) for actor in self.actors if actor.comes <= quarter)
        return Scene(self.name, SIDE, SIDE, things, None, (), self.noise_keys)


def make_clip(seed: int, split: str, index: int) -> Clip:
    """Draws what happens in clip `index` of a split; see `make_scene`."""
    keys = (seed, ("train", "test").index(split), index, _CLIP_STREAM)
    dice = Dice(*keys, 0)
    event = EVENTS[index % len(EVENTS)]
    # no two of a shape or a colour, so that every name means one thing
    shapes, colours = dice.sample(SHAPES, len(SHAPES)), dice.sample(COLOURS, len(COLOURS))
    cells = dice.sample([(x, y) for y in (2, 3) for x in (2, 3)], 4)

    def actor(number: int, cell: tuple[int, int] | None = None, **becomes: Any) -> Actor:
        column, row = cells[number] if cell is None else cell
        side = dice.between(*THING_SIZE)
        x, y = (CELL * place + 1 + dice.below(CELL - 1 - side) for place in (column, row))
        thing = Thing(shapes[number], colours[number], (x, y, x + side, y + side), _place((column, row)))
        return Actor(thing, **becomes)

    if event == "move":
        # all corners, so that neither a frame alone nor all of them without their order tell where it went
        actors = []
        for number, ring in enumerate(_RINGS):
            start, turn = dice.below(QUARTERS), dice.choice((1, -1))
            path = tuple(ring[(start + turn * step) % QUARTERS] for step in range(QUARTERS))
            actors.append(actor(number, path[0], path=path))
        actors.append(actor(2))
    elif event == "change":
        before = dice.between(1, QUARTERS - 1)
        after = colours[2 if dice.percent(50) else 0]
        actors = [actor(0, colours=(colours[0],) * before + (after,) * (QUARTERS - before)), actor(1)]
    else:
        first, last = sorted(dice.sample(range(1, QUARTERS), 2))
        actors = [actor(0), actor(1, comes=first), actor(2, comes=last)]
    return Clip(f"{split}_clip_{index:05d}", event, dice.choice(LENGTHS), tuple(actors), (*keys, 1))


def clip_questions(clip: Clip) -> list[Question]:
    """Returns the questions about what happens in a clip."""
    if clip.event == "move":
        return [question for actor in clip.actors if actor.path for question in _path_questions(actor)]
    if clip.event == "change":
        first = clip.actors[0]
        changed = "yes" if len(set(first.colours)) > 1 else "no"
        return [Question("change", f"Does the {first.thing.kind} change colour?", changed)]
    return [Question("order", "What appears last?", clip.actors[-1].name)]


def _path_questions(actor: Actor) -> list[Question]:
    return [
        Question("direction", f"Which way does the {actor.name} move first?", actor.direction),
        Question("start", f"Where is the {actor.name} first?", _place(actor.path[0])),
        Question("end", f"Where is the {actor.name} last?", _place(actor.path[-1])),
    ]


def _place(cell: tuple[int, int]) -> str:
    column, row = cell
    return f"{'top' if row < GRID // 2 else 'bottom'} {'left' if column < GRID // 2 else 'right'}"


def clip_record(clip: Clip) -> dict[str, Any]:
    """Returns the training record that asks a clip's questions in random order, one turn each."""
    dice = Dice(*clip.noise_keys, _ASK_STREAM)
    asked = clip_questions(clip)
    turns = []
    for number, question in enumerate(dice.sample(asked, len(asked))):
        turns.append({"from": "human", "value": question.text if number else f"<video>\n{question.text}"})
        turns.append({"from": "gpt", "value": question.answer})
    return {"id": clip.name, "video": clip.file, "conversations": turns}


def clip_tests(clip: Clip) -> list[dict[str, str]]:
    """Returns the questions of a held-out clip, each by itself: id, video, question, answer, kind."""
    return [
        {
            "id": f"{clip.name}-{number}",
            "video": clip.file,
            "question": question.text,
            "answer": question.answer,
            "kind": question.kind,
        }
        for number, question in enumerate(clip_questions(clip))
    ]


def clip_boxes(clip: Clip) -> dict[str, Any]:
    """Returns the box record of a clip: what an imperfect detector finds in each of its frames."""
    frames = [
        {"index": frame, **find_things(clip.scene(frame), Dice(*clip.noise_keys, _BOX_STREAM, frame))}
        for frame in range(clip.frames)
    ]
    return {"video": clip.file, "width": SIDE, "height": SIDE, "frames": frames}


def clip_pictures(clip: Clip) -> list[Image.Image]:
    """Returns the frames as RGB pictures."""
    return [draw(clip.scene(frame)) for frame in range(clip.frames)]


def save_clip(clip: Clip, folder: Path) -> None:
    """Writes the clip below `folder` as H.264, nearly lossless; its only key frame is the first."""
    with av.open(str(folder / clip.file), "w") as container:
        options = {"crf": "10", "preset": "veryfast", "threads": "1"}
        stream: Any = container.add_stream("libx264", rate=Fraction(FRAME_RATE), options=options)
        stream.width = stream.height = SIDE
        stream.pix_fmt = "yuv420p"
        for picture in clip_pictures(clip):
            container.mux(stream.encode(av.VideoFrame.from_image(picture)))
        container.mux(stream.encode(None))
