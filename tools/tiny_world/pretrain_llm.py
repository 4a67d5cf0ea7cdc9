"""Teaches the tiny LLM to read scenes told in words, as a real LLM can read before it sees its first picture.

    python tools/tiny_world/pretrain_llm.py [--steps 2500] [--seed 1]

Writes tools/tiny_world/pretrained/llm, which make.py then puts into every world. No picture is involved.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import Progress
from torch.nn.utils import clip_grad_norm_
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tools.tiny_world.dice import Dice  # noqa: E402
from tools.tiny_world.parts import SHIPPED, make_llm, save_training_note  # noqa: E402
from tools.tiny_world.questions import every_question  # noqa: E402
from tools.tiny_world.records import CAPTION_PROMPTS  # noqa: E402
from tools.tiny_world.scenes import caption, make_scene  # noqa: E402
from tools.tiny_world.tokenizer import build_tokenizer  # noqa: E402

_IGNORED = -100
_QUESTIONS_PER_SCENE = 8
_CAPTION_PERCENT = 40
_HELD_OUT_SEED = 2_000_000
"""Scenes of this seed are never trained on; worlds use small seeds, so these are never theirs either."""


class Reader:
    """Makes token rows of scenes told in words with questions and answers, in the vicuna template.

    Args:
        tokenizer: The tiny tokenizer.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self._tokenizer = tokenizer

    def _ids(self, text: str) -> list[int]:
        return self._tokenizer(text, add_special_tokens=False).input_ids

    def row(self, seed: int, index: int) -> tuple[list[int], list[int]]:
        """Returns ids and labels of one scene; things are told in random order, only answers have labels."""
        scene = make_scene(seed, "train", index)
        dice = Dice(*scene.noise_keys, 5)
        things = dice.sample(scene.named_things, len(scene.named_things))
        told = ", ".join(f"{thing.name} at the {thing.place}" for thing in things)
        asked = every_question(scene)
        pairs = [(q.text, q.answer) for q in dice.sample(asked, min(len(asked), _QUESTIONS_PER_SCENE))]
        if dice.percent(_CAPTION_PERCENT):
            pairs.insert(0, (dice.choice(CAPTION_PROMPTS), caption(scene)))
        ids: list[int] = []
        labels: list[int] = []
        for number, (question, answer) in enumerate(pairs):
            start = f"USER: {told}.\n" if number == 0 else "USER: "
            prompt = [self._tokenizer.bos_token_id, *self._ids(f"{start}{question} ASSISTANT:")]
            target = [*self._ids(answer), self._tokenizer.eos_token_id]
            ids += prompt + target
            labels += [_IGNORED] * len(prompt) + target
        return ids, labels

    def batch(self, seed: int, start: int, size: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Returns right-padded ids, labels and mask (size, T) of scenes ``start`` to ``start + size - 1``."""
        rows = [self.row(seed, start + number) for number in range(size)]
        longest = max(len(ids) for ids, _ in rows)
        ids = torch.zeros(size, longest, dtype=torch.long)
        labels = torch.full((size, longest), _IGNORED)
        mask = torch.zeros(size, longest, dtype=torch.bool)
        for number, (row_ids, row_labels) in enumerate(rows):
            ids[number, : len(row_ids)] = torch.tensor(row_ids)
            labels[number, : len(row_ids)] = torch.tensor(row_labels)
            mask[number, : len(row_ids)] = True
        return ids, labels, mask


@torch.no_grad()
def token_accuracy(model: LlamaForCausalLM, reader: Reader, scenes: int = 256) -> float:
    """Returns the share of answer tokens predicted right on scenes that were not trained on."""
    ids, labels, mask = reader.batch(_HELD_OUT_SEED, 0, scenes)
    guessed = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1].argmax(-1)
    asked = labels[:, 1:] != _IGNORED
    return (guessed == labels[:, 1:])[asked].float().mean().item()


def train(folder: Path, steps: int, seed: int, batch_size: int, peak_lr: float, console: Console) -> float:
    """Trains from random weights and writes the model and its tokenizer to ``folder``.

    Returns:
        The held-out token accuracy.
    """
    torch.manual_seed(seed)
    make_llm(folder)
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    reader = Reader(build_tokenizer())
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak_lr, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, peak_lr, total_steps=steps, pct_start=0.05)
    with Progress(console=console) as progress:
        task = progress.add_task("reading", total=steps)
        for step in range(steps):
            ids, labels, mask = reader.batch(_HELD_OUT_SEED + 1 + seed, step * batch_size, batch_size)
            loss = model(input_ids=ids, attention_mask=mask, labels=labels, use_cache=False).loss
            optimizer.zero_grad()
            loss.backward()
            clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            progress.update(task, advance=1, description=f"reading, loss {loss.item():.3f}")
            if step % 100 == 99:
                right = token_accuracy(model, reader)
                console.print(f"step {step + 1}: loss {loss.item():.3f}, right {right:.1%}")
    accuracy = token_accuracy(model, reader)
    model.save_pretrained(folder)
    return accuracy


def main() -> None:
    """Parses the command line and trains."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=SHIPPED / "llm")
    parser.add_argument("--steps", type=int, default=2500)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--lr", type=float, default=1.5e-3)
    arguments = parser.parse_args()
    console = Console(stderr=True)
    accuracy = train(arguments.out, arguments.steps, arguments.seed, arguments.batch_size, arguments.lr, console)
    save_training_note(arguments.out, "pretrain_llm.py", vars(arguments), {"held_out_token_accuracy": accuracy})
    console.print(f"{arguments.out}: {accuracy:.1%} of the answer tokens on unseen scenes are right.")


if __name__ == "__main__":
    main()
