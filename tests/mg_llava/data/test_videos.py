"""Records with videos: frames among the pictures, exact lengths, mixtures, faults named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mg_llava.data.dataset import MGLLaVADataset
from mg_llava.pictures.pooling import FramePooling, ImageTokens
from mg_llava.videos.sampling import FrameSampling
from tests.clips import RED_STEP, number_of, write_clip, write_frames
from tests.mg_llava.data.test_dataset import IMAGE_TOKENS, SIZE, talk, world
from tests.tiny_assistant import randomize, save_picture, tiny_assistant
from xtuner.constants import FRAME_TOKEN_INDEX
from xtuner.errors import ProblemsError, XTunerError

__all__ = ["world"]

ASK = "<video>\nWhat is this"


def shown(sample: dict[str, Any]) -> list[int]:
    """The numbers of the frames that a sample shows."""
    middle = sample["pixel_values"][:, 0, SIZE // 2, SIZE // 2]
    return [round(float(red) / RED_STEP) for red in middle]


@pytest.fixture
def clips(world: Any, tmp_path: Path) -> Any:
    """`world` with videos: of 16 frames and of 3, and a folder of 12."""
    write_clip(tmp_path / "v" / "long.mp4", count=16)
    write_clip(tmp_path / "v" / "short.mkv", count=3)
    write_frames(tmp_path / "v" / "frames", count=12)

    def make(records: Any, **changes: Any) -> MGLLaVADataset:
        return MGLLaVADataset(**world(records, **{"box_json_path": None, **changes}))

    return make


class TestFrames:
    def test_frames_stand_one_behind_the_other(self, clips: Any) -> None:
        dataset = clips([{"id": "a", "video": "v/long.mp4", "conversations": talk(ASK)}])
        sample = dataset[0]
        assert shown(sample) == [0, 2, 4, 6, 8, 10, 12, 15]
        ids = sample["input_ids"].tolist()
        first = ids.index(FRAME_TOKEN_INDEX)
        assert ids[first : first + 9].count(FRAME_TOKEN_INDEX) == 8 and ids[first + 8] != FRAME_TOKEN_INDEX
        assert dataset.lengths.tolist() == [len(ids) + 8 * (IMAGE_TOKENS - 1)]
        assert dataset.num_images.tolist() == [8]

    def test_a_short_video_shows_each_frame_once_unless_asked(self, clips: Any) -> None:
        record = {"id": "a", "video": "v/short.mkv", "conversations": talk(ASK)}
        dataset = clips([record])
        assert shown(dataset[0]) == [0, 1, 2]
        assert dataset.report["records with a video of fewer frames than asked for (each shown once)"] == 1
        again = clips([record], frame_sampling=FrameSampling(num_frames=8, repeat=True))
        assert shown(again[0]) == [0, 0, 0, 0, 1, 1, 1, 2]

    def test_a_rule_and_a_range(self, clips: Any) -> None:
        rule = {"type": FrameSampling, "num_frames": 4}
        records = [
            {"id": "a", "video": "v/long.mp4", "conversations": talk(ASK)},
            {"id": "b", "video": "v/long.mp4#t=1,1.5", "conversations": talk(ASK)},
            {"id": "c", "video": "v/frames", "conversations": talk(ASK)},
        ]
        dataset = clips(records, frame_sampling=rule)
        assert [shown(dataset[i]) for i in range(3)] == [[0, 5, 10, 15], [8, 9, 10, 11], [0, 3, 7, 11]]

    def test_a_picture_first(self, clips: Any) -> None:
        alone = {"id": "a", "video": "v/short.mkv", "conversations": talk("What is this\n<video>")}
        first = {"id": "a", "video": "v/short.mkv", "conversations": talk(ASK)}
        assert clips([alone])[0]["input_ids"].tolist() == clips([first])[0]["input_ids"].tolist()

    def test_formats_say_the_same(self, clips: Any) -> None:
        question = {"role": "user", "content": [{"type": "video_url", "video_url": {"url": "v/long.mp4"}}]}
        question["content"].append({"type": "text", "text": "What is this"})
        records = [
            {"id": "llava", "video": "v/long.mp4", "conversations": talk(ASK)},
            {"id": "list", "videos": ["v/long.mp4"], "conversations": talk(ASK)},
            # LLaVA-Video's own files write the place of a video as that of a picture
            {"id": "next", "video": "v/long.mp4", "conversations": talk("<image>\nWhat is this")},
            {"id": "openai", "messages": [question, {"role": "assistant", "content": "A dog."}]},
        ]
        dataset = clips(records)
        samples = [dataset[number] for number in range(4)]
        assert all(torch.equal(sample["input_ids"], samples[0]["input_ids"]) for sample in samples)
        assert all(torch.equal(sample["pixel_values"], samples[0]["pixel_values"]) for sample in samples)
        assert dataset.report["records with <image> read as the place of a video"] == 1

    def test_pictures_and_videos_in_one_conversation(self, clips: Any) -> None:
        record = {"id": "a", "image": "a.png", "video": ["v/short.mkv", "v/long.mp4"]}
        record["conversations"] = talk("<video> What <image> is this <video>")
        sample = clips([record], frame_sampling=FrameSampling(num_frames=2))[0]
        middle = sample["pixel_values"][:, 0, SIZE // 2, SIZE // 2].tolist()
        assert [round(red / RED_STEP) for red in middle[:2] + middle[3:]] == [0, 2, 0, 15]
        assert middle[2] == len("a.png")

    def test_videos_in_archives(self, clips: Any, tmp_path: Path) -> None:
        import zipfile

        with zipfile.ZipFile(tmp_path / "v.zip", "w") as archive:
            archive.write(tmp_path / "v" / "long.mp4", "v/long.mp4")
        record = {"id": "a", "video": "v/long.mp4", "conversations": talk(ASK)}
        dataset = clips([record], image_folder=str(tmp_path / "v.zip"))
        assert shown(dataset[0]) == [0, 2, 4, 6, 8, 10, 12, 15]

    def test_a_folder_prepared_by_another_rule_is_refused(self, clips: Any) -> None:
        record = {"id": "a", "video": "v/long.mp4", "conversations": talk(ASK)}
        part = clips([record]).samples.part(0)
        # folders from before there were videos stay what they are
        assert "frame_sampling" not in part.settings["samples"]
        with pytest.raises(XTunerError, match="frame_sampling.num_frames: prepared with None, now 2"):
            rule = FrameSampling(num_frames=2)
            clips([record], frame_sampling=rule, offline_processed_text_folder=str(part.folder))

    def test_describe(self, clips: Any) -> None:
        text = clips([{"id": "a", "video": "v/short.mkv", "conversations": talk(ASK)}]).describe(0)
        assert "frame 1 (0.12 s) of 'v/short.mkv' (32x24): 4 image tokens" in text


class TestFaults:
    @pytest.mark.parametrize(
        ("change", "found"),
        [
            ({"video": ["v/long.mp4"] * 2}, "wrong number of videos: .* 1 <video> .* but 'video' lists 2"),
            (
                {"conversations": talk("<video><video>")},
                "2 <video> in the answered .*, but 'video' lists 1",
            ),
            ({"video": None}, "1 <video> in the answered human messages, but 'video' lists 0"),
            ({"video": 3}, "bad video path.*'video' = 3, expected a path"),
            ({"video": "v/long.mp4#t=2,1"}, "bad video path.*the range from 2.0 to 1.0 s is empty"),
            ({"video": "v/long.mp4#t=-1"}, "start=-1.0: expected seconds"),
            ({"video": "v/long.mp4#t=x"}, "the range is 'x', expected seconds"),
        ],
    )
    def test_records(self, clips: Any, change: dict[str, Any], found: str) -> None:
        record = {"id": "a", "video": "v/long.mp4", "conversations": talk(ASK)}
        with pytest.raises(ProblemsError, match=found):
            clips([{**record, **change}])

    def test_a_missing_video_ends_the_start(self, clips: Any) -> None:
        record = {"id": "a", "video": "v/none.mp4", "conversations": talk(ASK)}
        with pytest.raises(ProblemsError, match="missing video: 'v/none.mp4' .sample 'a'. does not exist"):
            clips([record])

    def test_an_unreadable_video_is_a_bad_sample(self, clips: Any, tmp_path: Path) -> None:
        (tmp_path / "v" / "bad.mp4").write_bytes(b"no video")
        records = [
            {"id": "bad", "video": "v/bad.mp4", "conversations": talk(ASK)},
            {"id": "good", "video": "v/short.mkv", "conversations": talk(ASK)},
        ]
        with pytest.raises(XTunerError, match=r"sample 'bad'.*bad.mp4' is no MP4, .*it is no file of these"):
            clips(records)[0]
        dataset = clips(records, on_bad_sample="skip")
        sample = dataset[0]
        assert sample["sample_id"] == "good" and sample["bad_samples"][0].kind == "video does not decode"
        # mended behind the back of what was prepared: not one frame as if that were all
        write_clip(tmp_path / "v" / "bad.mp4", count=16)
        with pytest.raises(XTunerError, match="could not be read when the data were prepared, and can be now"):
            clips(records)[0]

    def test_a_range_without_frames_is_left_out(self, clips: Any) -> None:
        records = [
            {"id": "bad", "video": "v/short.mkv#t=9", "conversations": talk(ASK)},
            {"id": "good", "video": "v/short.mkv", "conversations": talk(ASK)},
        ]
        dataset = clips(records)
        assert [dataset[0]["sample_id"]] == ["good"] and len(dataset) == 1
        assert dataset.report["dropped: no frames in the range"] == 1

    def test_check_names_them(self, clips: Any, world: Any, tmp_path: Path) -> None:
        (tmp_path / "v" / "bad.mp4").write_bytes(b"")
        videos = ("v/bad.mp4", "v/short.mkv", "v/short.mkv#t=9", "v/none.mp4", "v/long.mp4", "v/long.mp4#t=1")
        records = [{"id": name, "video": name, "conversations": talk(ASK)} for name in videos]
        node = world(records, box_json_path=None)
        (tmp_path / "data.json").write_text(json.dumps(records))
        found = MGLLaVADataset.check_records(node)
        assert len(found.problems) == 2
        assert any("bad.mp4' is no MP4" in problem and "(sample 'v/bad.mp4')" in problem for problem in found.problems)
        assert any("none.mp4' does not exist" in problem for problem in found.problems)
        notes = "\n".join(found.notes)
        assert "no frames in the range: record 'v/short.mkv#t=9' (number 3)" in notes
        assert "a video of fewer frames than asked for (each shown once): record 'v/short.mkv'" in notes


class TestTraining:
    """A tiny model on pictures, videos and text: grouped and packed batches."""

    @pytest.fixture(scope="class")
    def parts(self, tmp_path_factory: pytest.TempPathFactory) -> Any:
        folder = tmp_path_factory.mktemp("parts")
        assistant, _ = tiny_assistant(folder)
        randomize(assistant)
        save_picture(folder / "a.png")
        write_clip(folder / "v.mp4", count=16, size=(40, 30))
        write_clip(folder / "one.mkv", count=1, codec="ffv1", pixels="bgr0", size=(40, 30))
        from PIL import Image

        from tests.clips import frame_picture

        Image.fromarray(frame_picture(0, (40, 30))).save(folder / "one.png")
        records = [
            {"id": "video", "video": "v.mp4", "conversations": talk("<video>\nwhat", "red dog")},
            {"id": "picture", "image": "a.png", "conversations": talk("<image>\nwhat", "blue")},
            {"id": "text", "conversations": talk("Is it", "yes")},
            {"id": "short", "video": "v.mp4#t=0,0.3", "conversations": talk("<video>\nIs it", "no")},
            {"id": "one frame", "video": "one.mkv", "conversations": talk("<video>\nwhat", "cat")},
            {"id": "one picture", "image": "one.png", "conversations": talk("<image>\nwhat", "cat")},
        ]
        (folder / "data.json").write_text(json.dumps(records))
        dataset = MGLLaVADataset(
            data_path=str(folder / "data.json"),
            image_folder=str(folder),
            tokenizer=assistant.tokenizer,
            image_processor=assistant.image_processor,
            prompt_template="vicuna",
            max_length=100,
        )
        return assistant.model, dataset

    def losses(self, parts: Any, samples: list[dict[str, Any]], pack: bool) -> float:
        model, dataset = parts
        model.data_preprocessor.pack = pack
        with torch.no_grad():
            batch = model.data_preprocessor(dataset.collate_fn(samples), training=True)
            return float(model(**batch, mode="loss")["loss_sum"])

    def test_packed_padded_and_alone(self, parts: Any) -> None:
        samples = [parts[1][number] for number in range(4)]
        padded, packed = (self.losses(parts, samples, pack) for pack in (False, True))
        alone = sum(self.losses(parts, [sample], False) for sample in samples)
        # float32 sums in another order
        assert padded == pytest.approx(packed, rel=1e-5)
        assert padded == pytest.approx(alone, rel=1e-5)

    def test_one_frame_is_the_picture(self, parts: Any) -> None:
        model, dataset = parts
        frame, picture = dataset[4], dataset[5]
        assert torch.equal(frame["pixel_values"], picture["pixel_values"])
        logits = []
        for sample in (frame, picture):
            batch = model.data_preprocessor(dataset.collate_fn([sample]))
            with torch.no_grad():
                logits.append(model(**batch, mode="logits"))
        assert torch.equal(*logits)

    def test_order_of_frames_matters(self, parts: Any) -> None:
        sample = parts[1][0]
        back = {**sample, "pixel_values": sample["pixel_values"].flip(0)}
        assert self.losses(parts, [sample], False) != self.losses(parts, [back], False)

    def test_lengths_are_what_the_model_reads(self, parts: Any) -> None:
        model, dataset = parts
        for number in range(len(dataset)):
            batch = model.data_preprocessor(dataset.collate_fn([dataset[number]]))
            assert batch["input_ids"].shape[1] == dataset.lengths[number]
        assert np.array_equal(dataset.num_images, [8, 1, 0, 3, 1, 1])
        assert dataset.groups.tolist() == [1, 1, 0, 1, 1, 1]


def test_draw_shows_the_frames(clips: Any) -> None:
    pictures = clips([{"id": "a", "video": "v/short.mkv", "conversations": talk(ASK)}]).draw(0)
    assert [number_of(picture) for picture in pictures] == [0, 1, 2]


class TestBoxes:
    """Boxes of frames: the nearest record within a tolerance, chosen per frame and per video."""

    RECORD = {"id": "a", "video": "v/long.mp4", "conversations": talk(ASK)}

    @staticmethod
    def boxed(*frames: tuple[float, int], **more: Any) -> dict[str, Any]:
        """A video's record: (seconds, number of boxes) of frames."""
        made = []
        for time, count in frames:
            boxes = [[2 * i, 0, 2 * i + 2, 8] for i in range(count)]
            scores = [0.1 + time / 10 + i / 100 for i in range(count)]
            made.append({"time": time, "boxes": boxes, "labels": [f"c{i}" for i in range(count)], "scores": scores})
        return {"video": "v/long.mp4", "frames": made, **more}

    def test_nearest_and_counted(self, clips: Any, tmp_path: Path) -> None:
        # frames 0, 5, 10, 15 of 8 a second: 0, 0.625, 1.25, 1.875 s
        boxes = [self.boxed((0, 2), (0.7, 1), (1.0, 3), (1.9, 1), width=32, height=24)]
        rule = FrameSampling(num_frames=4)
        dataset = clips([self.RECORD], boxes=boxes, box_json_path=str(tmp_path / "boxes.json"), frame_sampling=rule)
        assert [len(found) for found in dataset[0]["boxes"]] == [2, 1, 3, 1]
        assert dataset.lengths[0] == len(dataset[0]["input_ids"]) + 4 * (IMAGE_TOKENS - 1) + 7
        near = {"type": "mg_llava.boxes.BoxSelection", "frame_tolerance": 0.1}
        arguments = {"box_json_path": str(tmp_path / "boxes.json"), "frame_sampling": rule}
        strict = MGLLaVADataset(**{**self.arguments(clips, boxes, arguments), "boxes": near})
        assert [len(found) for found in strict[0]["boxes"]] == [2, 1, 0, 1]
        assert strict.report["frames without boxes near them"] == 1
        assert strict.report["boxed frames that are not sampled"] == 1

    @staticmethod
    def arguments(clips: Any, boxes: Any, more: dict[str, Any]) -> dict[str, Any]:
        made = clips.__closure__[0].cell_contents
        return made([TestBoxes.RECORD], boxes, **more)

    def test_a_limit_per_video(self, clips: Any, tmp_path: Path) -> None:
        boxes = [self.boxed((0, 2), (0.6, 2), (1.2, 2), (1.9, 2))]
        arguments = {"box_json_path": str(tmp_path / "boxes.json"), "frame_sampling": FrameSampling(num_frames=4)}
        few = {"type": "mg_llava.boxes.BoxSelection", "limit_video": 3}
        dataset = MGLLaVADataset(**{**self.arguments(clips, boxes, arguments), "boxes": few})
        # later frames have the better scores here
        assert [len(found) for found in dataset[0]["boxes"]] == [0, 0, 1, 2]
        assert dataset.report["boxes cut for the limit of a video"] == 5

    def test_boxes_of_another_size(self, clips: Any, tmp_path: Path) -> None:
        boxes = [self.boxed((0, 1), width=64, height=24)]
        dataset = clips([self.RECORD], boxes=boxes, box_json_path=str(tmp_path / "boxes.json"))
        with pytest.raises(XTunerError, match="has 32x24 pixels, but .* was made for 64x24"):
            dataset[0]

    def test_a_foreign_box_file(self, clips: Any, tmp_path: Path) -> None:
        boxes = [{**self.boxed((0, 1)), "video": "v/other.mp4"}]
        with pytest.raises(XTunerError, match="has no record for any of the 8 pictures"):
            clips([self.RECORD], boxes=boxes, box_json_path=str(tmp_path / "boxes.json"))


