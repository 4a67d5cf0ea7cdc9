"""Questions about videos: frames in the places of pictures, the same answers as for pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mg_llava.inference.chat import ChatSession
from mg_llava.inference.messages import read_messages
from mg_llava.videos import FrameSampling, read_frames
from tests.clips import frame_picture, number_of, write_clip
from tests.tiny_assistant import randomize, tiny_assistant
from xtuner.constants import IMAGE_TOKEN_INDEX
from xtuner.data.text.templates import Place, Turn
from xtuner.errors import XTunerError

ASK = Turn((Place.VIDEO, "\nwhat"))


@pytest.fixture(scope="module")
def assistant(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return randomize(tiny_assistant(tmp_path_factory.mktemp("parts"))[0])


class TestAsking:
    def test_a_video_is_its_frames(self, assistant: Any, tmp_path: Path) -> None:
        video = read_frames(write_clip(tmp_path / "a.mp4", count=16))
        prompt = assistant.prepare([ASK], videos=[video])
        assert len(prompt.pixel_values) == 8 and prompt.input_ids.count(IMAGE_TOKEN_INDEX) == 8
        pictures = assistant.prepare([Turn("<image>" * 8 + "\nwhat")], video.pictures)
        assert prompt.input_ids == pictures.input_ids
        assert torch.equal(prompt.pixel_values, pictures.pixel_values)
        assert assistant.generate([prompt], 5) == assistant.generate([pictures], 5)

    def test_one_frame_is_the_picture(self, assistant: Any, tmp_path: Path) -> None:
        video = read_frames(write_clip(tmp_path / "a.mkv", count=1, codec="ffv1", pixels="bgr0"))
        one = assistant.prepare([ASK], videos=[video])
        other = assistant.prepare([Turn("<image>\nwhat")], [Image.fromarray(frame_picture(0))])
        assert one.input_ids == other.input_ids and torch.equal(one.pixel_values, other.pixel_values)

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
        from mg_llava.boxes.selection import PictureBoxes

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
        assert conversation.turns[0].input == "<image>\n<image><image>\nwhat"
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

    def test_a_part_of_few_frames_is_told(self, assistant: Any, tmp_path: Path) -> None:
        session = ChatSession(assistant)
        assert session.add_video(f"{write_clip(tmp_path / 'a.mp4', count=16)}#t=0,0.4") == 4
        assert "has only 4 frames to show" in session.notes[0]
        with pytest.raises(XTunerError, match=r"no\.mp4"):
            session.add_video(str(tmp_path / "no.mp4"))
