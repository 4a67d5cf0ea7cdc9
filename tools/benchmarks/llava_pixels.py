"""What the published preprocessing changes for a LLaVA that is continued: the same pictures, prepared both ways.

LLaVA resizes the padded picture to the encoder's size with an antialiased bicubic filter. MG-LLaVA resizes it so to the
high-resolution size, and takes the encoder's picture from that one, bilinearly and without antialias. Prints how far
the two are apart on photographs, in grey levels and in the encoder's tokens:

    python tools/benchmarks/llava_pixels.py --clip FOLDER [--high-res 768] [PICTURE ...]

Without pictures those of scikit-image are taken (extra `real`).
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import torch
from PIL import Image

from mg_llava.model import LowResEncoder
from mg_llava.pictures import ImageProcessor
from mg_llava.pictures.normalize import PixelNormalizer

_PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "rocket", "hubble_deep_field", "immunohistochemistry", "retina")


def photographs(paths: list[str]) -> Iterator[tuple[str, Image.Image]]:
    """Yields name and picture of each path, or of scikit-image's photographs that are on the disk."""
    if paths:
        yield from ((path, Image.open(path)) for path in paths)
        return
    from skimage import data

    for name in _PHOTOGRAPHS:
        try:
            yield name, Image.fromarray(getattr(data, name)())
        except (OSError, ModuleNotFoundError):  # fetched from the network at first use
            continue


def main() -> None:
    """Prints one line per picture and their means."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pictures", nargs="*")
    parser.add_argument("--clip", required=True, metavar="FOLDER", help="CLIP, as transformers saves it")
    parser.add_argument("--high-res", type=int, default=768, metavar="PIXELS", help="image_size_aux (default: 768)")
    args = parser.parse_args()
    encoder = LowResEncoder(args.clip).eval()
    statistics, size = encoder.statistics, encoder.image_size
    normalizer = PixelNormalizer(statistics.mean, statistics.std)
    deviations = torch.tensor(statistics.std).view(1, 3, 1, 1) * 255
    rows = []
    for name, picture in photographs(args.pictures):
        low = [
            normalizer(ImageProcessor(args.clip, side).pixels(picture)[None], size)[1] for side in (size, args.high_res)
        ]
        apart = ((low[1] - low[0]) * deviations).abs()
        with torch.inference_mode():
            tokens = [encoder(pixels) for pixels in low]
        angle = torch.cosine_similarity(tokens[0], tokens[1], dim=-1)
        ratio = (tokens[1] - tokens[0]).norm() / tokens[0].norm()
        rows.append([apart.mean().item(), apart.flatten().quantile(0.99).item(), ratio.item(), angle.mean().item()])
        print(f"{name:<22}{_line(rows[-1])}")
    print(f"{'mean':<22}{_line(torch.tensor(rows).mean(0).tolist())}")


def _line(row: list[float]) -> str:
    mean, most, ratio, angle = row
    return f"{mean:6.2f} grey levels (99 %: {most:6.2f})   tokens: distance {ratio:.3f}, cosine {angle:.4f}"


if __name__ == "__main__":
    main()
