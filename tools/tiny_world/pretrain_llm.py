"""Teaches the tiny LLM to read scenes told in words, as a real LLM can read before it sees its first picture.

    python tools/tiny_world/pretrain_llm.py [--steps 1600] [--seed 1]

Writes tools/tiny_world/pretrained/llm, which make.py then puts into every world. No picture is involved: see
reading.py. The first steps drill looking things up, the others mix drills with dialogues.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections import Counter
from pathlib import Path

import torch
from rich.console import Console
from torch import nn
from torch.nn import functional
from torch.nn.utils import clip_grad_norm_
from transformers import LlamaForCausalLM

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tools.tiny_world.parts import SHIPPED, ship_part  # noqa: E402
from tools.tiny_world.questions import KINDS  # noqa: E402
from tools.tiny_world.reading import Reader, Row, join  # noqa: E402
from tools.tiny_world.scenes import Scene, make_scene  # noqa: E402
from tools.tiny_world.tokenizer import build_tokenizer  # noqa: E402
from tools.tiny_world.untrained import make_llm  # noqa: E402
from xtuner.constants import IGNORE_INDEX  # noqa: E402

_HELD_OUT_SEED = 2_000_000
"""Scenes of this seed are never trained on; worlds use small seeds, so these are never theirs either."""
_NOISE = 0.1
"""Standard deviation of noise added to what is read, beside 0.5 of the words': no projector is exact."""
_DRILL_SHARE = 0.3


def _hidden(model: LlamaForCausalLM, words: torch.Tensor, noise: float = 0.0) -> torch.Tensor:
    # Right-padding needs no mask: attention is causal and padding has no labels.
    real = (words >= 0).unsqueeze(-1)
    embeds = (model.get_input_embeddings()(words.clamp(min=0)) * real).sum(2)
    embeds = embeds + noise * torch.randn_like(embeds)
    return model.model(inputs_embeds=embeds, use_cache=False).last_hidden_state[:, :-1]


def loss_of(model: LlamaForCausalLM, words: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Returns the mean loss over the answers' tokens, (B, T, 4) words and (B, T) labels."""
    targets = labels[:, 1:]
    asked = targets != IGNORE_INDEX
    return functional.cross_entropy(model.lm_head(_hidden(model, words, _NOISE)[asked]), targets[asked])


@torch.no_grad()
def accuracies(model: LlamaForCausalLM, rows: list[Row]) -> dict[str, float]:
    """Returns the share of answer tokens, ends left out, that are right, per kind and over all but captions."""
    words, labels = join(rows)
    guessed = model.lm_head(_hidden(model, words)).argmax(-1)
    asked, right = Counter(), Counter()
    for row, position in (labels[:, 1:] > 2).nonzero().tolist():
        kind = rows[row].kinds[position + 1]
        hit = int(guessed[row, position] == labels[row, position + 1])
        for counted in (kind, "overall") if kind != "caption" else (kind,):
            asked[counted] += 1
            right[counted] += hit
    return {kind: right[kind] / asked[kind] for kind in (*KINDS, "reading", "caption", "overall") if asked[kind]}


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


def train(model: LlamaForCausalLM, arguments: argparse.Namespace, console: Console) -> dict[str, float]:
    """Trains in place and returns the accuracies on dialogues about unseen scenes."""
    tokenizer = build_tokenizer()
    reader = Reader(tokenizer, random.Random(arguments.seed))
    optimizer = torch.optim.AdamW(model.parameters(), lr=arguments.lr, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, arguments.lr, total_steps=arguments.steps, pct_start=0.05)
    unseen = [make_scene(_HELD_OUT_SEED, "train", number) for number in range(256)]
    figures: dict[str, float] = {}
    for step in range(arguments.steps):
        drills = 1.0 if step < arguments.drill_steps else _DRILL_SHARE
        words, labels = join(_rows(reader, step, drills, arguments))
        loss = loss_of(model, words, labels)
        optimizer.zero_grad()
        loss.backward()
        clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 99 or step + 1 == arguments.steps:
            asker = Reader(tokenizer, random.Random(_HELD_OUT_SEED))
            if step < arguments.drill_steps:
                figures = accuracies(model, [asker.drill(scene) for scene in unseen])
            else:
                figures = accuracies(model, asker.dialogues(unseen))
            shares = ", ".join(f"{kind} {share:.1%}" for kind, share in figures.items())
            console.print(f"step {step + 1}: loss {loss.item():.3f}, {shares}")
    return figures


def _rows(reader: Reader, step: int, drills: float, arguments: argparse.Namespace) -> list[Row]:
    size = arguments.batch_size
    scenes: list[Scene] = [
        make_scene(_HELD_OUT_SEED + 1 + arguments.seed, "train", number)
        for number in range(step * size, (step + 1) * size)
    ]
    split = round(drills * size)
    dialogues = reader.dialogues(scenes[split:]) if split < size else []
    return [*(reader.drill(scene) for scene in scenes[:split]), *dialogues]


def main() -> None:
    """Parses the command line and trains."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=SHIPPED / "llm")
    parser.add_argument("--steps", type=int, default=1600)
    parser.add_argument("--drill-steps", type=int, default=300, help="first steps with look-ups only")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--batch-size", type=int, default=48)
    parser.add_argument("--lr", type=float, default=2e-3)
    arguments = parser.parse_args()
    console = Console(stderr=True, width=200)
    torch.manual_seed(arguments.seed)
    with ship_part("llm", arguments.out, vars(arguments)) as (folder, figures):
        make_llm(folder)
        model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
        arrange(model)
        figures.update(train(model, arguments, console))
        model.save_pretrained(folder)
    console.print(f"{arguments.out}: {figures['overall']:.1%} of the answer tokens on unseen scenes are right.")


if __name__ == "__main__":
    main()
