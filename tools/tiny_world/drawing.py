"""Scenes to pictures: integer geometry on a palette, and a PNG writer whose bytes do not depend on zlib."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from tools.tiny_world.dice import Dice
from tools.tiny_world.scenes import COLOURS, LETTERS, Scene, Thing

_GROUND = [(level, level, level + 8) for level in range(52, 116, 8)]
_PAINT = {
    "red": (214, 40, 40),
    "green": (40, 170, 60),
    "blue": (50, 80, 230),
    "yellow": (236, 220, 50),
    "purple": (160, 60, 190),
    "orange": (240, 140, 30),
    "white": (245, 245, 245),
    "grey": (168, 168, 160),
}
_INK = {colour: len(_GROUND) + 2 * number for number, colour in enumerate((*COLOURS, "white", "grey"))}
_FONT = {
    "A": ("01110", "10001", "10001", "11111", "10001", "10001", "10001"),
    "H": ("10001", "10001", "10001", "11111", "10001", "10001", "10001"),
    "L": ("10000", "10000", "10000", "10000", "10000", "10000", "11111"),
    "T": ("11111", "00100", "00100", "00100", "00100", "00100", "00100"),
    "X": ("10001", "10001", "01010", "00100", "01010", "10001", "10001"),
    "Z": ("11111", "00001", "00010", "00100", "01000", "10000", "11111"),
}
_STORED_BLOCK = 65535


def _palette() -> list[tuple[int, int, int]]:
    """Ground levels, then each paint in two shades, the second a little darker."""
    shades = [tuple(value - darker * value // 10 for value in _PAINT[colour]) for colour in _INK for darker in (0, 1)]
    return [*_GROUND, *((r, g, b) for r, g, b in shades)]


def shape_mask(kind: str, width: int, height: int) -> np.ndarray:
    """Returns the (height, width) boolean mask of a shape, letter or bar, by comparisons of whole numbers."""
    if kind in LETTERS:
        rows = [[bit == "1" for bit in row] for row in _FONT[kind]]
        return np.kron(np.array(rows), np.ones((height // 7, width // 5), dtype=bool))
    # Doubled coordinates of the pixel centres relative to the middle keep everything whole.
    x = 2 * np.arange(width)[None, :] - (width - 1)
    y = 2 * np.arange(height)[:, None] - (height - 1)
    radius = x**2 + y**2
    if kind == "circle":
        return radius <= width**2
    if kind == "ring":
        return (radius <= width**2) & (radius > (width - 4) ** 2)
    if kind == "cross":
        return (np.abs(x) <= width // 3) | (np.abs(y) <= height // 3)
    if kind == "triangle":
        # at an even width the tip is two pixels wide
        return 2 * np.abs(x) <= y + height + 1 - width % 2
    return np.ones((height, width), dtype=bool)


def draw_indices(scene: Scene) -> np.ndarray:
    """Returns the (height, width) uint8 palette indices of a scene: ground, distractors, things."""
    dice = Dice(*scene.noise_keys)
    canvas = dice.bytes_below_8(scene.height, scene.width)

    def paint(thing: Thing) -> None:
        left, top, right, bottom = thing.box
        mask = shape_mask(thing.kind, right - left, bottom - top)
        shade = dice.bytes_below_8(*mask.shape) & 1
        canvas[top:bottom, left:right][mask] = (_INK[thing.colour] + shade)[mask]

    for thing in (*scene.distractors, *scene.named_things):
        paint(thing)
    return canvas


def draw(scene: Scene) -> Image.Image:
    """Returns the scene as an RGB picture."""
    return Image.fromarray(np.array(_palette(), dtype=np.uint8)[draw_indices(scene)])


def _png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_bytes(indices: np.ndarray) -> bytes:
    """Encodes palette indices (height, width) as an uncompressed palette PNG.

    zlib and zlib-ng compress to different bytes; stored blocks are the same everywhere.
    """
    height, width = indices.shape
    raw = b"".join(b"\0" + row.tobytes() for row in indices)
    blocks = [raw[start : start + _STORED_BLOCK] for start in range(0, len(raw), _STORED_BLOCK)]
    stored = b"".join(
        struct.pack("<BHH", number == len(blocks) - 1, len(block), len(block) ^ 0xFFFF) + block
        for number, block in enumerate(blocks)
    )
    stream = b"\x78\x01" + stored + struct.pack(">I", zlib.adler32(raw))
    header = struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)
    palette = bytes(value for colour in _palette() for value in colour)
    chunks = ((b"IHDR", header), (b"PLTE", palette), (b"IDAT", stream), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_png_chunk(kind, body) for kind, body in chunks)


def picture_name(scene: Scene) -> str:
    """Path of the picture relative to the image folder: every other one is a PNG, the rest are JPEGs."""
    suffix = "png" if scene.noise_keys[2] % 2 == 0 else "jpg"
    return f"images/{scene.name}.{suffix}"


def save_picture(scene: Scene, image_folder: Path) -> None:
    """Writes the scene below ``image_folder`` under its ``picture_name``."""
    path = image_folder / picture_name(scene)
    if path.suffix == ".png":
        path.write_bytes(png_bytes(draw_indices(scene)))
    else:
        draw(scene).save(path, quality=92, subsampling=0)
