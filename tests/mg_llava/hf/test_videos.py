"""Videos through the processor and the exported model: the ids and answers of training."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from mg_llava.hf import MGLLaVAProcessor
from mg_llava.videos import FrameSampling, read_frames
from tests.clips import frame_picture, write_clip
from tests.mg_llava.hf.conftest import Exported
from xtuner.data.text.templates import Place, Turn
from xtuner.errors import XTunerError

ASK = "<video>\nwhat"


def messages(**video: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"type": "video", **video}, {"type": "text", "text": "what"}]}]


class TestProcessor:
    def test_text_and_messages_are_alike(self, processor: MGLLaVAProcessor, tmp_path: Path) -> None:
        path = str(write_clip(tmp_path / "a.mp4", count=16))
        batch = processor.apply_chat_template(messages(video=path), tokenize=True, return_dict=True)
        rendered = processor.prompt_template.input.format(input=ASK)
        again = processor(text=rendered, videos=path)
        assert torch.equal(batch["input_ids"], again["input_ids"])
        assert torch.equal(batch["pixel_values"], again["pixel_values"]) and len(batch["pixel_values"]) == 8

    def test_every_kind_of_source(self, processor: MGLLaVAProcessor, tmp_path: Path) -> None:
        path = write_clip(tmp_path / "a.mp4", count=16)
        content = path.read_bytes()
        url = "data:video/mp4;base64," + base64.b64encode(content).decode()
        pixels = [
            processor(text=ASK, videos=source)["pixel_values"]
            for source in (path, str(path), f"file://{path}", content, url, read_frames(path), [read_frames(path)])
        ]
        assert all(torch.equal(one, pixels[0]) for one in pixels)
        frames = [Image.fromarray(frame_picture(number)) for number in range(3)]
        assert len(processor(text=ASK, videos=frames)["pixel_values"]) == 3

    def test_pictures_and_videos(self, processor: MGLLaVAProcessor, tmp_path: Path) -> None:
        path = write_clip(tmp_path / "a.mp4", count=2)
        picture = Image.new("RGB", (40, 30), (255, 255, 255))
        texts = ["<video> what <image>", "<image> what"]
        batch = processor(images=[picture, picture], text=texts, videos=[path], boxes=[None, [[0, 0, 9, 9]]])
        means = batch["pixel_values"].float().mean(dim=(1, 2, 3))
        assert (means[[0, 1]] < 150).all() and (means[[2, 3]] > 150).all()
        assert batch["box_counts"].tolist() == [0, 0, 0, 1]

    def test_boxes_of_frames(self, processor: MGLLaVAProcessor, tmp_path: Path) -> None:
        path = write_clip(tmp_path / "a.mp4", count=3)
        box = [[2, 2, 20, 20]]
        batch = processor(text=ASK, videos=path, video_boxes=[[None, box, None]])
        assert batch["box_counts"].tolist() == [0, 1, 0]
        # the frames stand at 0, 0.125 and 0.25 s; what is far from all of them is left aside
        frames = [{"time": time, "boxes": box, "labels": ["a"], "scores": [1]} for time in (0.13, 9)]
        again = processor(text=ASK, videos=path, video_boxes=[{"frames": frames}])
        assert again["box_counts"].tolist() == [1, 1, 1]
        own = processor.apply_chat_template(
            messages(video=str(path), boxes=[None, box, None]), tokenize=True, return_dict=True
        )
        assert own["box_counts"].tolist() == [0, 1, 0]

    @pytest.mark.parametrize(
        ("arguments", "found"),
        [
            ({"text": "what"}, "the texts have 0 <video> but there are 1 video"),
            ({"text": "<video><video>"}, "the texts have 2 <video>"),
            ({"video_boxes": [None, None]}, "video_boxes has 2 entries for 1 videos"),
            ({"video_boxes": [[None]]}, "1 lists of boxes for 8 frames"),
            ({"video_boxes": [{"frames": [{"boxes": []}]}]}, "has neither 'time' nor 'index'"),
            ({"videos": 3}, "a video is a int: expected a path"),
            ({"videos": "none.mp4"}, "video 'none.mp4' does not exist"),
        ],
    )
    def test_refused(self, processor: MGLLaVAProcessor, tmp_path: Path, arguments: dict[str, Any], found: str) -> None:
        path = write_clip(tmp_path / "a.mp4", count=16)
        with pytest.raises(XTunerError, match=found):
            processor(**{"text": ASK, "videos": path, **arguments})

    def test_the_rule_is_saved(self, exported: Exported, processor: MGLLaVAProcessor, tmp_path: Path) -> None:
        processor = MGLLaVAProcessor.from_pretrained(exported.folder)
        processor.frame_sampling = FrameSampling(num_frames=4)
        processor.save_pretrained(exported.folder.parent / "again")
        values, _ = MGLLaVAProcessor.get_processor_dict(exported.folder.parent / "again")
        assert FrameSampling(**values["frame_sampling"]) == FrameSampling(num_frames=4)
        assert len(processor(text=ASK, videos=write_clip(tmp_path / "a.mp4"))["pixel_values"]) == 4


def test_the_exported_model_answers_alike(
    exported: Exported, model: Any, processor: MGLLaVAProcessor, tmp_path: Path
) -> None:
    path = write_clip(tmp_path / "a.mp4", count=16, size=(40, 30))
    prompt = exported.assistant.prepare([Turn((Place.VIDEO, "\nwhat"))], videos=[read_frames(path)])
    expected = exported.assistant.generate([prompt], 6)[0]
    batch = processor.apply_chat_template(messages(video=str(path)), tokenize=True, return_dict=True)
    output = model.generate(**batch, max_new_tokens=6)
    assert exported.assistant.decode(output[0, batch["input_ids"].shape[1] :].tolist()) == expected
