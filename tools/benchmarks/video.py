"""Eight frames of a minute of video: seeking against decoding all of it.

Usage: ``python tools/benchmarks/video.py [--repeats 5] [--seconds 60]``

Both sides run in turns, each in a process of its own with one thread, on H.264 clips of 1280 x 720 at 30 frames/s
made here: with a key frame each second, and with the encoder's default spacing (250 frames). Decoding all hands over
the same eight frames as RGB and keeps no others. Memory is the largest resident size above that after the imports. A
worker's frames are counted from the file to the 8-bit square of 768 pixels. The last table has what `xtuner preprocess
video` keeps of the first clip: its size, how far it is from the decoded frame, and a worker's frames from there.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

SIZE, FPS = (1280, 720), 30
CLIPS = {"a key frame each second": {"g": str(FPS), "sc_threshold": "0"}, "default spacing": {}}


def write_clip(path: Path, seconds: int, options: dict[str, str]) -> None:
    """Writes a picture that wanders, with some noise: of the size in bytes that films have."""
    import av

    draw = np.random.default_rng(0)
    width, height = SIZE
    small = draw.integers(0, 256, (height // 40, width // 40 * 2, 3), dtype=np.uint8)
    wide = np.repeat(np.repeat(small, 40, axis=0), 40, axis=1).astype(np.int16)
    noise = draw.integers(-6, 7, (8, height, width, 1), dtype=np.int16)
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=FPS)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.options = {"preset": "veryfast", "crf": "23", **options}
        for number in range(seconds * FPS):
            start = number * 2 % width
            picture = np.clip(wide[:, start : start + width] + noise[number % 8], 0, 255).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
        container.mux(stream.encode(None))


def here(path: str) -> list[np.ndarray]:
    """The frames as a worker of training gets them: their places are known."""
    from mg_llava.videos import FrameSampling, open_video

    with open_video(path) as video:
        places = [video.place(number) for number in FrameSampling().choose(video.times, video.duration).numbers]
        return [np.asarray(picture) for picture in video.frames(places)]


def decode_all(path: str) -> list[np.ndarray]:
    """Every frame is decoded, the wanted ones become RGB."""
    import av

    with av.open(path) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        wanted = set(np.linspace(0, stream.frames - 1, 8).astype(int).tolist())
        return [frame.to_ndarray(format="rgb24") for i, frame in enumerate(container.decode(stream)) if i in wanted]


def measure(side: str, path: str) -> None:
    """Prints seconds, megabytes and a digest of one side, as JSON; runs in its own process."""
    import hashlib
    import resource
    import time

    import av  # noqa: F401  # both sides' imports are no part of it
    import torch

    from mg_llava.pictures.preprocess import ImageProcessor
    from mg_llava.videos import FrameSampling, open_video  # noqa: F401

    def peak() -> float:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

    torch.set_num_threads(1)
    before, start = peak(), time.process_time()
    frames = (here if side == "here" else decode_all)(path)
    seconds, memory = time.process_time() - start, peak() - before
    digest = hashlib.sha256(b"".join(frame.tobytes() for frame in frames)).hexdigest()
    (Path(path).parent / "preprocessor_config.json").write_text(
        json.dumps({"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "do_center_crop": True})
    )
    from PIL import Image

    processor = ImageProcessor(str(Path(path).parent), 768)
    start = time.process_time()
    for frame in frames:
        processor.pixels(Image.fromarray(frame))
    rate = len(frames) / (seconds + time.process_time() - start)
    sys.stdout.write(json.dumps({"seconds": seconds, "memory": memory, "rate": rate, "digest": digest}))


def measure_kept(clip: Path, folder: Path, repeats: int) -> list[list[str]]:
    """Keeps the frames of a clip as JPEG and PNG; returns rows of a table: size, difference, frames/s of a worker."""
    import time

    import torch

    from mg_llava.pictures.preprocess import ImageProcessor
    from mg_llava.videos import FrameFiles, FrameSampling, open_video
    from mg_llava.videos.cache import FrameCache, FrameFormat, keep_frames
    from xtuner.data.pictures.files import FolderPictures

    torch.set_num_threads(1)
    stored = FolderPictures(str(clip.parent))
    with open_video(clip) as video:
        numbers = FrameSampling().choose(video.times, video.duration).numbers
        paths = [str(video.place(number)._replace(video=clip.name)) for number in numbers]
    processor = ImageProcessor(str(clip.parent), 768)
    decoded = [np.asarray(picture) for picture in FrameFiles(stored).images(paths, processor.open)]
    rows = []
    for form in (None, FrameFormat(), FrameFormat("png")):
        files, size, far = FrameFiles(stored), "", ""
        if form is not None:
            keep_frames([clip.name], files, FrameSampling(), folder / form.name, form, 1)
            files = FrameFiles(stored, FrameCache(folder / form.name))
            total = sum(file.stat().st_size for file in (folder / form.name).glob("*.arrow"))
            size = f"{total / len(paths) / 1e3:.0f} kB"
            kept = [np.asarray(picture) for picture in files.images(paths, processor.open)]
            pairs = zip(decoded, kept, strict=True)
            error = np.mean([np.square(one.astype(np.float32) - other).mean() for one, other in pairs])
            far = "the same" if error == 0 else f"PSNR {10 * np.log10(255**2 / error):.1f} dB"
        seconds = []
        for _ in range(repeats):
            start = time.process_time()
            for picture in files.images(paths, processor.open):
                processor.pixels(picture)
            seconds.append(time.process_time() - start)
        name = "decoded" if form is None else str(form)
        rows.append([name, size, far, f"{len(paths) / statistics.median(seconds):.1f}"])
    return rows


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--side", choices=("here", "all"), help=argparse.SUPPRESS)
    parser.add_argument("--clip", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        measure(args.side, args.clip)
        return
    table = Table(
        "8 frames of a 720p clip", "MB", "decode all", "here", "faster", "memory of both", "frames/s of a worker"
    )
    with tempfile.TemporaryDirectory() as name:
        for words, options in CLIPS.items():
            clip = Path(name) / f"{words.split()[0]}.mp4"
            write_clip(clip, args.seconds, options)
            found: dict[str, list[dict[str, Any]]] = {"all": [], "here": []}
            for _ in range(args.repeats):
                for side, runs in found.items():
                    command = [sys.executable, __file__, "--side", side, "--clip", str(clip)]
                    done = subprocess.run(command, capture_output=True, text=True, check=True)
                    runs.append(json.loads(done.stdout))
            assert len({run["digest"] for runs in found.values() for run in runs}) == 1, "the frames differ"
            middle = {
                side: {key: statistics.median(run[key] for run in runs) for key in ("seconds", "memory", "rate")}
                for side, runs in found.items()
            }
            all_, ours = middle["all"], middle["here"]
            table.add_row(
                words,
                f"{clip.stat().st_size / 1e6:.1f}",
                f"{all_['seconds']:.2f} s",
                f"{ours['seconds']:.2f} s",
                f"{all_['seconds'] / ours['seconds']:.1f} x",
                f"{all_['memory']:.0f} / {ours['memory']:.0f} MB",
                f"{all_['rate']:.1f} / {ours['rate']:.1f}",
            )
        kept = Table("frames of the first clip", "a frame", "against the decoded one", "frames/s of a worker")
        first = next(iter(CLIPS)).split()[0]
        for row in measure_kept(Path(name) / f"{first}.mp4", Path(name) / "kept", args.repeats):
            kept.add_row(*row)
    console = Console(highlight=False, width=160)
    console.print(table)
    console.print(kept)


if __name__ == "__main__":
    main()
