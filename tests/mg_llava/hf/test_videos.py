"""Videos through the processor and the exported model: the ids and answers of training."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest
import torch
from jinja2.exceptions import TemplateError
from PIL import Image

from mg_llava.hf import MGLLaVAForConditionalGeneration, MGLLaVAProcessor, load_assistant, save_pretrained
from mg_llava.inference.assistant import collate_prompts
from mg_llava.inference.prompts import as_picture_boxes
from mg_llava.pictures.pooling import FramePooling, ImageTokens
from mg_llava.videos import FrameSampling, read_frames
from tests.clips import frame_picture, write_clip
from tests.mg_llava.hf.conftest import Exported
from tests.tiny_assistant import randomize, tiny_assistant
from xtuner.data.text.rendered import VIDEO_PLACE
from xtuner.data.text.templates import Place, Turn
from xtuner.errors import XTunerError

ASK = "<video>\nwhat"


def messages(**video: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"type": "video", **video}, {"type": "text", "text": "what"}]}]


def expand(ids: list[int], processor: MGLLaVAProcessor, frames: int) -> list[int]:
    """What vLLM makes of the ids of a text."""
    places = {
        processor.image_token_id: processor.picture_ids(0),
        processor.video_place_id: processor.picture_ids(0, is_frame=True) * frames,
    }
    return [one for token in ids for one in places.get(token, [token])]


class TestProcessor:
    def test_text_and_messages_are_alike(self, processor: MGLLaVAProcessor, tmp_path: Path) -> None:
        path = str(write_clip(tmp_path / "a.mp4", count=16))
        batch = processor.apply_chat_template(messages(video=path), tokenize=True, return_dict=True)
        rendered = processor.prompt_template.input.format(input=ASK)
        again = processor(text=rendered, videos=path)
        assert torch.equal(batch["input_ids"], again["input_ids"])
        assert torch.equal(batch["pixel_values"], again["pixel_values"]) and len(batch["pixel_values"]) == 8

    def test_a_rendered_text_is_as_messages(self, processor: MGLLaVAProcessor, tmp_path: Path) -> None:
        """What servers render, with a private word in the place of a video, gives the ids of training."""
        path = str(write_clip(tmp_path / "a.mp4", count=16))
        picture = Image.new("RGB", (40, 30))
        alone = messages(video=path)
        text = {"type": "text", "text": "what <video> is it"}
        both = [
            {"type": "text", "text": "Is"},
            {"type": "video", "video": path},
            text,
            {"type": "image", "image": picture},
        ]
        talk = [*alone, {"role": "assistant", "content": "red"}, {"role": "user", "content": both}]
        for said, pictures, videos in ((alone, None, [path]), (talk, [picture], [path, path])):
            rendered = str(processor.apply_chat_template(said))
            batch = processor.apply_chat_template(said, tokenize=True, return_dict=True)
            again = processor(text=rendered, images=pictures, videos=videos) if "<video>" not in rendered else None
            ids = processor.text_ids(rendered)
            assert ids.count(processor.video_place_id) == len(videos)
            expanded = expand(ids, processor, 8)
            assert expanded == batch["input_ids"][0].tolist()
            assert again is None or torch.equal(again["input_ids"], batch["input_ids"])
        with pytest.raises(XTunerError, match="the text has a place of a video: give the video"):
            processor(text=str(processor.apply_chat_template(alone)))

    def test_nobody_writes_the_place_of_a_video(self, processor: MGLLaVAProcessor) -> None:
        with pytest.raises(TemplateError, match="holds"):
            processor.apply_chat_template([{"role": "user", "content": f"what {VIDEO_PLACE}"}])

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


class TestPooled:
    """Frames of fewer tokens: prompts, logits and answers are those of the training model."""

    @pytest.fixture(scope="class")
    def pooled(self, tmp_path_factory: pytest.TempPathFactory) -> Exported:
        root = tmp_path_factory.mktemp("pooled")
        assistant, node = tiny_assistant(root / "parts", frame_side=2)
        return Exported(save_pretrained(randomize(assistant), node, root / "hf", {"config": "tiny"}), assistant)

    @pytest.fixture
    def picture(self) -> Image.Image:
        return Image.fromarray(frame_picture(7, (40, 30)))

    def batch(self, pooled: Exported, picture: Image.Image, path: Path) -> tuple[Any, Any]:
        """A picture and a video of 8 frames with boxes, of the assistant and of the processor."""
        box = [[2, 2, 20, 20]]
        found = [None, as_picture_boxes(box), *[None] * 6]
        turn = Turn((Place.PICTURE, "\n", Place.VIDEO, "\nwhat"))
        video = read_frames(path).with_boxes(found)
        prompt = pooled.assistant.prepare([turn], [picture], videos=[video])
        processor = MGLLaVAProcessor.from_pretrained(pooled.folder)
        content = [{"type": "image", "image": picture}, {"type": "video", "video": str(path), "boxes": found}]
        asked = [{"role": "user", "content": [*content, {"type": "text", "text": "what"}]}]
        return prompt, processor.apply_chat_template(asked, tokenize=True, return_dict=True)

    def test_answers_and_logits(self, pooled: Exported, picture: Image.Image, tmp_path: Path) -> None:
        path = write_clip(tmp_path / "a.mp4", count=16, size=(40, 30))
        prompt, batch = self.batch(pooled, picture, path)
        vision = pooled.assistant.model.vision
        assert batch["is_frame"].tolist() == [False, *[True] * 8]
        # 4 tokens of the picture, 1 of each frame, 1 box
        assert batch["input_ids"].shape[1] == len(prompt.input_ids) - 9 + 4 + 8 + 1
        assert batch["input_ids"].shape[1] == prompt.num_tokens(vision.image_tokens)
        model = MGLLaVAForConditionalGeneration.from_pretrained(pooled.folder)
        assert model.core.vision.image_tokens == vision.image_tokens
        expected = pooled.assistant.generate([prompt], 6)[0]
        output = model.generate(**batch, max_new_tokens=6)
        assert pooled.assistant.decode(output[0, batch["input_ids"].shape[1] :].tolist()) == expected
        own = pooled.assistant.model
        prepared = own.data_preprocessor(collate_prompts([prompt], 0))
        with torch.no_grad():
            difference = (model(**batch).logits - own(**prepared, mode="logits")).abs().max()
        # the worst measured is 0: the same operations
        assert difference <= 1e-5

    def test_a_text_is_as_messages(self, pooled: Exported, picture: Image.Image, tmp_path: Path) -> None:
        path = write_clip(tmp_path / "a.mp4", count=16, size=(40, 30))
        processor = MGLLaVAProcessor.from_pretrained(pooled.folder)
        text = processor.prompt_template.input.format(input="<image>\n<video>\nwhat")
        again = processor(images=[picture], text=text, videos=[path])
        assert again["is_frame"].tolist() == [False, *[True] * 8]
        batches = processor(images=[picture] * 2, text=["<image> what", "<video> what <image>"], videos=[path])
        assert batches["is_frame"].tolist() == [False, *[True] * 8, False]

    def test_it_is_saved(self, pooled: Exported, tmp_path: Path) -> None:
        again = load_assistant(pooled.folder)
        assert again.model.vision.frame_pooling == again.image_processor.frame_pooling == FramePooling(2)
        processor = MGLLaVAProcessor.from_pretrained(pooled.folder)
        assert processor.image_tokens == ImageTokens(4, 1) and "is_frame" in processor.model_input_names
        processor.save_pretrained(tmp_path / "again")
        # nothing but numbers is read back
        values, _ = MGLLaVAProcessor.get_processor_dict(tmp_path / "again")
        assert values["picture"]["frame_pooling"] == {"side": 2} and values["num_frame_tokens"] == 1

    def test_is_frame_of_another_number(self, pooled: Exported, picture: Image.Image, tmp_path: Path) -> None:
        _, batch = self.batch(pooled, picture, write_clip(tmp_path / "a.mp4", count=16, size=(40, 30)))
        model = MGLLaVAForConditionalGeneration.from_pretrained(pooled.folder)
        with pytest.raises(XTunerError, match="9 pictures, .* and 1 is_frame"):
            model(**{**batch, "is_frame": batch["is_frame"][:1]})
        with pytest.raises(XTunerError, match="the ids hold"):
            model(**{key: value for key, value in batch.items() if key != "is_frame"})
