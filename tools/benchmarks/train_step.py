"""What each saving of a training step brings: time and peak memory, switched on one after the other.

On the CPU, scaled: ``python tools/benchmarks/train_step.py [--vocabulary 32000 128000] [--repeats 3]``
On a GPU, real sizes: ``python tools/benchmarks/train_step.py --config fuse_vicuna7b_clip_L_14_336_pretrain_padding``

Scaled: a two-layer Llama of width 1024 and small encoders at the real resolutions (336 px / 14, 768 px / 32), eight
samples of 576 image tokens, 74 boxes and 60 supervised tokens; stage 1, so that fusion and projectors are trained.
Real: the parts of a shipped config with random weights, made on the GPU (no files of weights are read); the answer is
the model's FLOP/s as a share of the GPU's peak, by the formula of docs/cluster.md.

Every row is measured in a process of its own. Time is the process's CPU time (CPU) or wall time (GPU), the median of
the repeats after one step to warm up; memory is the peak beyond what the model and optimizer take.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # also where not installed

import torch  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402
from torch.nn import functional  # noqa: E402
from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaForCausalLM  # noqa: E402

from mg_llava.model import MGLLaVA  # noqa: E402
from mg_llava.model.encoders import HighResEncoder, LowResEncoder  # noqa: E402
from mg_llava.model.fusion import ConvGateFusion  # noqa: E402
from mg_llava.model.objects import ObjectEncoder  # noqa: E402
from mg_llava.model.splice import splice  # noqa: E402
from tools.benchmarks.real_step import make_batch, measure_real, peak_bytes  # noqa: E402
from xtuner.constants import IGNORE_INDEX  # noqa: E402
from xtuner.engine.processes.environment import Collective  # noqa: E402
from xtuner.engine.steps.optim import StepOptimizer, build_optimizer  # noqa: E402
from xtuner.engine.steps.step import run_step  # noqa: E402
from xtuner.engine.strategies.plain import PlainBackend  # noqa: E402
from xtuner.model.projector import MLPProjector  # noqa: E402

SAMPLES, BOXES, SUPERVISED, TRUNK = 8, 74, 60, "convnext_atto"


class PlainWay(MGLLaVA):
    """The model as it is written without thinking of the cost; each attribute switches one saving on.

    Attributes:
        frozen_apart: frozen parts get no gradient, encoders run under no_grad.
        supervised_only: the head runs at supervised positions only.
    """

    frozen_apart = False
    supervised_only = False

    def embed(
        self,
        input_ids: torch.Tensor,
        high_pixels: torch.Tensor,
        low_pixels: torch.Tensor,
        boxes: Sequence[torch.Tensor],
        image_positions: torch.Tensor,
        object_positions: torch.Tensor,
        blank_picture: bool = False,
        frames: Sequence[bool] = (),
    ) -> torch.Tensor:
        """Steps 1–6, with gradients through the encoders unless `frozen_apart`."""
        if self.frozen_apart:
            positions = (image_positions, object_positions)
            return super().embed(input_ids, high_pixels, low_pixels, boxes, *positions, blank_picture, frames)
        stage_maps = self.high_res_encoder(high_pixels)
        image_tokens = self.projector(self.fusion(self.low_res_encoder(low_pixels), stage_maps[-1]))
        text_embeds = self.llm.get_input_embeddings()(input_ids)
        object_tokens = self.object_encoder(stage_maps, boxes)
        return splice(text_embeds, image_tokens, object_tokens, image_positions, object_positions)

    def forward(self, *args: Any, mode: str = "loss", **batch: Any) -> Any:
        """Loss over logits of all positions, unless `supervised_only`."""
        if self.supervised_only:
            return super().forward(*args, mode=mode, **batch)
        labels = batch["labels"]
        logits = super().forward(*args, mode="logits", **batch).float()
        loss = functional.cross_entropy(
            logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORE_INDEX, reduction="sum"
        )
        return {"loss_sum": loss, "num_supervised": (labels[:, 1:] != IGNORE_INDEX).sum()}


@dataclass(frozen=True)
class Row:
    """A combination of savings."""

    name: str
    frozen_apart: bool = True
    supervised_only: bool = True
    fused: bool = True
    channels_last: bool = True


ROWS = {
    "plain": Row("plain way", False, False, False, False),
    "frozen": Row("+ no gradients of frozen parts", True, False, False, False),
    "head": Row("+ logits at supervised positions", True, True, False, False),
    "fused": Row("+ fused AdamW", True, True, True, False),
    "all": Row("+ ConvNeXt in channels_last", True, True, True, True),
}


def write_encoders(folder: Path) -> None:
    """Small encoders at the real resolutions, in the formats of the real ones."""
    import timm
    from safetensors.torch import save_file

    torch.manual_seed(0)
    config = CLIPVisionConfig(
        hidden_size=256,
        intermediate_size=1024,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=336,
        patch_size=14,
    )
    CLIPVisionModel(config).save_pretrained(folder / "clip")
    statistics_of = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "image_processor_type": "CLIPImageProcessor"}
    (folder / "clip" / "preprocessor_config.json").write_text(json.dumps(statistics_of))
    (folder / "convnext").mkdir()
    (folder / "convnext" / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": {"vision_cfg": {"timm_model_name": TRUNK}}})
    )
    trunk = timm.create_model(TRUNK, num_classes=0)
    state = {f"visual.trunk.{name}": tensor for name, tensor in trunk.state_dict().items()}
    save_file(state, folder / "convnext" / "open_clip_model.safetensors")


def scaled_model(folder: Path, vocabulary: int, row: Row, width: int = 1024, **arguments: Any) -> MGLLaVA:
    """The scaled model with a row's savings; further arguments are the model's."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=width * 11 // 4,
        num_hidden_layers=2,
        num_attention_heads=width // 64,
        max_position_embeddings=4096,
    )
    model = PlainWay(
        llm=LlamaForCausalLM(config),
        low_res_encoder=LowResEncoder(str(folder / "clip")),
        high_res_encoder=HighResEncoder(str(folder / "convnext"), channels_last=row.channels_last),
        fusion={"type": ConvGateFusion},
        projector={"type": MLPProjector},
        object_encoder={"type": ObjectEncoder},
        activation_checkpointing=False,
        **arguments,
    )
    model.frozen_apart, model.supervised_only = row.frozen_apart, row.supervised_only
    return model.train()


