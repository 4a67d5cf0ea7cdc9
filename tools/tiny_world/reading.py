"""Scenes told in words, as rows of tokens from which the tiny LLM learns to read before any picture is involved.

A token is a list of words whose embeddings are summed. Words of the template and of questions stand alone; a thing is
one token, the sum of its colour, kind and place, which is what a projector can make of an object's features.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from transformers import PreTrainedTokenizerFast

from tools.tiny_world.dice import Dice
from tools.tiny_world.questions import Question, every_question, reading_question
from tools.tiny_world.records import CAPTION_PROMPTS
from tools.tiny_world.scenes import CELL, COLOURS, GRID, SHAPES, Scene, Thing, caption
from xtuner.constants import IGNORE_INDEX, IMAGE_TOKEN, IMAGE_TOKEN_INDEX
from xtuner.data.text.conversations import Conversation
from xtuner.data.text.templates import Turn, get_template
from xtuner.data.text.tokenizing import encode_conversations

_WORDS_PER_TOKEN = 4
_MAX_LENGTH = 1000
_MISSED_PERCENT, _FALSE_PERCENT = 8, 20
_GRID_PERCENT, _OBJECTS_BESIDE_GRID_PERCENT = 65, 60
_CAPTION_PERCENT, _TEXT_ONLY_PERCENT = 15, 6
_QUESTIONS_PER_DIALOGUE, _LOOKUPS_PER_DRILL = 4, 14
_ASKED_BY = {"exist": "Is", "count": "How", "colour": "colour", "shape": "shape", "where": "Where", "letter": "Which"}
"""The word that tells what a question wants to know, in `Reader.drill`."""
_LOOKED_UP_BY = {*COLOURS, *SHAPES, "letter"}


@dataclass
class Row:
    """Tokens with their labels.

    Args:
        tokens: Per token the numbers of the words that it sums, at most `_WORDS_PER_TOKEN`.
        labels: Per token its number where it is part of an answer, else `IGNORE_INDEX`.
        kinds: Per token the kind of question that it answers, '' elsewhere.
    """

    tokens: list[list[int]] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    kinds: list[str] = field(default_factory=list)

    def add(self, tokens: Sequence[list[int]], kind: str = "", labels: Sequence[int] | None = None) -> None:
        """Appends tokens, without labels unless given."""
        self.tokens += tokens
        self.labels += labels if labels is not None else [IGNORE_INDEX] * len(tokens)
        self.kinds += [kind] * len(tokens)


class Reader:
    """Tells scenes and asks about them.

    Args:
        tokenizer: The tiny tokenizer.
        rng: Decides what is told and asked.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, rng: random.Random) -> None:
        self._tokenizer = tokenizer
        self._rng = rng
        self._template = get_template("vicuna")
        self._words = {word.removeprefix("▁"): number for word, number in tokenizer.get_vocab().items() if "▁" in word}

    def _percent(self, chance: int) -> bool:
        return self._rng.randrange(100) < chance

    def _sum(self, *words: str) -> list[int]:
        return [self._words[word] for word in words]

    def _thing(self, thing: Thing) -> list[int]:
        if thing.colour == "grey":
            return self._sum(*thing.place.split())
        kind = ("letter", thing.kind) if thing.colour == "white" else (thing.colour, thing.kind)
        return self._sum(*kind, *thing.place.split())

    def _grid(self, scene: Scene) -> list[list[int]]:
        """Returns the cells of the padded picture, row by row, each with its quarter and what stands in it."""
        left, top = (GRID - scene.width // CELL) // 2, (GRID - scene.height // CELL) // 2
        names = (("top", "bottom"), ("left", "right"))
        cells = [
            self._sum(names[0][2 * row // GRID], names[1][2 * column // GRID])
            for row in range(GRID)
            for column in range(GRID)
        ]
        for thing in scene.named_things:
            cells[(thing.box[1] // CELL + top) * GRID + thing.box[0] // CELL + left] = self._thing(thing)
        return cells

    def _objects(self, scene: Scene, imperfect: bool) -> list[list[int]]:
        """Returns a token per thing in random order; an imperfect detector misses some and finds bars."""
        found = list(scene.named_things)
        if imperfect:
            found = [thing for thing in found if not self._percent(_MISSED_PERCENT)]
            found += [bar for bar in scene.distractors if self._percent(_FALSE_PERCENT)]
        self._rng.shuffle(found)
        return [self._thing(thing) for thing in found]

    def _told(self, scene: Scene) -> list[list[int]]:
        if not self._percent(_GRID_PERCENT):
            return self._objects(scene, imperfect=False)
        beside = self._percent(_OBJECTS_BESIDE_GRID_PERCENT)
        return self._grid(scene) + (self._objects(scene, imperfect=True) if beside else [])

    def _ask(self, scene: Scene, count: int) -> list[Question]:
        """Returns questions of random kinds; yes and no are asked for equally often."""
        by_kind: dict[str, list[Question]] = {}
        for question in every_question(scene):
            by_kind.setdefault(question.kind, []).append(question)
        asked = []
        for kind in self._rng.choices(list(by_kind), k=count):
            wanted = self._rng.choice(sorted({question.answer for question in by_kind[kind]}))
            asked.append(self._rng.choice([question for question in by_kind[kind] if question.answer == wanted]))
        return asked

    def drill(self, scene: Scene) -> Row:
        """Returns a scene and many look-ups, each asked with a single token: 'colour' + 'circle' → red.

        Finding a thing by a part of it, and then naming another part, is what all questions need. Asked densely like
        this it is learned in minutes; from whole questions alone, a model of this size does not get there.
        """
        row = Row()
        row.add([[self._tokenizer.bos_token_id], self._sum("USER:"), *self._told(scene), self._sum("ASSISTANT:")])
        for question in self._ask(scene, _LOOKUPS_PER_DRILL):
            about = [word for word in question.text.strip("?").split() if word in _LOOKED_UP_BY]
            row.add([self._sum(_ASKED_BY[question.kind], *about)], question.kind)
            answer = self._sum(*question.answer.split())
            row.add([[word] for word in answer], question.kind, answer)
        return row

    def dialogues(self, scenes: Sequence[Scene]) -> list[Row]:
        """Returns a row per scene in the form of the second stage: the scene in the picture's place, then questions.

        Some begin with the caption; a few have no picture but a question that tells its scene in words.
        """
        asked = [self._dialogue(scene) for scene in scenes]
        conversations = [
            Conversation(str(number), (), tuple(Turn(q.text, q.answer) for q in questions), number)
            for number, questions in enumerate(asked)
        ]
        encoded = encode_conversations(conversations, self._tokenizer, self._template, _MAX_LENGTH)
        rows = []
        for scene, questions, ids in zip(scenes, asked, encoded, strict=True):
            row = Row()
            answered = -1
            for number, label, before in zip(ids.input_ids, ids.labels, [IGNORE_INDEX, *ids.labels], strict=False):
                if number == IMAGE_TOKEN_INDEX:
                    row.add(self._told(scene))
                    continue
                answered += before == IGNORE_INDEX != label
                kind = questions[answered].kind if label != IGNORE_INDEX else ""
                row.add([[number]], kind, [label])
            rows.append(row)
        return rows

    def _dialogue(self, scene: Scene) -> list[Question]:
        if self._percent(_TEXT_ONLY_PERCENT):
            return [reading_question(Dice(self._rng.getrandbits(60)))]
        asked = self._ask(scene, _QUESTIONS_PER_DIALOGUE)
        if self._percent(_CAPTION_PERCENT):
            asked[0] = Question("caption", self._rng.choice(CAPTION_PROMPTS), caption(scene))
        return [replace(asked[0], text=f"{IMAGE_TOKEN}\n{asked[0].text}"), *asked[1:]]


def join(rows: Sequence[Row]) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns right-padded words (B, T, 4), padded with -1, and labels (B, T)."""
    longest = max(len(row.tokens) for row in rows)
    words = torch.full((len(rows), longest, _WORDS_PER_TOKEN), -1)
    labels = torch.full((len(rows), longest), IGNORE_INDEX)
    for number, row in enumerate(rows):
        padded = [(token + [-1] * _WORDS_PER_TOKEN)[:_WORDS_PER_TOKEN] for token in row.tokens]
        words[number, : len(padded)] = torch.tensor(padded)
        labels[number, : len(padded)] = torch.tensor(row.labels)
    return words, labels
