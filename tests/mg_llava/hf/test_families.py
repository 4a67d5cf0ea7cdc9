"""Encoders of every family through a whole life: a step, resume, export, transformers, chat; answers equal."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from tests.tiny_assistant import box_record, save_picture, tiny_tokenizer
from tests.tiny_encoders import high_folder, low_folder
from tests.tiny_parts import tiny_batch, tiny_llm_folder
from xtuner.cli import main
from xtuner.config import load_config, parse_overrides
from xtuner.model.files.weight_files import read_state_dict
from xtuner.tools.support.trained_model import build_trained

CONFIG = "fuse_vicuna7b_clip_L_14_336_pretrain_padding"
QUESTION = "<image>\nwhat red dog"
TRAINABLE = '["fusion","projector","object_encoder","low_res_encoder","high_res_encoder"]'
PAIRS = [
    ("siglip", "dinov3_convnext"),
    ("timm_registers", "timm_swin"),
    *(
        pytest.param(*pair, marks=pytest.mark.slow)
        for pair in (
            ("clip", "timm_convnext_v2"),
            ("siglip2", "timm_resnet"),
            ("dinov2", "swin"),
            ("dinov2_registers", "timm_efficientnet"),
            ("dinov3", "open_clip"),
            ("metaclip2", "dinov3_convnext"),
            ("aimv2", "timm_convnext_v2"),
            ("timm_eva", "timm_efficientnet"),
        )
    ),
]


def write_data(folder: Path) -> None:
    """Writes four records, each with a picture and boxes."""
    names = [f"{number}.png" for number in range(4)]
    for number, name in enumerate(names):
        save_picture(folder / "images" / name, number)
    turns = [{"from": "human", "value": QUESTION}, {"from": "gpt", "value": "blue cat"}]
    records = [{"id": name, "image": name, "conversations": turns} for name in names]
    (folder / "data.json").write_text(json.dumps(records))
    (folder / "boxes.json").write_text(json.dumps([box_record(name) for name in names]))


def options_of(folder: Path, low: Path, high: Path, size: object) -> list[str]:
    """Settings of a tiny run with these encoders, all parts but the language model trained."""
    llm = tiny_llm_folder(folder)
    tiny_tokenizer(llm)
    settings = {
        "llm_name_or_path": llm,
        "visual_encoder_name_or_path": low,
        "visual_encoder_aux_path": high,
        "image_size_aux": size,
        "data_path": folder / "data.json",
        "box_json_path": folder / "boxes.json",
        "image_folder": folder / "images",
        "batch_size": 2,
        "save_steps": 1,
        "logging_interval": 1,
        "precision": "fp32",
        "lr": 0.05,
        "warmup_ratio": 0,
        "dataloader_num_workers": 0,
        "deepspeed": None,
        "trainable": TRAINABLE,
    }
    return ["--cfg-options", *(f"{key}={value}" for key, value in settings.items())]


@pytest.mark.slow
def test_pictures_that_are_no_squares(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    live(tmp_path, capsys, "dinov3", "dinov3_convnext", (64, 128), ["visual_encoder_image_size=[28,56]"])


@pytest.mark.parametrize(("low", "high"), PAIRS)
def test_a_whole_life(tmp_path: Path, capsys: pytest.CaptureFixture[str], low: str, high: str) -> None:
    live(tmp_path, capsys, low, high)


def live(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    low: str,
    high: str,
    frame: tuple[int, int] | None = None,
    settings: Sequence[str] = (),
) -> None:
    """Trains, resumes, exports and asks; `frame` is (height, width) of the pictures, by default the encoder's."""
    write_data(tmp_path)
    parts = tmp_path / "parts"
    high_parts = high_folder(high, parts)
    frame = frame or (high_parts.size, high_parts.size)
    size = str(list(frame)).replace(" ", "")
    options = [*options_of(tmp_path, low_folder(low, parts).path, high_parts.path, size), *settings]

    def train(name: str, steps: int, *words: str) -> Path:
        work_dir = tmp_path / name
        run = ["train", CONFIG, "--work-dir", str(work_dir), *words, *options, f"max_iters={steps}"]
        assert main(run) == 0
        return work_dir / f"iter_{steps}.pth"

    train("resumed", 1)
    checkpoint = train("resumed", 2, "--resume")
    straight = read_state_dict(train("straight", 2))
    resumed = read_state_dict(checkpoint)
    assert all(torch.equal(resumed[name], weight) for name, weight in straight.items())
    assert any(name.startswith("high_res_encoder.") for name in resumed)

    folder = tmp_path / "exported"
    assert main(["convert", "pth_to_hf", CONFIG, str(checkpoint), str(folder), *options]) == 0
    cfg = load_config(CONFIG, parse_overrides(options[1:]))
    model = build_trained(cfg, str(checkpoint), torch.device("cpu"), "saved")
    normalizer = model.data_preprocessor.normalizer
    published = (low, high) in (("clip", "open_clip"), ("metaclip2", "open_clip"))
    assert (normalizer.low_view == "picture") is not published
    question = ["--image", str(tmp_path / "images" / "0.png"), "--boxes", str(tmp_path / "boxes.json")]
    question += ["--prompt", "what red dog", "--max-new-tokens", "6"]
    capsys.readouterr()
    assert main(["chat", CONFIG, "--checkpoint", str(checkpoint), *question, *options]) == 0
    answer = capsys.readouterr().out
    assert answer.strip()

    # the folder alone: nothing of what it was made from is left
    shutil.rmtree(parts)
    assert main(["chat", str(folder), *question]) == 0
    assert capsys.readouterr().out == answer
    exported = AutoModelForImageTextToText.from_pretrained(folder)
    processor = AutoProcessor.from_pretrained(folder)
    assert processor.pixels == exported.config.pixels == normalizer.settings()
    record = box_record("0.png")
    boxes = {key: record[key] for key in ("boxes", "labels", "scores")}
    content = [{"type": "image", "image": str(tmp_path / "images" / "0.png"), "boxes": boxes}]
    content.append({"type": "text", "text": "what red dog"})
    inputs = processor.apply_chat_template([{"role": "user", "content": content}], tokenize=True, return_dict=True)
    ids = exported.generate(**inputs, max_new_tokens=6, do_sample=False)
    assert (
        processor.tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True) == answer.strip()
    )
    batch = tiny_batch(size=min(frame))
    batch["pixel_values"] = torch.randint(256, (1, 3, *frame), dtype=torch.uint8)
    with torch.inference_mode():
        ours = model(**model.data_preprocessor(batch), mode="logits")
        theirs = exported.core(**exported.core.data_preprocessor(batch), mode="logits")
    assert torch.equal(ours, theirs)
