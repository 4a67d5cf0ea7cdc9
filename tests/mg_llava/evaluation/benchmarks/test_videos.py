"""Benchmarks of videos: the authors' files, the judge's verdicts, and the frames that are asked."""

from __future__ import annotations

import json
import re
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mg_llava.evaluation import Benchmark, MVBench, NExTQA, ShortAnswer, VideoMME, VideoQA
from mg_llava.evaluation.benchmarks.clips import Clip
from mg_llava.evaluation.results.report import write_report
from mg_llava.evaluation.run.showing import show
from mg_llava.videos import FrameSampling
from tests.clips import number_of, write_clip, write_frames
from tests.mg_llava.evaluation.world import runner, seeded_assistant
from xtuner.constants import IMAGE_TOKEN
from xtuner.errors import XTunerError

QUESTIONS = [
    {"video_name": "a", "question": "What runs?", "question_id": "a_0"},
    {"video_name": "b", "question": "Who?", "question_id": "b_0"},
    {"video_name": "b", "question": "Where?", "question_id": "b_1"},
]
ANSWERS = [
    {"answer": "a dog", "question_id": "a_0", "type": 3},
    {"answer": "man", "question_id": "b_0", "type": 3},
    {"answer": "street", "question_id": "b_1", "type": 6},
]


def video_qa(folder: Path, questions: Any = QUESTIONS, answers: Any = ANSWERS, **arguments: Any) -> VideoQA:
    (folder / "q.json").write_text(json.dumps(questions))
    (folder / "a.json").write_text(json.dumps(answers))
    return VideoQA(
        name="v", data_root=str(folder), data_file="q.json", answer_file="a.json", image_folder="videos", **arguments
    )


class TestVideoQA:
    def test_by_hand(self, tmp_path: Path) -> None:
        """Yes with 4, no with 1, and an empty answer, which asks no judge: 1/3 right, 5/3 of 5."""
        bench = video_qa(tmp_path, answers=ANSWERS[::-1])
        said = [
            bench.predict(one, "", words) for one, words in zip(bench.questions(), ("dog", "cat", " "), strict=True)
        ]
        prompts = bench.judge_prompts(said)
        assert len(prompts) == 2
        assert "Question: What runs?\nCorrect Answer: a dog\nPredicted Answer: dog\n" in prompts[0]
        replies = ["{'pred': 'yes', 'score': 4}", '```json\n{"pred": "No", "score": 1}\n```']
        judged = bench.apply(said, dict(zip(prompts, replies, strict=True)))
        assert [one.hit for one in judged] == [1.0, 0.0, 0.0]
        score = bench.score(judged)
        assert score["overall"] == pytest.approx(1 / 3) and score["groups"] == {"type": {"3": 0.5, "6": 0.0}}
        assert score["judge_score"] == pytest.approx(1 / 3)
        assert bench.beside(judged) == {"judge_score_of_5": pytest.approx(5 / 3)}

    @pytest.mark.parametrize("reply", ["yes", "{'pred': 'maybe', 'score': 3}", "{'pred': 'yes', 'score': 9}", ""])
    def test_an_unreadable_verdict_leaves_it_unscored(self, tmp_path: Path, reply: str) -> None:
        bench = video_qa(tmp_path)
        one = bench.questions()[0]
        said = bench.predict(one, "", "yes, 3 of 5")
        assert bench.read_judgement(one, said, reply) == said
        assert bench.score([said])["overall"] is None and bench.beside([said]) == {"judge_score_of_5": None}

    def test_videos_are_found_by_any_ending(self, tmp_path: Path) -> None:
        (tmp_path / "videos").mkdir()
        for name in ("v_a.mkv", "b.avi"):
            (tmp_path / "videos" / name).touch()
        keys = [one.pictures[0].key for one in video_qa(tmp_path).questions()]
        assert keys == ["v_a.mkv", "b.avi", "b.avi"]

    def test_ids_that_repeat_go_by_their_order(self, tmp_path: Path) -> None:
        twice = [{**row, "question_id": "7"} for row in QUESTIONS]
        answers = [{**row, "question_id": "7"} for row in ANSWERS]
        assert [one.answer for one in video_qa(tmp_path, twice, answers).questions()] == ["a dog", "man", "street"]
        with pytest.raises(XTunerError, match="repeats question ids"):
            video_qa(tmp_path, QUESTIONS, answers).questions()

    def test_an_answer_that_is_missing_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(XTunerError, match="no answer to question b_1"):
            video_qa(tmp_path, answers=ANSWERS[:2]).questions()


def choices(kind: type[Benchmark], folder: Path, header: str, *rows: str, **arguments: Any) -> Benchmark:
    (folder / "t.tsv").write_text("\n".join([header, *rows]))
    return kind(name="t", data_root=str(folder), data_file="t.tsv", image_folder="videos", **arguments)


def scored(bench: Benchmark, *outputs: str) -> dict[str, Any]:
    pairs = zip(bench.questions(), outputs, strict=True)
    return bench.score([bench.predict(question, "", output) for question, output in pairs])


