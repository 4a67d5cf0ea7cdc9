"""Questions about scenes, with answers balanced so that guessing the commonest answer does not pay."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from tools.tiny_world.dice import Dice
from tools.tiny_world.scenes import COLOURS, SHAPES, Scene


@dataclass(frozen=True)
class Question:
    """One question with its only right answer.

    Args:
        kind: One of KINDS.
        text: The question.
        answer: One or two words.
    """

    kind: str
    text: str
    answer: str


def _unique(scene: Scene) -> list[tuple[str, str, str]]:
    """Returns colour, shape and place of the things whose colour-shape pair occurs once."""
    pairs = Counter((thing.colour, thing.kind) for thing in scene.things)
    return [(t.colour, t.kind, t.place) for t in scene.things if pairs[t.colour, t.kind] == 1]


def _exist(scene: Scene) -> list[Question]:
    """Yes for what is there; no only for hard cases: colour and shape are there, but not together."""
    pairs = {(thing.colour, thing.kind) for thing in scene.things}
    crossed = {(colour, kind) for colour, _ in pairs for _, kind in pairs}
    return [
        Question("exist", f"Is there a {colour} {kind}?", "yes" if (colour, kind) in pairs else "no")
        for colour, kind in sorted(crossed)
    ]


def _count(scene: Scene) -> list[Question]:
    shapes = Counter(thing.kind for thing in scene.things)
    colours = Counter(thing.colour for thing in scene.things)
    asked = [(f"How many {kind} shapes are there?", shapes[kind]) for kind in SHAPES]
    asked += [(f"How many {colour} things are there?", colours[colour]) for colour in COLOURS]
    return [Question("count", text, str(number)) for text, number in asked if number]


def _colour(scene: Scene) -> list[Question]:
    shapes = Counter(thing.kind for thing in scene.things)
    return [
        Question("colour", f"What colour is the {thing.kind}?", thing.colour)
        for thing in scene.things
        if shapes[thing.kind] == 1
    ]


def _shape(scene: Scene) -> list[Question]:
    colours = Counter(thing.colour for thing in scene.things)
    return [
        Question("shape", f"What shape is the {thing.colour} thing?", thing.kind)
        for thing in scene.things
        if colours[thing.colour] == 1
    ]


def _where(scene: Scene) -> list[Question]:
    return [Question("where", f"Where is the {colour} {kind}?", place) for colour, kind, place in _unique(scene)]


def _letter(scene: Scene) -> list[Question]:
    return [Question("letter", "Which letter is printed?", scene.letter.kind)] if scene.letter else []


_CANDIDATES: dict[str, Callable[[Scene], list[Question]]] = {
    "exist": _exist,
    "count": _count,
    "colour": _colour,
    "shape": _shape,
    "where": _where,
    "letter": _letter,
}
KINDS = tuple(_CANDIDATES)
"""The mix: each scene is asked one question of each kind that it has an unambiguous one for."""


def every_question(scene: Scene) -> list[Question]:
    """Returns all questions of all kinds that have one right answer for this scene."""
    return [question for candidates in _CANDIDATES.values() for question in candidates(scene)]


class BalancedAsker:
    """Picks questions such that the answers of each kind stay equally frequent.

    Args:
        dice: Breaks ties.
    """

    def __init__(self, dice: Dice) -> None:
        self._dice = dice
        self._used: dict[str, Counter[str]] = {kind: Counter() for kind in KINDS}

    def ask(self, scene: Scene) -> list[Question]:
        """Returns at most one question of each kind, in random order: those with the rarest answers."""
        picked = []
        for kind, candidates in _CANDIDATES.items():
            found = candidates(scene)
            if not found:
                continue
            used = self._used[kind]
            rarest = min(used[question.answer] for question in found)
            # For exist, yes may not run ahead in scenes that offer no hard "no".
            if kind == "exist" and rarest > min(used["yes"], used["no"]) + 2:
                continue
            question = self._dice.choice([q for q in found if used[q.answer] == rarest])
            used[question.answer] += 1
            picked.append(question)
        return self._dice.sample(picked, len(picked))


def reading_question(dice: Dice) -> Question:
    """Returns a text-only question: the scene is told in words."""
    colours, shapes = dice.sample(COLOURS, 2), dice.sample(SHAPES, 2)
    told = f"There is a {colours[0]} {shapes[0]} and a {colours[1]} {shapes[1]}."
    asked = dice.below(2)
    if dice.percent(50):
        return Question("reading", f"{told} What colour is the {shapes[asked]}?", colours[asked])
    return Question("reading", f"{told} What shape is the {colours[asked]} thing?", shapes[asked])


def majority_baseline(questions: Iterable[tuple[str, str]]) -> dict[str, float]:
    """Accuracy of always giving a kind's commonest answer.

    Args:
        questions: (kind, answer) pairs.

    Returns:
        The share per kind, and 'overall' over all questions.
    """
    answers: dict[str, Counter[str]] = {}
    for kind, answer in questions:
        answers.setdefault(kind, Counter())[answer] += 1
    best = {kind: max(counts.values()) for kind, counts in answers.items()}
    sizes = {kind: sum(counts.values()) for kind, counts in answers.items()}
    shares = {kind: best[kind] / sizes[kind] for kind in answers}
    return {**shares, "overall": sum(best.values()) / max(1, sum(sizes.values()))}
