"""Prompts of evaluation in vLLM's form; nothing here needs vLLM."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image

from mg_llava.inference.prompts import as_picture_boxes
from mg_llava.serving.vllm.boxed import join_options, kept_name, read_pictures
from mg_llava.serving.vllm.prepared import in_vocabulary, token_prompt
from tests.tiny_assistant import tiny_assistant
from xtuner.data.text.templates import Turn

PICTURE = Image.new("RGB", (40, 30), (200, 30, 30))
IMAGE_ID = 128


def test_ids_pixels_and_boxes_are_the_prompt_s(tmp_path: Path) -> None:
    assistant, _ = tiny_assistant(tmp_path)
    found = [None, None]
    prompt = assistant.prepare([Turn("<image>\nIs it", "red"), Turn("<image> what")], [PICTURE, PICTURE], found)
    made = token_prompt(prompt, IMAGE_ID)
    assert [-200 if one == IMAGE_ID else one for one in made["prompt_token_ids"]] == prompt.input_ids
    pictures = made["multi_modal_data"]["image"]
    assert torch.equal(torch.stack([picture.pixels for picture in pictures]), prompt.pixel_values)
    assert all(torch.equal(one.boxes, boxes) for one, boxes in zip(pictures, prompt.boxes, strict=True))


def test_a_text_has_no_pictures(tmp_path: Path) -> None:
    assistant, _ = tiny_assistant(tmp_path)
    assert set(token_prompt(assistant.prepare([Turn("what")]), IMAGE_ID)) == {"prompt_token_ids"}


def test_boxes_count_in_the_cache(tmp_path: Path) -> None:
    assistant, _ = tiny_assistant(tmp_path)
    pictures = []
    for boxes in (None, [[1, 2, 30, 20]]):
        prompt = assistant.prepare([Turn("<image>\nwhat")], [PICTURE], [as_picture_boxes(boxes)])
        pictures += token_prompt(prompt, IMAGE_ID)["multi_modal_data"]["image"]
    without, with_one = pictures
    assert torch.equal(without.cache_key["pixels"], with_one.cache_key["pixels"])
    assert without.cache_key["boxes"].shape == (0, 4) and with_one.cache_key["boxes"].shape == (1, 4)
    assert kept_name(without, "cat") != kept_name(with_one, "cat") and kept_name(with_one, None) is None
    # options of a request do not reach them
    assert read_pictures(pictures) == pictures == join_options(pictures, {})


def test_ids_beyond_the_logits_become_the_bos(tmp_path: Path) -> None:
    """vLLM looks up log-probabilities of a prompt's ids (``echo``, ``prompt_logprobs``)."""
    tokenizer = tiny_assistant(tmp_path)[0].tokenizer
    bos = tokenizer.bos_token_id
    assert in_vocabulary([bos, 7, IMAGE_ID, IMAGE_ID, 9], IMAGE_ID, tokenizer) == [bos, 7, bos, bos, 9]
    assert in_vocabulary([bos, 7, IMAGE_ID], IMAGE_ID + 1, tokenizer) == [bos, 7, IMAGE_ID]
