"""Questions about videos: frames in the places of pictures, the same answers as for pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mg_llava.boxes.selection import PictureBoxes
from mg_llava.inference.assistant import collate_prompts
from mg_llava.inference.chat import ChatSession
from mg_llava.inference.messages import read_messages
from mg_llava.inference.prompts import Prompt
from mg_llava.videos import FrameSampling, read_frames
from tests.clips import frame_picture, number_of, write_clip
from tests.tiny_assistant import randomize, tiny_assistant
from xtuner.constants import FRAME_TOKEN_INDEX, IMAGE_TOKEN_INDEX
from xtuner.data.text.templates import Place, Turn
from xtuner.errors import XTunerError

ASK = Turn((Place.VIDEO, "\nwhat"))


def as_pictures(prompt: Prompt) -> list[int]:
    """The ids of a prompt that has the frames as pictures."""
    return [IMAGE_TOKEN_INDEX if one == FRAME_TOKEN_INDEX else one for one in prompt.input_ids]


@pytest.fixture(scope="module")
def assistant(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return randomize(tiny_assistant(tmp_path_factory.mktemp("parts"))[0])


class TestAsking:
    def test_a_video_is_its_frames(self, assistant: Any, tmp_path: Path) -> None:
        video = read_frames(write_clip(tmp_path / "a.mp4", count=16))
        prompt = assistant.prepare([ASK], videos=[video])
        assert len(prompt.pixel_values) == 8 and prompt.input_ids.count(FRAME_TOKEN_INDEX) == 8
        pictures = assistant.prepare([Turn("<image>" * 8 + "\nwhat")], video.pictures)
        assert as_pictures(prompt) == pictures.input_ids
        assert torch.equal(prompt.pixel_values, pictures.pixel_values)
        assert assistant.generate([prompt], 5) == assistant.generate([pictures], 5)

    def test_one_frame_is_the_picture(self, assistant: Any, tmp_path: Path) -> None:
        video = read_frames(write_clip(tmp_path / "a.mkv", count=1, codec="ffv1", pixels="bgr0"))
        one = assistant.prepare([ASK], videos=[video])
        other = assistant.prepare([Turn("<image>\nwhat")], [Image.fromarray(frame_picture(0))])
        assert as_pictures(one) == other.input_ids and torch.equal(one.pixel_values, other.pixel_values)

    def test_a_baseline_without_high_resolution(self, tmp_path: Path) -> None:
        low, _ = tiny_assistant(tmp_path / "low", low_res_only=True)
        video = read_frames(write_clip(tmp_path / "a.mp4", count=16))
        found = PictureBoxes(np.array([[2, 2, 20, 20]], np.float32), ("dog",), np.ones(1, np.float32))
        prompt = low.prepare([ASK], videos=[video.with_boxes([found] * 8)])
        pictures = low.prepare([Turn("<image>" * 8 + "\nwhat")], video.pictures)
        # boxes become no tokens there
        assert low.room(prompt) == low.room(pictures)
        assert low.generate([prompt], 5) == low.generate([pictures], 5)

    def test_a_frame_has_the_logits_of_its_picture(self, assistant: Any, tmp_path: Path) -> None:
        video = read_frames(write_clip(tmp_path / "a.mkv", count=1, codec="ffv1", pixels="bgr0"))
        one = assistant.prepare([ASK], videos=[video])
        other = assistant.prepare([Turn("<image>\nwhat")], [Image.fromarray(frame_picture(0))])
        model = assistant.model
        with torch.no_grad():
            both = [model(**model.data_preprocessor(collate_prompts([p], 0)), mode="logits") for p in (one, other)]
        assert torch.equal(*both)

    def test_in_a_batch_as_alone(self, assistant: Any, tmp_path: Path) -> None:
        video = read_frames(write_clip(tmp_path / "a.mp4", count=16))
        prompts = [
            assistant.prepare([ASK], videos=[video]),
            assistant.prepare([Turn("Is it")]),
            assistant.prepare([Turn("<image>\nwhat")], [video.pictures[3]]),
        ]
        together = assistant.generate(prompts, 6)
        assert together == [assistant.generate([prompt], 6)[0] for prompt in prompts]

    def test_boxes_of_frames(self, assistant: Any, tmp_path: Path) -> None:
        video = read_frames(write_clip(tmp_path / "a.mp4", count=4))
        found = PictureBoxes(np.array([[2, 2, 20, 20]], np.float32), ("dog",), np.ones(1, np.float32))
        boxed = video.with_boxes([None, found, None, found])
        prompt = assistant.prepare([ASK], videos=[boxed])
        assert [len(boxes) for boxes in prompt.boxes] == [0, 1, 0, 1]
        with pytest.raises(XTunerError, match="1 lists of boxes for 4 frames"):
            video.with_boxes([None])

    def test_shuffled(self, tmp_path: Path) -> None:
        video = read_frames(write_clip(tmp_path / "a.mp4", count=4)).shuffled([2, 0, 3, 1])
        assert [number_of(picture) for picture in video.pictures] == [2, 0, 3, 1]
        assert [place.number for place in video.places] == [2, 0, 3, 1]

    @pytest.mark.parametrize("count", [0, 2])
    def test_other_numbers(self, assistant: Any, tmp_path: Path, count: int) -> None:
        video = read_frames(write_clip(tmp_path / "a.mp4", count=4))
        with pytest.raises(XTunerError, match=f"1 place of videos but {count} videos"):
            assistant.prepare([ASK], videos=[video] * count)


class TestMessages:
    def test_parts(self, tmp_path: Path) -> None:
        path = write_clip(tmp_path / "a.mp4", count=16)
        content = [{"type": "image"}, {"type": "video", "video": str(path)}, {"type": "text", "text": "what"}]
        conversation = read_messages(
            [{"role": "user", "content": content}],
            lambda _: (Image.new("RGB", (8, 8)), None),
            open_video=lambda part: read_frames(part["video"], FrameSampling(num_frames=2)),
        )
        assert [picture.size for picture in conversation.pictures] == [(8, 8), (32, 24), (32, 24)]
        assert conversation.turns[0].parts == (Place.PICTURE, "\n", Place.FRAME, Place.FRAME, "\nwhat")
        assert conversation.found == [None] * 3

    def test_refused_where_nobody_reads_them(self) -> None:
        content = [{"type": "video", "video": "a.mp4"}]
        with pytest.raises(XTunerError, match="a part of type 'video'"):
            read_messages([{"role": "user", "content": content}], lambda _: (Image.new("RGB", (8, 8)), None))


class TestChat:
    def test_a_video_a_picture_and_an_edited_question(self, assistant: Any, tmp_path: Path) -> None:
        """The same ids as one question with a video and a picture; asked again, the frames stay together."""
        video = write_clip(tmp_path / "a.mp4", count=16)
        picture = tmp_path / "a.png"
        Image.fromarray(frame_picture(3)).save(picture)
        session = ChatSession(assistant)
        assert session.add_video(str(video), 4) == 4
        session.add_picture(str(picture))
        answer = session.ask("what", 5)
        shown = read_frames(str(video), FrameSampling(num_frames=4))
        turn = Turn((Place.VIDEO, "\n", Place.PICTURE, "\nwhat"))
        prompt = assistant.prepare([turn], [Image.open(picture)], videos=[shown])
        assert answer == assistant.generate([prompt], 5)[0]
        asked = session.turns[0].parts
        session.ask_again(text="Is it red", max_new_tokens=2)
        assert session.turns[0].parts[:-1] == asked[:-1] and len(session.describe()["images"]) == 5
        with pytest.raises(XTunerError, match="a chat about a video cannot be saved"):
            session.save(tmp_path / "chat.json")

    def test_explain_draws_the_frames_in_a_row(self, assistant: Any, tmp_path: Path) -> None:
        found = PictureBoxes(np.array([[2, 2, 20, 20]], np.float32), ("dog",), np.ones(1, np.float32))
        session = ChatSession(assistant, detector=lambda pictures: [found] * len(pictures))
        session.add_video(str(write_clip(tmp_path / "a.mp4", count=16)), 3)
        session.draw(tmp_path / "before.png")
        answer = session.ask("Is it red", 3)
        influence = session.explain("Is it red", answer, ())
        rows = session.tell_influence(influence)
        assert [row["frame"].rpartition(", ")[2] for row in rows] == ["0.00 s", "0.88 s", "1.88 s"] * 2
        assert [row.get("label") for row in rows] == [None] * 3 + ["dog"] * 3
        session.draw(tmp_path / "why.png", influence)
        sizes = [Image.open(tmp_path / name).size for name in ("before.png", "why.png")]
        # 32 x 24 pixels at a height of 320, and the words below
        assert sizes == [(3 * 427, 344)] * 2

    def test_a_part_of_few_frames_is_told(self, assistant: Any, tmp_path: Path) -> None:
        session = ChatSession(assistant)
        assert session.add_video(f"{write_clip(tmp_path / 'a.mp4', count=16)}#t=0,0.4") == 4
        assert "has only 4 frames to show" in session.notes[0]
        with pytest.raises(XTunerError, match=r"no\.mp4"):
            session.add_video(str(tmp_path / "no.mp4"))
