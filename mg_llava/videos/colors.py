"""Decoded frames of every kind to 8-bit RGB, upright and with square pixels."""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from xtuner.log import get_logger

if TYPE_CHECKING:
    from av.video.format import VideoFormat
    from av.video.frame import VideoFrame

_PQ, _HLG = 16, 18
"""Transfer functions of HDR, by FFmpeg's (and H.273's) numbers."""
_BT2020 = 9
_WHITE = 203.0
"""Nits of paper white in HDR (BT.2408)."""
_KNEE = 0.5
"""Share of white from which on highlights are squeezed instead of cut."""
_BRIGHTEST_HLG = 1000.0
_TO_BT709 = np.array([[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]], np.float32)
"""Linear BT.2020 to linear BT.709."""
_WIDEST_PIXEL = 16
_TURNS = {90: Image.Transpose.ROTATE_90, 180: Image.Transpose.ROTATE_180, 270: Image.Transpose.ROTATE_270}
_told: set[str] = set()


def frame_to_rgb(frame: VideoFrame, aspect: Fraction | None, name: str) -> Image.Image:
    """Returns a frame as people see it.

    10 and 12 bit keep their upper 8; HDR (PQ, HLG) is mapped to ordinary brightness, plainly, and the log says so once
    a video; pixels that are no squares are widened or heightened; the rotation that the file asks for is done.

    Args:
        frame: decoded.
        aspect: width of a pixel over its height; None = square.
        name: of the video, for the log.
    """
    if frame.color_trc in (_PQ, _HLG):
        if name not in _told:
            _told.add(name)
            get_logger().info("%s is HDR: its brightness is mapped to 8 bit plainly.", name)
        picture = Image.fromarray(_tone_mapped(frame))
    else:
        picture = Image.fromarray(frame.to_ndarray(format="rgb24"))
    wanted = shown_size(picture.size, aspect)
    if wanted != picture.size:
        picture = picture.resize(wanted, Image.Resampling.BICUBIC)
    turn = _TURNS.get(round(frame.rotation / 90) * 90 % 360)
    return picture if turn is None else picture.transpose(turn)


def shown_size(size: tuple[int, int], aspect: Fraction | None) -> tuple[int, int]:
    """Returns (width, height) of a frame with square pixels; the shorter side of a pixel is stretched."""
    width, height = size
    if not aspect or not Fraction(1, _WIDEST_PIXEL) <= aspect <= _WIDEST_PIXEL:
        return size
    return (round(width * aspect), height) if aspect > 1 else (width, round(height / aspect))


def bits_per_pixel(kind: VideoFormat | None) -> float:
    """Returns the bits in which a decoder holds a pixel; 8-bit 4:2:0 where it does not say."""
    if kind is None:
        return 12.0
    chroma = kind.chroma_width(64) * kind.chroma_height(64) / 64**2
    # more than 8 bits take two bytes
    values = [8 * -(-part.bits // 8) * (chroma if part.is_chroma else 1.0) for part in kind.components]
    return float(sum(values))


def _tone_mapped(frame: VideoFrame) -> np.ndarray:
    """(H, W, 3) uint8 of a frame in PQ or HLG."""
    coded = frame.to_ndarray(format="rgb48le").astype(np.float32) / 65535
    light = _pq_light(coded) if frame.color_trc == _PQ else _hlg_light(coded)
    if frame.color_primaries == _BT2020:
        light = np.clip(light @ _TO_BT709.T, 0, None)
    squeezed = _KNEE + (1 - _KNEE) * (1 - np.exp(-(light - _KNEE) / (1 - _KNEE)))
    light = np.where(light <= _KNEE, light, squeezed)
    srgb = np.where(light <= 0.0031308, 12.92 * light, 1.055 * np.power(np.maximum(light, 1e-9), 1 / 2.4) - 0.055)
    return np.rint(np.clip(srgb, 0, 1) * 255).astype(np.uint8)


def _pq_light(coded: np.ndarray) -> np.ndarray:
    """SMPTE ST 2084: coded values to light, 1 = paper white."""
    m1, m2, c1, c2, c3 = 2610 / 16384, 2523 / 32, 3424 / 4096, 2413 / 128, 2392 / 128
    root = np.power(coded, 1 / m2)
    return np.power(np.maximum(root - c1, 0) / (c2 - c3 * root), 1 / m1) * (10_000 / _WHITE)


def _hlg_light(coded: np.ndarray) -> np.ndarray:
    """ARIB STD-B67: coded values to light of a display of 1,000 nits, 1 = paper white."""
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    scene = np.where(coded <= 0.5, coded**2 / 3, (np.exp((coded - c) / a) + b) / 12)
    luminance = scene @ np.array([0.2627, 0.6780, 0.0593], np.float32)
    return scene * np.power(np.maximum(luminance, 1e-9), 0.2)[..., None] * (_BRIGHTEST_HLG / _WHITE)