class TestLooking:
    """What the commands show of videos."""

    def test_frames_of_a_sample(self, clips: Any) -> None:
        record = {"id": "a", "image": "a.png", "video": "v/short.mkv", "conversations": talk("<image><video>")}
        dataset = clips([record])
        expected = [f"frame {i} ({seconds} s) of 'v/short.mkv'" for i, seconds in enumerate(("0.00", "0.12", "0.25"))]
        assert dataset.frames(0) == list(enumerate(expected, start=1))

    def test_a_strip(self, clips: Any, tmp_path: Path) -> None:
        from xtuner.tools.browse_dataset import write_page

        record = {"id": "a", "image": "a.png", "video": "v/short.mkv", "conversations": talk("<image><video>")}
        page = write_page("config", tmp_path / "page", clips([record]), [0]).read_text()
        strip = page.partition('<div class="strip">')[2].partition("</div>")[0]
        assert strip.count('<figure class="frame">') == 3 and "frame 2 (0.25 s)" in strip
        assert page.count("<figure>") == 1

    def test_what_would_fit_is_said(self, clips: Any, world: Any, tmp_path: Path) -> None:
        record = {"id": "a", "video": "v/long.mp4", "conversations": talk(ASK)}
        found = MGLLaVADataset.check_records(world([record], context=40, box_json_path=None))
        note = next(note for note in found.notes if note.startswith("longer than the context"))
        assert (
            "tokens of text 7 frames of 4 would fit (28 of 1 with frame_pooling.side=2), it has 8: lower "
            "frame_sampling.num_frames, or take a longer context." in note
        )


