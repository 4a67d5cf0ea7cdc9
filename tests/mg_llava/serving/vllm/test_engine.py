"""Exported folders of every family on a real vLLM, to the token as transformers answers.

Skipped where vLLM is not installed (some 3.5 GB): ``bash tools/check_vllm.sh`` makes an environment and runs it.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mg_llava.hf import MGLLaVAConfig, MGLLaVAProcessor, load_assistant, load_model
from mg_llava.inference.prompts import as_picture_boxes
from mg_llava.serving.vllm.prepared import token_prompt
from mg_llava.serving.vllm.videos import with_said
from mg_llava.videos import read_frames
from tests.clips import write_clip
from tests.mg_llava.serving.vllm.families import FAMILIES, export
from xtuner.data.text.templates import Place, Turn
from xtuner.errors import XTunerError

pytest.importorskip("vllm", reason="needs vLLM, some 3.5 GB: bash tools/check_vllm.sh")
pytestmark = pytest.mark.slow

QUESTIONS = ["what", "Is it red", "A B C D", "dog cat yes", "w100 w101 blue"]
TOKENS = 12
PICTURES = [
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (30, 40, 3), dtype=np.uint8)) for seed in range(3)
]
BOXES = [[[2, 3, 20, 25], [10, 5, 38, 28], [0, 0, 40, 30]], None, [[5, 5, 15, 15]]]


class Both:
    """One folder in transformers and in vLLM.

    Args:
        folder: exported.
        options: of vLLM's ``LLM``.
    """

    def __init__(self, folder: Path, **options: Any) -> None:
        from vllm import LLM, SamplingParams

        self.folder = folder
        self.model = load_model(folder, dtype=torch.float32).eval()
        self.processor = MGLLaVAProcessor.from_pretrained(folder)
        values = {"dtype": "float32", "max_model_len": 256, "max_num_batched_tokens": 256, "max_num_seqs": 4, **options}
        self.llm = LLM(str(folder), enforce_eager=True, limit_mm_per_prompt={"image": 9, "video": 2}, seed=0, **values)
        self.sampling = SamplingParams(temperature=0, max_tokens=TOKENS, ignore_eos=True)

    def text(self, question: str, pictures: int) -> str:
        parts = [{"type": "image"}] * pictures + [{"type": "text", "text": question}]
        return str(self.processor.apply_chat_template([{"role": "user", "content": parts}]))

    def transformers(self, question: str, pictures: list[Any], boxes: list[Any]) -> list[int]:
        batch = self.processor(images=pictures or None, text=self.text(question, len(pictures)), boxes=boxes or None)
        output = self.model.generate(**batch, max_new_tokens=TOKENS, do_sample=False, eos_token_id=None)
        return output[0, batch["input_ids"].shape[1] :].tolist()

    def vllm(self, question: str, pictures: list[Any], boxes: list[Any], **prompt: Any) -> list[int]:
        given = [{"image": picture, "boxes": found} for picture, found in zip(pictures, boxes, strict=True)]
        prompt = {"prompt": self.text(question, len(pictures)), **prompt}
        if given:
            prompt["multi_modal_data"] = {"image": given}
        return list(self.llm.generate([prompt], self.sampling, use_tqdm=False)[0].outputs[0].token_ids)


@pytest.fixture(scope="module", params=FAMILIES)
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Both]:
    pair = Both(export(tmp_path_factory.mktemp("family"), request.param))
    yield pair
    pair.llm.llm_engine.engine_core.shutdown()


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_ids_are_those_of_transformers(both: Both, count: int) -> None:
    for question in QUESTIONS:
        expected = both.transformers(question, PICTURES[:count], BOXES[:count])
        assert both.vllm(question, PICTURES[:count], BOXES[:count]) == expected
        # once more, from the caches
        assert both.vllm(question, PICTURES[:count], BOXES[:count]) == expected


def test_boxes_matter_on_a_cached_picture(both: Both) -> None:
    found = []
    for boxes in (None, BOXES[0], BOXES[2], None):
        for name in (None, "my-picture"):
            prompt = {} if name is None else {"multi_modal_uuids": {"image": [name]}}
            answer = both.vllm("what", PICTURES[:1], [boxes], **prompt)
            assert answer == both.transformers("what", PICTURES[:1], [boxes])
            found.append(tuple(answer))
    assert len(set(found)) == (1 if not both.processor.with_objects else 3)


def test_boxes_as_an_option(both: Both) -> None:
    prompt = {
        "prompt": both.text("what", 2),
        "multi_modal_data": {"image": PICTURES[:2]},
        "mm_processor_kwargs": {"boxes": BOXES[:2]},
    }
    answer = both.llm.generate([prompt], both.sampling, use_tqdm=False)[0].outputs[0].token_ids
    assert list(answer) == both.transformers("what", PICTURES[:2], BOXES[:2])


def test_prepared_prompts_of_evaluation(both: Both) -> None:
    assistant = load_assistant(both.folder)
    found = [as_picture_boxes(boxes) for boxes in BOXES[:2]]
    prompt = assistant.prepare([Turn("<image>\n<image> what")], PICTURES[:2], found)
    batch = both.processor.collate([prompt])
    output = both.model.generate(**batch, max_new_tokens=TOKENS, do_sample=False, eos_token_id=None)
    made = token_prompt(prompt, both.processor.image_token_id)
    answer = both.llm.generate([made], both.sampling, use_tqdm=False)[0].outputs[0].token_ids
    assert list(answer) == output[0, batch["input_ids"].shape[1] :].tolist()


class TestVideos:
    """Frames of videos with their boxes, beside a picture, in every way of asking."""

    @pytest.fixture
    def video(self, tmp_path: Path) -> bytes:
        return write_clip(tmp_path / "a.mp4", count=16, size=(40, 30)).read_bytes()

    def asked(self, both: Both, video: bytes) -> tuple[list[dict[str, Any]], list[int]]:
        """A question about a picture and a video whose frames have boxes, and transformers' answer."""
        boxes = [None, BOXES[0], *[None] * 5, BOXES[2]]
        parts = [{"type": "image", "image": PICTURES[0]}, {"type": "video", "video": video, "boxes": boxes}]
        messages = [{"role": "user", "content": [*parts, {"type": "text", "text": "Is it red"}]}]
        batch = both.processor.apply_chat_template(messages, tokenize=True, return_dict=True)
        output = both.model.generate(**batch, max_new_tokens=TOKENS, do_sample=False, eos_token_id=None)
        return messages, output[0, batch["input_ids"].shape[1] :].tolist()

    def test_beside_the_prompt(self, both: Both, video: bytes) -> None:
        messages, expected = self.asked(both, video)
        boxed = {"video": video, "boxes": messages[0]["content"][1]["boxes"]}
        prompt = {"prompt": str(both.processor.apply_chat_template(messages))}
        for name in (None, "clip"):
            more = {} if name is None else {"multi_modal_uuids": {"image": [None], "video": [name]}}
            given = {**prompt, "multi_modal_data": {"image": PICTURES[:1], "video": [boxed]}, **more}
            for _ in range(2):
                answer = both.llm.generate([given], both.sampling, use_tqdm=False)[0].outputs[0].token_ids
                assert list(answer) == expected
        frames = read_frames(io.BytesIO(video))
        boxed["video"] = list(frames.pictures)
        given = {**prompt, "multi_modal_data": {"image": PICTURES[:1], "video": boxed}}
        assert list(both.llm.generate([given], both.sampling, use_tqdm=False)[0].outputs[0].token_ids) == expected

    def test_in_a_url(self, both: Both, video: bytes) -> None:
        messages, expected = self.asked(both, video)
        picture = io.BytesIO()
        PICTURES[0].save(picture, "PNG")
        found = [as_picture_boxes(boxes) for boxes in messages[0]["content"][1]["boxes"]]
        shown = read_frames(io.BytesIO(video)).with_boxes(found)
        urls = [
            "data:image/png;base64," + base64.b64encode(picture.getvalue()).decode(),
            with_said("data:video/mp4;base64," + base64.b64encode(video).decode(), shown),
        ]
        parts = [
            {"type": "image_url", "image_url": {"url": urls[0]}},
            {"type": "video_url", "video_url": {"url": urls[1]}},
            messages[0]["content"][2],
        ]
        answer = both.llm.chat([{"role": "user", "content": parts}], both.sampling, use_tqdm=False)
        assert list(answer[0].outputs[0].token_ids) == expected

    def test_prepared_prompts_of_evaluation(self, both: Both, video: bytes) -> None:
        assistant = load_assistant(both.folder)
        turn = Turn((Place.PICTURE, "\n", Place.VIDEO, "\nwhat"))
        prompt = assistant.prepare([turn], PICTURES[:1], videos=[read_frames(io.BytesIO(video))])
        batch = both.processor.collate([prompt])
        output = both.model.generate(**batch, max_new_tokens=TOKENS, do_sample=False, eos_token_id=None)
        made = token_prompt(prompt, both.processor.image_token_id)
        answer = both.llm.generate([made], both.sampling, use_tqdm=False)[0].outputs[0].token_ids
        assert list(answer) == output[0, batch["input_ids"].shape[1] :].tolist()

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            ("/etc/passwd", "a video is a str"),
            (b"no video", "is no MP4"),
            ({"video": PICTURES[:2], "boxes": [None]}, "1 lists of boxes for 2 frames"),
        ],
    )
    def test_refused_in_one_sentence(self, both: Both, given: Any, message: str) -> None:
        asked = [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "what"}]}]
        prompt = {"prompt": str(both.processor.apply_chat_template(asked)), "multi_modal_data": {"video": given}}
        with pytest.raises(Exception, match=message):
            both.llm.generate([prompt], both.sampling, use_tqdm=False)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ({"mm_processor_kwargs": {"boxes": [None, None, None]}}, "3 lists of boxes for 2 pictures"),
        ({"mm_processor_kwargs": {"crops": 3}}, "mm_processor_kwargs has 'crops'"),
        ({"multi_modal_data": {"image": [{"image": PICTURES[0], "boxes": [[50, 50, 60, 60]]}] * 2}}, "lie outside"),
        ({"multi_modal_data": {"image": ["/etc/passwd"] * 2}}, "a picture is a str"),
        ({"prompt": "<image> <image> " + "what " * 300}, "maximum context length|longer than the maximum"),
    ],
)
def test_refused_in_one_sentence(both: Both, prompt: dict[str, Any], message: str) -> None:
    values = {"prompt": both.text("what", 2), "multi_modal_data": {"image": PICTURES[:2]}, **prompt}
    # vLLM's own errors are no ValueError
    with pytest.raises(Exception, match=message):
        both.llm.generate([values], both.sampling, use_tqdm=False)


def test_a_folder_of_another_version(tmp_path: Path) -> None:
    from mg_llava.serving.vllm.defaults import FolderDefaults

    config = MGLLaVAConfig.from_pretrained(export(tmp_path, "llama"))
    config.format_version = 1
    with pytest.raises(XTunerError, match="format version 1, expected"):
        FolderDefaults.verify_and_update_model_config(SimpleNamespace(hf_config=config, model="folder"))
