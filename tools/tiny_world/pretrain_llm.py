"""Teaches the tiny LLM to read scenes told in words, as a real LLM can read before it sees its first picture.

    python tools/tiny_world/pretrain_llm.py [--steps 1800] [--seed 1]

Writes tools/tiny_world/pretrained/llm, which make.py then puts into every world. No picture is involved. Scenes
are told in two forms: word by word, or with one token per thing, whose embedding is the sum of its words'. A model
of this size learns to look a thing up from the second form in minutes; from the first alone it does not.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import torch
from rich.console import Console
from torch import nn
from torch.nn import functional
from torch.nn.utils import clip_grad_norm_
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tools.tiny_world.dice import Dice  # noqa: E402
from tools.tiny_world.parts import SHIPPED, make_llm, save_training_note  # noqa: E402
from tools.tiny_world.questions import KINDS, Question, every_question  # noqa: E402
from tools.tiny_world.records import CAPTION_PROMPTS  # noqa: E402
from tools.tiny_world.scenes import CELL, Scene, Thing, caption, make_scene  # noqa: E402
from tools.tiny_world.tokenizer import build_tokenizer  # noqa: E402

_IGNORED = -100
_WORDS_PER_TOKEN = 4
_QUESTIONS_PER_SCENE = 6
_CAPTION_PERCENT, _TOLD_IN_WORDS_PERCENT, _GRID_PERCENT = 15, 20, 60
_LOOKED_UP = ("exist", "colour", "shape", "where")
"""What easy scenes are asked: a thing must be found by one of its words."""
_HELD_OUT_SEED = 2_000_000
"""Scenes of this seed are never trained on; worlds use small seeds, so these are never theirs either."""


class Reader:
    """Makes token rows of scenes told in words with questions and answers, in the vicuna template.

    A row is a list of tokens; a token is the list of the words whose embeddings it sums.

    Args:
        tokenizer: The tiny tokenizer.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self._tokenizer = tokenizer
        self._ids = lru_cache(100_000)(self._encode)

    def _encode(self, text: str) -> list[int]:
        return self._tokenizer(text, add_special_tokens=False).input_ids

    def _thing(self, thing: Thing) -> list[int]:
        place = [self._ids(word)[-1] for word in thing.place.split()]
        if thing.colour in ("white", "grey"):
            kind = ["letter", thing.kind] if thing.colour == "white" else []
        else:
            kind = [thing.colour, thing.kind]
        return [*(self._ids(word)[-1] for word in kind), *place]

    def _grid(self, scene: Scene) -> list[list[int]]:
        """Returns the 6 x 6 cells, row by row, each with its quarter and what stands in it."""
        side = 6
        left, top = (side - scene.width // CELL) // 2, (side - scene.height // CELL) // 2
        cells = [
            [self._ids("top" if row < 3 else "bottom")[-1], self._ids("left" if column < 3 else "right")[-1]]
            for row in range(side)
            for column in range(side)
        ]
        for thing in scene.named_things:
            cells[(thing.box[1] // CELL + top) * side + thing.box[0] // CELL + left] = self._thing(thing)
        return cells

    def _told(self, scene: Scene, dice: Dice, easy: bool) -> list[list[int]]:
        things = dice.sample(scene.named_things, len(scene.named_things))
        if not easy and dice.percent(_TOLD_IN_WORDS_PERCENT):
            told = ", ".join(f"{thing.name} at the {thing.place}" for thing in things)
            return [[number] for number in self._encode(told + ".")]
        told = [self._thing(thing) for thing in things]
        if easy or not dice.percent(_GRID_PERCENT):
            return told
        return [*self._grid(scene), *(told if dice.percent(60) else [])]

    def row(self, scene: Scene, limit: int = 0) -> tuple[list[list[int]], list[int], list[str]]:
        """Returns tokens, labels and the kind of the answer each label is part of; only answers have labels.

        Args:
            scene: What is told.
            limit: If not 0, an easy row: at most so many shapes, one token each, and one question.
        """
        dice = Dice(*scene.noise_keys, 5)
        if limit:
            scene = replace(scene, things=scene.things[: dice.between(2, limit)])
        by_kind: dict[str, list[Question]] = {}
        for question in every_question(scene):
            by_kind.setdefault(question.kind, []).append(question)
        asked = [dice.choice(found) for found in by_kind.values()]
        if limit:
            asked = [question for kind in _LOOKED_UP for question in by_kind.get(kind, [])]
        asked = dice.sample(asked, 1 if limit else min(len(asked), _QUESTIONS_PER_SCENE))
        if not limit and dice.percent(_CAPTION_PERCENT):
            asked.insert(0, Question("caption", dice.choice(CAPTION_PROMPTS), caption(scene)))
        tokens: list[list[int]] = []
        labels: list[int] = []
        kinds: list[str] = []
        for number, question in enumerate(asked):
            start = [self._tokenizer.bos_token_id, *self._ids("USER:")]
            told = [self._ids("USER: ")[-1:], *self._told(scene, dice, limit > 0)] if number == 0 else []
            text = (
                self._ids(f"\n{question.text} ASSISTANT:")[1:]
                if number == 0
                else self._ids(f"{question.text} ASSISTANT:")
            )
            prompt = [*([word] for word in start), *told, *([word] for word in text)]
            target = [*self._ids(question.answer), self._tokenizer.eos_token_id]
            tokens += prompt + [[word] for word in target]
            labels += [_IGNORED] * len(prompt) + target
            kinds += [question.kind] * (len(prompt) + len(target))
        return tokens, labels, kinds

    def batch(self, scenes: list[Scene], limit: int = 0) -> tuple[torch.Tensor, torch.Tensor, list[list[str]]]:
        """Returns right-padded words (B, T, 4), padded with -1, labels (B, T) and kinds of the scenes."""
        rows = [self.row(scene, limit) for scene in scenes]
        longest = max(len(tokens) for tokens, _, _ in rows)
        empty = [-1] * _WORDS_PER_TOKEN
        words = [
            [*((token + empty)[:_WORDS_PER_TOKEN] for token in tokens), *([empty] * (longest - len(tokens)))]
            for tokens, _, _ in rows
        ]
        labels = [found + [_IGNORED] * (longest - len(found)) for _, found, _ in rows]
        return torch.tensor(words), torch.tensor(labels), [kinds for _, _, kinds in rows]


def _hidden(model: LlamaForCausalLM, words: torch.Tensor) -> torch.Tensor:
    # Right-padding needs no mask: attention is causal and padding has no labels.
    real = (words >= 0).unsqueeze(-1)
    embeds = (model.get_input_embeddings()(words.clamp(min=0)) * real).sum(2)
    return model.model(inputs_embeds=embeds, use_cache=False).last_hidden_state[:, :-1]


def loss_of(model: LlamaForCausalLM, words: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Returns the mean loss over the answers' tokens."""
    targets = labels[:, 1:]
    asked = targets != _IGNORED
    return functional.cross_entropy(model.lm_head(_hidden(model, words)[asked]), targets[asked])


@torch.no_grad()
def accuracies(model: LlamaForCausalLM, reader: Reader, scenes: int = 256) -> dict[str, float]:
    """Returns the share of answer tokens, ends left out, right on unseen scenes, per kind and overall."""
    words, labels, kinds = reader.batch([make_scene(_HELD_OUT_SEED, "train", index) for index in range(scenes)])
    guessed = model.lm_head(_hidden(model, words)).argmax(-1)
    asked, right = Counter(), Counter()
    for row, position in (labels[:, 1:] > 2).nonzero().tolist():
        for kind in (kinds[row][position], "overall") if kinds[row][position] != "caption" else ("caption",):
            asked[kind] += 1
            right[kind] += int(guessed[row, position] == labels[row, position + 1])
    return {kind: right[kind] / asked[kind] for kind in (*KINDS, "caption", "overall") if asked[kind]}


def arrange(model: LlamaForCausalLM) -> None:
    """Arranges random weights such that words outweigh what untrained layers add, and attention copies.

    Like attends to like in the first two layers (equal queries and keys), what is attended to is carried on
    unmixed (output = transposed values), and the head names the word that it sees. Looking things up then
    need not be found by chance first.
    """
    embedding = nn.init.normal_(model.get_input_embeddings().weight, std=0.5)
    with torch.no_grad():
        model.lm_head.weight.copy_(0.15 * embedding)
        for number, layer in enumerate(model.model.layers):
            attention = layer.self_attn
            if number < 2:
                attention.k_proj.weight.copy_(attention.q_proj.weight)
            attention.o_proj.weight.copy_(0.6 * attention.v_proj.weight.T)
            layer.mlp.down_proj.weight.mul_(0.3)


def train(folder: Path, arguments: argparse.Namespace, console: Console) -> dict[str, float]:
    """Trains from random weights and writes the model and its tokenizer to ``folder`` every 100 steps.

    Returns:
        The held-out accuracies.
    """
    torch.manual_seed(arguments.seed)
    make_llm(folder)
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    arrange(model)
    reader = Reader(build_tokenizer())
    optimizer = torch.optim.AdamW(model.parameters(), lr=arguments.lr, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, arguments.lr, total_steps=arguments.steps, pct_start=0.03)
    figures: dict[str, float] = {}
    for step in range(arguments.steps):
        easy = step < arguments.easy_steps
        size = arguments.batch_size * (4 if easy else 1)
        numbers = range(4 * step * arguments.batch_size, 4 * step * arguments.batch_size + size)
        scenes = [make_scene(_HELD_OUT_SEED + 1 + arguments.seed, "train", number) for number in numbers]
        words, labels, _ = reader.batch(scenes, 2 + 5 * step // arguments.easy_steps if easy else 0)
        loss = loss_of(model, words, labels)
        optimizer.zero_grad()
        loss.backward()
        clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 99 or step + 1 == arguments.steps:
            figures = accuracies(model, reader)
            shares = ", ".join(f"{kind} {share:.1%}" for kind, share in figures.items())
            console.print(f"step {step + 1}: loss {loss.item():.3f}, {shares}")
            model.save_pretrained(folder)
    return figures


def main() -> None:
    """Parses the command line and trains."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=SHIPPED / "llm")
    parser.add_argument("--steps", type=int, default=1800)
    parser.add_argument("--easy-steps", type=int, default=1400, help="first steps with one question on few things")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--lr", type=float, default=2e-3)
    arguments = parser.parse_args()
    console = Console(stderr=True, width=200)
    figures = train(arguments.out, arguments, console)
    save_training_note(arguments.out, "pretrain_llm.py", vars(arguments), figures)
    console.print(f"{arguments.out}: {figures['overall']:.1%} of the answer tokens on unseen scenes are right.")


if __name__ == "__main__":
    main()
