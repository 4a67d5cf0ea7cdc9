"""Teaches the tiny CLIP and ConvNeXt to see, as the real ones can before the first stage.

    python tools/tiny_world/pretrain_towers.py {clip,convnext} [--steps 2000] [--seed 1]

Writes tools/tiny_world/pretrained/<tower>, which make.py then puts into every world. Both towers get the same
scenes and the same supervision, each at its own resolution: what stands in each of the 6 x 6 cells of the
last map and in each box, and in which quarter of the picture that is. Heads are thrown away.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional
from torch.nn.utils import clip_grad_norm_

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from mg_llava.model.encoders import HighResEncoder, LowResEncoder  # noqa: E402
from mg_llava.model.objects import pool_boxes  # noqa: E402
from tools.tiny_world.dice import Dice  # noqa: E402
from tools.tiny_world.drawing import draw  # noqa: E402
from tools.tiny_world.parts import SHIPPED, ship_part  # noqa: E402
from tools.tiny_world.scenes import (  # noqa: E402
    BAR_SIZES,
    CELL,
    COLOURS,
    GRID,
    LETTER_SIZE,
    LETTERS,
    SHAPES,
    THING_SIZE,
    Scene,
    Thing,
    make_scene,
)
from tools.tiny_world.untrained import (  # noqa: E402
    CLIP_MEAN,
    CLIP_STD,
    HIGH_RES_SIZE,
    LOW_RES_SIZE,
    make_clip,
    make_convnext,
)

_KINDS = ("ground", *SHAPES, *LETTERS, "bar")
_PAINTS = ("ground", *COLOURS, "white", "grey")
_SPLIT = (len(_KINDS), len(_PAINTS), 4)
"""Logits of a cell or box: what it is, its colour, its quarter of the picture."""
_HELD_OUT_SEED = 2_000_000
"""Scenes of this seed are never trained on; worlds use small seeds, so these are never theirs either."""


@dataclass
class Examples:
    """A batch of padded pictures and what stands in their cells.

    Args:
        pixels: (B, 3, 192, 192) normalised.
        cells: (B, 36) long numbers of _KINDS and of _PAINTS, by cell, row by row.
        boxes: One (N, 4) per picture, xyxy in the 192 px frame.
        box_cells: (sum N,) flat cell number, over the batch, of each box.
    """

    pixels: torch.Tensor
    kinds: torch.Tensor
    paints: torch.Tensor
    boxes: list[torch.Tensor]
    box_cells: torch.Tensor


def full_scene(seed: int, index: int) -> Scene:
    """Returns a square scene with something in most cells: more to learn from per picture than in the world's."""
    dice = Dice(seed, index, 6)
    things = []
    for cell in range(GRID * GRID):
        chance = dice.below(100)
        if chance < 65:
            kind, colour, width = dice.choice(SHAPES), dice.choice(COLOURS), dice.between(*THING_SIZE)
            size = (width, width)
        elif chance < 80:
            kind, colour, size = dice.choice(LETTERS), "white", LETTER_SIZE
        elif chance < 90:
            kind, colour, size = "bar", "grey", dice.choice(BAR_SIZES)
        else:
            continue
        x = cell % GRID * CELL + 1 + dice.below(CELL - 1 - size[0])
        y = cell // GRID * CELL + 1 + dice.below(CELL - 1 - size[1])
        things.append(Thing(kind, colour, (x, y, x + size[0], y + size[1]), ""))
    return Scene("full", HIGH_RES_SIZE, HIGH_RES_SIZE, tuple(things), None, (), (seed, index, 1))


def make_examples(scenes: list[Scene]) -> Examples:
    """Draws scenes and pads them to squares of 192 px."""
    size = len(scenes)
    mean, std = np.array(CLIP_MEAN, np.float32), np.array(CLIP_STD, np.float32)
    # Padding has the mean colour, so it is zero once normalised.
    pixels = np.zeros((size, HIGH_RES_SIZE, HIGH_RES_SIZE, 3), np.float32)
    kinds = torch.zeros(size, GRID * GRID, dtype=torch.long)
    paints = torch.zeros_like(kinds)
    boxes, box_cells = [], []
    for number, scene in enumerate(scenes):
        left, top = (HIGH_RES_SIZE - scene.width) // 2, (HIGH_RES_SIZE - scene.height) // 2
        picture = np.asarray(draw(scene), np.float32) / 255
        pixels[number, top : top + scene.height, left : left + scene.width] = (picture - mean) / std
        here = []
        for thing in (*scene.named_things, *scene.distractors):
            x1, y1, x2, y2 = thing.box
            cell = (y1 + top) // CELL * GRID + (x1 + left) // CELL
            kinds[number, cell], paints[number, cell] = _KINDS.index(thing.kind), _PAINTS.index(thing.colour)
            here.append([x1 + left, y1 + top, x2 + left, y2 + top])
            box_cells.append(number * GRID * GRID + cell)
        boxes.append(torch.tensor(here, dtype=torch.float32) + torch.rand(len(here), 4) * 3.6 - 1.8)
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()
    return Examples(images, kinds, paints, boxes, torch.tensor(box_cells))