def measure_row(key: str, vocabulary: int, repeats: int) -> dict[str, float]:
    """Runs a row in this process."""
    row, device = ROWS[key], torch.device("cpu")
    with tempfile.TemporaryDirectory() as folder:
        write_encoders(Path(folder))
        model = scaled_model(Path(folder), vocabulary, row)
    optimizer = build_optimizer(model, device, lr=1e-3)
    if not row.fused:
        groups = [dict(params=group["params"]) for group in optimizer.optimizer.param_groups]
        single = torch.optim.AdamW(groups, lr=1e-3, foreach=False, fused=False)
        optimizer = StepOptimizer(single, optimizer.precision, 1.0, 1)
    if not row.frozen_apart:
        model.requires_grad_(True)
    backend = PlainBackend(model, optimizer, device)
    batch = make_batch(vocabulary, SAMPLES, 768, BOXES, SUPERVISED)
    before = peak_bytes(reset=True)
    seconds, losses = [], []
    for _ in range(repeats + 1):
        start = time.process_time()
        result = run_step(backend, [batch], Collective())
        seconds.append(time.process_time() - start)
        losses.append(float(result.loss_sum) / result.loss_count)
        model.zero_grad(set_to_none=True)
    extra = peak_bytes(reset=False) - before
    return {"seconds": statistics.median(seconds[1:]), "bytes": extra, "loss": losses[0]}


def measure_apart(key: str, vocabulary: int, repeats: int) -> dict[str, float]:
    """Runs a row in a fresh process."""
    command = [sys.executable, __file__, "--row", key, "--vocabulary", str(vocabulary), "--repeats", str(repeats)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def print_scaled(vocabulary: int, repeats: int, console: Console) -> None:
    """Measures all rows of a vocabulary and prints them."""
    measured = {key: measure_apart(key, vocabulary, repeats) for key in ROWS}
    plain = measured["plain"]
    title = (
        f"stage 1 step, vocabulary {vocabulary}, {SAMPLES} samples, CPU, {os.environ.get('OMP_NUM_THREADS')} thread(s)"
    )
    table = Table("savings", "CPU time", "faster", "extra memory", "of the plain way", "loss", title=title)
    for key, found in measured.items():
        table.add_row(
            ROWS[key].name,
            f"{found['seconds']:.2f} s",
            f"{plain['seconds'] / found['seconds']:.2f}x",
            f"{found['bytes'] / 1e9:.2f} GB",
            f"{found['bytes'] / plain['bytes']:.2f}x",
            f"{found['loss']:.6f}",
        )
    console.print(table)


def real_rows() -> dict[str, list[str]]:
    """Settings of the rows for a real size, each with all above it."""
    return {
        "recompute all layers": ["activation_checkpointing=True"],
        "recompute half of the layers": ["activation_checkpointing=0.5"],
        "+ compiled encoders and layers": ["activation_checkpointing=0.5", "compile_model=True"],
        "+ fused head and loss": ["activation_checkpointing=0.5", "compile_model=True", "fused_loss=True"],
    }


def print_real(args: argparse.Namespace, console: Console) -> None:
    """Measures the rows of a real size and prints them."""
    import transformers

    device = torch.device(args.device)
    name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
    title = f"{args.config}, {args.samples} samples, {name}, {versions}"
    table = Table("savings", "step", "samples/s", "peak memory", "TFLOP/s", "MFU", title=title)
    for label, options in real_rows().items():
        try:
            found = measure_real(args.config, [*options, *args.cfg_options], device, args.repeats, args.samples)
        except (ValueError, ImportError, torch.OutOfMemoryError) as error:
            table.add_row(label, str(error).splitlines()[0])
            continue
        table.add_row(
            label,
            f"{found['seconds']:.3f} s",
            f"{args.samples / found['seconds']:.1f}",
            f"{found['bytes'] / 1e9:.1f} GB",
            f"{found['flops'] / 1e12:.2f}",
            f"{found['mfu']:.1%}",
        )
    console.print(table)


def main() -> None:
    """Prints a table per vocabulary, or one for a config."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocabulary", type=int, nargs="+", default=[32000, 128000], help="default: 32000 128000")
    parser.add_argument("--repeats", type=int, default=3, help="timed steps (default: 3)")
    parser.add_argument("--row", choices=list(ROWS), help="one row, as JSON")
    parser.add_argument("--config", help="a shipped config: its real sizes with random weights")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="for --config")
    parser.add_argument("--samples", type=int, default=16, help="per micro-batch, for --config (default: 16)")
    parser.add_argument("--cfg-options", nargs="*", default=[], metavar="k=v", help="further settings, for --config")
    args = parser.parse_args()
    console = Console(width=160)
    if args.row:
        print(json.dumps(measure_row(args.row, args.vocabulary[0], args.repeats)))
    elif args.config:
        print_real(args, console)
    else:
        for vocabulary in args.vocabulary:
            print_scaled(vocabulary, args.repeats, console)


if __name__ == "__main__":
    main()
