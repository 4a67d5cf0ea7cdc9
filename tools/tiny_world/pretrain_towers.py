"""Teaches the tiny CLIP and ConvNeXt to see, as the real ones can before the first stage.

    python tools/tiny_world/pretrain_towers.py {clip,convnext} [--steps 1500] [--seed 1]

Writes tools/tiny_world/pretrained/<tower>, which make.py then puts into every world. Both towers get the same
scenes and the same supervision, each at its own resolution: what stands in each of the 6 x 6 cells of the
last map, and in each box. Heads are thrown away.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional
from torch.nn.utils import clip_grad_norm_
from torchvision.ops import roi_align

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from mg_llava.encoders import HighResEncoder, LowResEncoder  # noqa: E402
from tools.tiny_world.drawing import draw  # noqa: E402
from tools.tiny_world.parts import (  # noqa: E402
    CLIP_MEAN,
    CLIP_STD,
    HIGH_RES_SIZE,
    LOW_RES_SIZE,
    SHIPPED,
    make_clip,
    make_convnext,
    save_training_note,
)
from tools.tiny_world.scenes import CELL, COLOURS, LETTERS, SHAPES, make_scene  # noqa: E402

_KINDS = ("ground", *SHAPES, *LETTERS, "bar")
_PAINTS = ("ground", *COLOURS, "white", "grey")
_GRID = HIGH_RES_SIZE // CELL
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


def make_examples(seed: int, start: int, size: int) -> Examples:
    """Draws scenes ``start`` to ``start + size - 1`` and pads them to squares of 192 px."""
    mean, std = np.array(CLIP_MEAN, np.float32), np.array(CLIP_STD, np.float32)
    # Padding has the mean colour, so it is zero once normalised.
    pixels = np.zeros((size, HIGH_RES_SIZE, HIGH_RES_SIZE, 3), np.float32)
    kinds = torch.zeros(size, _GRID * _GRID, dtype=torch.long)
    paints = torch.zeros_like(kinds)
    boxes, box_cells = [], []
    for number in range(size):
        scene = make_scene(seed, "train", start + number)
        left, top = (HIGH_RES_SIZE - scene.width) // 2, (HIGH_RES_SIZE - scene.height) // 2
        picture = np.asarray(draw(scene), np.float32) / 255
        pixels[number, top : top + scene.height, left : left + scene.width] = (picture - mean) / std
        here = []
        for thing in (*scene.named_things, *scene.distractors):
            x1, y1, x2, y2 = thing.box
            cell = (y1 + top) // CELL * _GRID + (x1 + left) // CELL
            kinds[number, cell], paints[number, cell] = _KINDS.index(thing.kind), _PAINTS.index(thing.colour)
            here.append([x1 + left, y1 + top, x2 + left, y2 + top])
            box_cells.append(number * _GRID * _GRID + cell)
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
        num_classes = len(_KINDS) + len(_PAINTS)
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
        pooled = [
            roi_align(stage, examples.boxes, 4, stage.shape[-1] / HIGH_RES_SIZE, sampling_ratio=2).mean((2, 3))
            for stage in maps
        ]
        return cells, self.box_head(torch.cat(pooled, dim=1))


def _loss(logits: torch.Tensor, kinds: torch.Tensor, paints: torch.Tensor) -> torch.Tensor:
    kind_logits, paint_logits = logits.split((len(_KINDS), len(_PAINTS)), dim=1)
    return functional.cross_entropy(kind_logits, kinds) + functional.cross_entropy(paint_logits, paints)


def loss_of(model: TowerWithHeads, examples: Examples) -> torch.Tensor:
    """Returns the loss over cells plus the loss over boxes."""
    cells, boxes = model(examples)
    kinds, paints = examples.kinds.flatten(), examples.paints.flatten()
    # Most cells are bare ground: those with a thing count as much as all others together.
    thing = kinds > 0
    loss = _loss(cells[thing], kinds[thing], paints[thing])
    loss = loss + 0.3 * _loss(cells[~thing], kinds[~thing], paints[~thing])
    return loss + _loss(boxes, kinds[examples.box_cells], paints[examples.box_cells])


@torch.no_grad()
def accuracies(model: TowerWithHeads, scenes: int = 200) -> dict[str, float]:
    """Returns the shares of things whose kind and colour are right on scenes that were not trained on."""
    model.eval()
    examples = make_examples(_HELD_OUT_SEED, 0, scenes)
    cells, boxes = model(examples)
    kinds, paints = examples.kinds.flatten(), examples.paints.flatten()
    found = {}
    for name, logits in (("cell", cells[examples.box_cells]), ("box", boxes)):
        kind_logits, paint_logits = logits.split((len(_KINDS), len(_PAINTS)), dim=1)
        found[f"{name}_kind"] = (kind_logits.argmax(1) == kinds[examples.box_cells]).float().mean().item()
        found[f"{name}_colour"] = (paint_logits.argmax(1) == paints[examples.box_cells]).float().mean().item()
    model.train()
    return found


def train(model: TowerWithHeads, steps: int, seed: int, batch_size: int, lr: float, console: Console) -> None:
    """Trains tower and heads on scenes drawn as it goes."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps, pct_start=0.1)
    with Progress(console=console) as progress:
        task = progress.add_task("seeing", total=steps)
        for step in range(steps):
            loss = loss_of(model, make_examples(_HELD_OUT_SEED + 1 + seed, step * batch_size, batch_size))
            optimizer.zero_grad()
            loss.backward()
            clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            progress.update(task, advance=1, description=f"seeing, loss {loss.item():.3f}")
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
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--lr", type=float, default=2e-3)
    arguments = parser.parse_args()
    console = Console(stderr=True)
    folder = arguments.out or SHIPPED / arguments.tower
    torch.manual_seed(arguments.seed)
    (make_clip if arguments.tower == "clip" else make_convnext)(folder)
    is_clip = arguments.tower == "clip"
    tower = LowResEncoder(str(folder)) if is_clip else HighResEncoder(str(folder), HIGH_RES_SIZE)
    model = TowerWithHeads(tower.requires_grad_(True))
    train(model, arguments.steps, arguments.seed, arguments.batch_size, arguments.lr, console)
    write_back(tower, folder)
    figures = accuracies(model)
    save_training_note(folder, "pretrain_towers.py", vars(arguments), figures)
    console.print(f"{folder}: {figures}")


if __name__ == "__main__":
    main()