class TestChoices:
    MV = "index\ttask_type\tprefix\tdata_type\tbound\tstart\tend\tvideo\tquestion\tanswer\tcandidates"

    def test_mvbench(self, tmp_path: Path) -> None:
        rows = (
            "0\tAction Sequence\t/x/video/star/C480/\tvideo\tTrue\t1.5\t9\tA.mp4\tWhat?\tup\t['down', 'up']",
            "1\tAction Count\t./video/perception/\tvideo\tFalse\t\t\tB.mp4\tHow many?\t3\t['3', '2', '1']",
        )
        bench = choices(MVBench, tmp_path, self.MV, *rows)
        score = scored(bench, "B", "Answer: C")
        assert score["overall"] == 0.5
        assert score["groups"] == {"task": {"Action Sequence": 1.0, "Action Count": 0.0}}
        first, second = (one.pictures[0] for one in bench.questions())
        assert isinstance(first, Clip) and (first.sampling.start, first.sampling.end) == (1.5, 9.0)
        assert [first.key, second.key] == ["star/C480/A.mp4", "perception/B.mp4"]
        assert bench.prompt(bench.questions()[0]).startswith("What?\nA. down\nB. up\n")

    def test_an_answer_that_is_no_candidate_is_named(self, tmp_path: Path) -> None:
        row = "0\tT\tvideo/a\tvideo\tFalse\t\t\tA.mp4\tWhat?\tsideways\t['down', 'up']"
        with pytest.raises(XTunerError, match="question 0: its answer is 'sideways', expected one of its options A, B"):
            choices(MVBench, tmp_path, self.MV, row).questions()

    def test_video_mme(self, tmp_path: Path) -> None:
        header = "index\tvideo\tduration\tdomain\tcandidates\ttask_type\tquestion\tanswer"
        row = "0\tfFjv93ACGo8\tshort\tKnowledge\t['A. Apples.', 'B. Candles.']\tCounting\tWhat hangs?\tB"
        bench = choices(VideoMME, tmp_path, header, row)
        assert scored(bench, "B.")["groups"] == {
            "duration": {"short": 1.0},
            "domain": {"Knowledge": 1.0},
            "task_type": {"Counting": 1.0},
        }
        (one,) = bench.questions()
        assert dict(one.options) == {"A": "Apples.", "B": "Candles."} and one.pictures[0].key == "fFjv93ACGo8.mp4"

    def test_next_qa(self, tmp_path: Path) -> None:
        header = "video,frame_count,width,height,question,answer,qid,type,a0,a1,a2,a3,a4"
        row = "4010069381,369,640,480,how do they play,2,6,CH,roll,tap,strum,hit,pat"
        (tmp_path / "map.json").write_text(json.dumps({"4010069381": "1164/4010069381"}))
        bench = choices(NExTQA, tmp_path, header, row, map_file="map.json")
        assert scored(bench, "(C) strum")["groups"] == {"kind": {"C": 1.0}, "type": {"CH": 1.0}}
        (one,) = bench.questions()
        assert one.id == "4010069381_6" and one.pictures[0].key == "1164/4010069381.mp4"
        with pytest.raises(XTunerError, match="its answer is '7'"):
            choices(NExTQA, tmp_path, header, row.replace(",2,6,", ",7,6,")).questions()


def clips(folder: Path, **arguments: Any) -> ShortAnswer:
    write_clip(folder / "a.mp4", count=16)
    (folder / "b.mp4").write_bytes(b"no video")
    rows = [{"id": name, "video": f"{name}.mp4", "question": "w1", "answer": "dog"} for name in ("a", "b")]
    (folder / "t.json").write_text(json.dumps(rows))
    values = {"image_folder": "", "max_new_tokens": 4, "frame_sampling": FrameSampling(num_frames=4), **arguments}
    return ShortAnswer(name="t", data_root=str(folder), data_file="t.json", **values)


def shown_numbers(bench: Benchmark, folder: Path) -> list[int]:
    shown = show(bench, bench.questions()[0], seeded_assistant(folder).image_processor)
    assert shown.words == f"{IMAGE_TOKEN * 4}\nw1"
    assert all(re.fullmatch(r"video:a\.mp4#frame=\d+,t=\d\.\d+", one.key) for one in shown.pictures)
    return [number_of(picture) for picture in shown.opened]


def test_a_video_is_asked_as_its_frames_in_order_and_shuffled(tmp_path: Path) -> None:
    assert shown_numbers(clips(tmp_path), tmp_path) == [0, 5, 10, 15]
    shuffled = shown_numbers(clips(tmp_path, shuffle_frames=True), tmp_path)
    assert shuffled != [0, 5, 10, 15] and sorted(shuffled) == [0, 5, 10, 15]
    assert shuffled == shown_numbers(clips(tmp_path, shuffle_frames=True), tmp_path)