class TowerWithHeads(nn.Module):
    """A tower, one linear head on the cells of its last map and one on its pooled boxes.

    Args:
        tower: The low-res or the high-res encoder.
    """

    def __init__(self, tower: LowResEncoder | HighResEncoder) -> None:
        super().__init__()
        self.tower = tower
        channels = tower.channels if isinstance(tower, HighResEncoder) else [tower.channels]
        num_classes = sum(_SPLIT)
        self.cell_head = nn.Sequential(nn.LayerNorm(channels[-1]), nn.Linear(channels[-1], num_classes))
        self.box_head = nn.Sequential(nn.LayerNorm(sum(channels)), nn.Linear(sum(channels), num_classes))

    def _maps(self, pixels: torch.Tensor) -> list[torch.Tensor]:
        if isinstance(self.tower, HighResEncoder):
            return self.tower(pixels)
        # As the model makes it: from the normalised picture, without antialias.
        low = functional.interpolate(pixels, (LOW_RES_SIZE, LOW_RES_SIZE), mode="bilinear")
        return [self.tower(low).transpose(1, 2).unflatten(2, self.tower.grid)]

    def forward(self, examples: Examples) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns logits of all cells (B * 36, classes) and of all boxes (sum N, classes)."""
        maps = self._maps(examples.pixels)
        cells = self.cell_head(maps[-1].flatten(2).transpose(1, 2).flatten(0, 1))
        return cells, self.box_head(torch.cat(pool_boxes(maps, examples.boxes, HIGH_RES_SIZE)))


def _quarters(cells: torch.Tensor) -> torch.Tensor:
    """Returns the quarter, 0 to 3, of flat cell numbers over a batch; padding to a square keeps the quarters."""
    row, column = cells // GRID % GRID, cells % GRID
    return (row >= GRID // 2) * 2 + (column >= GRID // 2)


def _loss(logits: torch.Tensor, examples: Examples, cells: torch.Tensor) -> torch.Tensor:
    targets = (examples.kinds.flatten()[cells], examples.paints.flatten()[cells], _quarters(cells))
    return sum(map(functional.cross_entropy, logits.split(_SPLIT, dim=1), targets), logits.new_zeros(()))


def loss_of(model: TowerWithHeads, examples: Examples) -> torch.Tensor:
    """Returns the loss over cells plus the loss over boxes."""
    cells, boxes = model(examples)
    # Most cells are bare ground: those with a thing count as much as all others together.
    thing = examples.kinds.flatten() > 0
    things, ground = thing.nonzero()[:, 0], (~thing).nonzero()[:, 0]
    loss = _loss(cells[things], examples, things) + 0.3 * _loss(cells[ground], examples, ground)
    return loss + _loss(boxes, examples, examples.box_cells)


@torch.no_grad()
def accuracies(model: TowerWithHeads, scenes: int = 200) -> dict[str, float]:
    """Returns the shares of shapes and letters whose kind, colour and quarter are right on scenes not trained on."""
    model.eval()
    examples = make_examples([make_scene(_HELD_OUT_SEED, "train", index) for index in range(scenes)])
    cells, boxes = model(examples)
    here = examples.box_cells
    named = examples.kinds.flatten()[here] != _KINDS.index("bar")
    here, boxes = here[named], boxes[named]
    targets = {
        "kind": examples.kinds.flatten()[here],
        "colour": examples.paints.flatten()[here],
        "quarter": _quarters(here),
    }
    found = {}
    for name, logits in (("cell", cells[here]), ("box", boxes)):
        for (what, target), part in zip(targets.items(), logits.split(_SPLIT, dim=1), strict=True):
            found[f"{name}_{what}"] = (part.argmax(1) == target).float().mean().item()
    model.train()
    return found


def _training_scene(seed: int, index: int) -> Scene:
    """Three of four scenes are full ones, the others as in the world."""
    return make_scene(seed, "train", index) if index % 4 == 0 else full_scene(seed, index)


def train(model: TowerWithHeads, arguments: argparse.Namespace, console: Console) -> None:
    """Trains tower and heads on scenes drawn as it goes."""
    steps, seed, batch_size, lr = arguments.steps, arguments.seed, arguments.batch_size, arguments.lr
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps, pct_start=0.1)
    for step in range(steps):
        numbers = range(step * batch_size, (step + 1) * batch_size)
        examples = make_examples([_training_scene(_HELD_OUT_SEED + 1 + seed, number) for number in numbers])
        loss = loss_of(model, examples)
        optimizer.zero_grad()
        loss.backward()
        clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 99:
            shares = ", ".join(f"{name} {share:.1%}" for name, share in accuracies(model).items())
            console.print(f"step {step + 1}: loss {loss.item():.3f}, {shares}")


def write_back(tower: LowResEncoder | HighResEncoder, folder: Path) -> None:
    """Replaces the weights of the part's folder that the tower trained; the others stay."""
    if isinstance(tower, LowResEncoder):
        file, prefix, trained = folder / "model.safetensors", "", tower.clip.state_dict()
    else:
        file, prefix, trained = folder / "open_clip_model.safetensors", "visual.trunk.", tower.state_dict()
    state = load_file(file)
    known = {name.removeprefix("vision_model."): name for name in state}
    for name, value in trained.items():
        state[known[(prefix + name).removeprefix("vision_model.")]] = value.contiguous()
    save_file(state, file, metadata={"format": "pt"})


def main() -> None:
    """Parses the command line and trains one tower."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tower", choices=("clip", "convnext"))
    parser.add_argument("--out", type=Path, help="default: tools/tiny_world/pretrained/<tower>")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--lr", type=float, default=3e-3)
    arguments = parser.parse_args()
    console = Console(stderr=True, width=200)
    out = arguments.out or SHIPPED / arguments.tower
    torch.manual_seed(arguments.seed)
    with ship_part(arguments.tower, out, vars(arguments)) as (folder, figures):
        is_clip = arguments.tower == "clip"
        (make_clip if is_clip else make_convnext)(folder)
        tower = LowResEncoder(str(folder)) if is_clip else HighResEncoder(str(folder), HIGH_RES_SIZE)
        model = TowerWithHeads(tower.requires_grad_(True))
        train(model, arguments, console)
        write_back(tower, folder)
        figures.update(accuracies(model))
    console.print(f"{out}: {figures}")


if __name__ == "__main__":
    main()