class TestPooled:
    """Frames of fewer tokens: lengths, what fits, and who has to prepare again."""

    RECORDS = (
        {
            "id": "long",
            "image": "a.png",
            "video": "v/long.mp4",
            "conversations": talk("<image>\n<video>\nWhat is this"),
        },
        {"id": "folder", "video": "v/frames", "conversations": talk(ASK)},
        {"id": "picture", "image": "a.png", "conversations": talk("<image>\nWhat is this")},
    )

    @pytest.fixture
    def pooled(self, clips: Any, world: Any) -> Any:
        """`clips` whose frames have one token of four."""
        processor = world([])["image_processor"] | {"frame_pooling": {"type": FramePooling, "side": 2}}
        return lambda records, **changes: clips(list(records), **{"image_processor": processor, **changes})

    def test_lengths_are_exact(self, pooled: Any, tmp_path: Path) -> None:
        boxed = [{"time": 0.0, "boxes": [[0, 0, 9, 9]], "labels": ["a"], "scores": [0.5]}]
        boxes = [{"video": "v/long.mp4", "width": 32, "height": 24, "frames": boxed}]
        # frames at 0 and 0.25 s have the box
        dataset = pooled(self.RECORDS, boxes=boxes, box_json_path=str(tmp_path / "boxes.json"))
        texts = [len(dataset[number]["input_ids"]) for number in range(3)]
        assert dataset.lengths.tolist() == [texts[0] + 3 + 2, texts[1], texts[2] + 3]
        assert dataset.image_processor.image_tokens.count(dataset[0]["input_ids"].tolist()) == texts[0] + 3
        assert dataset.collate_fn([dataset[0]])["image_tokens"] == ImageTokens(4, 1)
        described = dataset.describe(0).splitlines()
        assert "4 image tokens, 0 object" in described[1] and "1 image tokens, 1 object" in described[2]
        statistics = dataset.statistics()
        assert statistics["object tokens, with picture"].tolist() == [2, 0, 0]

    def test_what_did_not_fit_does(self, clips: Any, pooled: Any) -> None:
        assert len(pooled(self.RECORDS[:1], context=34)) == 1
        with pytest.raises(XTunerError, match="1 samples longer than the context left out"):
            clips(list(self.RECORDS[:1]), context=34)

    def test_what_would_fit_is_said(self, pooled: Any, clips: Any, world: Any) -> None:
        node = world(list(self.RECORDS[:1]), context=20, box_json_path=None)
        node["image_processor"] |= {"frame_pooling": {"type": FramePooling, "side": 2}}
        (note,) = (one for one in MGLLaVADataset.check_records(node).notes if one.startswith("longer than"))
        assert (
            "of text and 1 picture 4 frames of 1 would fit, it has 8: lower frame_sampling.num_frames or raise" in note
        )

    def test_prepared_folders_know_it(self, pooled: Any, clips: Any, world: Any, tmp_path: Path) -> None:
        node = world(list(self.RECORDS), box_json_path=None)
        MGLLaVADataset.prepare(node, str(tmp_path / "out"), 1)
        clips(list(self.RECORDS), offline_processed_text_folder=str(tmp_path / "out"))
        with pytest.raises(XTunerError, match="frame_tokens"):
            pooled(self.RECORDS, offline_processed_text_folder=str(tmp_path / "out"))