@pytest.mark.parametrize("shuffled", [False, True])
def test_each_frame_has_its_own_boxes(tmp_path: Path, shuffled: bool) -> None:
    """Frame i has a box of width i + 1; frame 10 has no record, and frame 9, an eighth of a second before, is taken."""
    frames = [
        {"index": number, "boxes": [[1, 1, 2 + number, 9]], "labels": ["x"], "scores": [0.5]}
        for number in (0, 5, 9, 15)
    ]
    (tmp_path / "boxes.json").write_text(json.dumps([{"video": "a.mp4", "width": 32, "height": 24, "frames": frames}]))
    bench = clips(tmp_path, box_json_path="boxes.json", shuffle_frames=shuffled)
    shown = show(bench, bench.questions()[0], seeded_assistant(tmp_path).image_processor)
    widths = {0: 1, 5: 6, 10: 10, 15: 16}
    expected = [widths[number_of(picture)] for picture in shown.opened]
    assert [found.boxes[0][2] - found.boxes[0][0] for found in shown.found] == expected
    metrics = runner(seeded_assistant(tmp_path)).run(bench, tmp_path / "out", {"config": "tiny"}, progress=False)
    assert metrics["num_without_boxes"] == 1


def test_an_evaluation_of_videos(tmp_path: Path) -> None:
    """The clip is answered, the broken one named and wrong; the report shows the four frames."""
    bench, assistant = clips(tmp_path), seeded_assistant(tmp_path)
    metrics = runner(assistant).run(bench, tmp_path / "out", {"config": "tiny"}, progress=False)
    assert (metrics["num_questions"], metrics["num_failed"]) == (2, 1)
    rows = [json.loads(line) for line in (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()]
    assert "b.mp4" in next(row["error"] for row in rows if row["id"] == "b")
    page = write_report(bench, tmp_path / "out", assistant.image_processor)
    assert page.read_text().count("report_images/") == 4


class TestWhereVideosLie:
    """Folders of frames and archives, and the boxes of frames."""

    HEADER = TestChoices.MV

    def bench(self, folder: Path, images: str = "videos") -> MVBench:
        rows = (
            "0\tEpisodic Reasoning\t./video/tvqa/\tframe\tTrue\t1\t3\tclip_1\tWhat?\tup\t['down', 'up']",
            "1\tAction Count\t./video/perception/\tvideo\tTrue\t0.5\t1\tB\tHow many?\t3\t['3', '2']",
        )
        found = choices(MVBench, folder, self.HEADER, *rows, frame_sampling=FrameSampling(num_frames=3))
        return replace(found, image_folder=images)  # type: ignore[type-var,return-value]

    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        write_frames(tmp_path / "videos" / "tvqa" / "clip_1", count=12)
        write_clip(tmp_path / "videos" / "perception" / "B.mp4", count=16)
        return tmp_path

    @pytest.mark.parametrize("images", ["videos", "all.zip", "part-*.zip"])
    def test_frames_of_a_folder_are_three_a_second(self, folder: Path, images: str) -> None:
        names = {"all.zip": ["all.zip"], "part-*.zip": ["part-1.zip", "part-2.zip"]}.get(images, [])
        files = [path for path in sorted((folder / "videos").rglob("*")) if path.is_file()]
        for number, name in enumerate(names):
            with zipfile.ZipFile(folder / name, "w") as archive:
                for path in files[number :: len(names)] if len(names) > 1 else files:
                    archive.write(path, str(path.relative_to(folder / "videos")))
        bench = self.bench(folder, images)
        assert bench.missing_files() == []
        processor = seeded_assistant(folder).image_processor
        first, second = (show(bench, question, processor) for question in bench.questions())
        assert first.error is None and second.error is None
        # from second 1 to 3 of three a second: 3 to 8
        assert [number_of(picture) for picture in first.opened] == [3, 5, 8]
        assert [number_of(picture) for picture in second.opened] == [4, 5, 7]
        assert bench.questions()[1].pictures[0].key == "perception/B.mp4"

    def test_what_is_absent_is_named_when_it_is_asked(self, folder: Path) -> None:
        with zipfile.ZipFile(folder / "all.zip", "w") as archive:
            archive.writestr("other.txt", "")
        bench = self.bench(folder, "all.zip")
        processor = seeded_assistant(folder).image_processor
        assert "'tvqa/clip_1.mp4' is in none of the archives" in str(show(bench, bench.questions()[0], processor).error)
        assert self.bench(folder, "none.zip").missing_files() == [str(folder / "none.zip")]

    def test_boxes_of_frames(self, tmp_path: Path) -> None:
        boxes = {"boxes": [[0, 0, 8, 8]], "labels": ["dog"], "scores": [0.5]}
        frames = [{"time": 0.0, **boxes}, {"time": 1.3, **boxes}, {"time": 1.6, **boxes}]
        (tmp_path / "boxes.json").write_text(json.dumps([{"video": "a.mp4", "frames": frames}]))
        bench = clips(tmp_path, box_json_path="boxes.json")
        shown = show(bench, bench.questions()[0], seeded_assistant(tmp_path).image_processor)
        # frames at 0, 0.625, 1.25 and 1.875 s
        assert [len(found.labels) for found in shown.found] == [1, 0, 1, 0]
