"""Own records as questions: turns in order, with what stands before; exact and fuzzy shares; wanted beside given."""

from __future__ import annotations

import csv
import json
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mg_llava.evaluation import EvaluationRunner, OwnRecords
from mg_llava.evaluation.benchmarks.records import Prediction
from mg_llava.evaluation.results.report import write_report
from mg_llava.evaluation.run.showing import show
from mg_llava.videos import FrameSampling
from tests.clips import number_of, write_clip
from tests.mg_llava.evaluation.world import runner, seeded_assistant
from tests.tiny_assistant import box_record, save_picture
from xtuner.errors import ProblemsError


def record(name: Any, *answers: str, image: str | None = "a.png", system: str = "") -> dict[str, Any]:
    """A record whose first question shows the picture."""
    turns: list[dict[str, str]] = [{"from": "system", "value": system}] if system else []
    for number, answer in enumerate(answers):
        place = "<image>\n" if number == 0 and image else ""
        turns += [{"from": "human", "value": f"{place}what w{number}"}, {"from": "gpt", "value": answer}]
    return {"id": name, **({"image": image} if image else {}), "conversations": turns}


def bench(folder: Path, training: list[Any], held_out: list[Any], images: str = "images") -> OwnRecords:
    """The benchmark of two files, or of one where nothing is held out."""
    parts = {name: rows for name, rows in (("training", training), ("held-out", held_out)) if rows}
    for name, rows in parts.items():
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    return OwnRecords(
        name="own_records",
        data_root=str(folder),
        data_file=[f"{name}.jsonl" for name in parts],
        parts=tuple(parts),
        image_folder=images,
        box_json_path=None,
        max_new_tokens=4,
    )


class TestQuestions:
    def test_each_turn_is_asked_after_the_turns_before_it(self, tmp_path):
        own = bench(tmp_path, [record(7, "red", "a dog", system="Be short.")], [record("x", "blue", image=None)])
        first, second, other = own.questions()
        assert [q.id for q in own.questions()] == ["training/7#turn1", "training/7#turn2", "held-out/x"]
        assert [q.answer for q in own.questions()] == ["red", "a dog", "blue"]
        assert [turn.output for turn in second.turns] == ["red", None]
        assert second.turns[0].system == "Be short."
        assert [picture.key for picture in first.pictures] == ["a.png"]
        assert first.turns[-1].input == "<image>\nwhat w0"
        assert other.pictures == ()
        assert other.groups == {"part": "held-out"}

    def test_repeated_ids_stay_apart_and_boxes_are_found_by_id(self, tmp_path):
        own = bench(tmp_path, [record("1", "red"), record("1", "blue")], [])
        assert [q.id for q in own.questions()] == ["training/1", "training/1#2"]
        assert {q.box_id for q in own.questions()} == {"1"}

    def test_turns_without_loss_and_pictures_of_later_turns_are_left_out(self, tmp_path):
        turns = [
            {"from": "human", "value": "<image>\nwhat"},
            {"from": "gpt", "value": "red", "loss": False},
            {"from": "human", "value": "<image>\nwhat"},
            {"from": "gpt", "value": "blue"},
        ]
        own = bench(tmp_path, [{"id": "1", "image": ["a.png", "b.png"], "conversations": turns}], [])
        (only,) = own.questions()
        assert [picture.key for picture in only.pictures] == ["a.png", "b.png"]
        assert only.answer == "blue"

    def test_pictures_of_an_archive_open(self, tmp_path):
        save_picture(tmp_path / "a.png", size=(20, 10))
        with zipfile.ZipFile(tmp_path / "pictures.zip", "w") as archive:
            archive.write(tmp_path / "a.png", "a.png")
        own = bench(tmp_path, [record("1", "red"), record("2", "red", image="absent.png")], [], "pictures.zip")
        found, absent = (question.pictures[0] for question in own.questions())
        assert found.open(seeded_assistant(tmp_path).image_processor).size == (20, 10)
        assert absent.encoded is None

    def test_every_faulty_record_is_named(self, tmp_path):
        own = bench(tmp_path, [record("1", "red"), {"id": "2"}], [{"id": "3"}])
        with pytest.raises(ProblemsError, match="2 problems") as raised:
            own.questions()
        assert "'2'" in str(raised.value)
        assert "'3'" in str(raised.value)


class TestScores:
    @pytest.mark.parametrize(
        ("wanted", "given", "exact", "fuzzy"),
        [
            ("A red bus.", "A red  bus.\n", 1, 1),
            ("A red bus.", "a red bus", 0, 1),
            ("A red bus.", "The red buss", 0, 1),
            ("A red bus.", "A blue bus.", 0, 0),
            ("red", None, 0, 0),
            ("?", "?", 1, 1),
            ("?", "!", 0, 0),
            (" ".join(f"w{n}" for n in range(100)), " ".join(f"w{n}" for n in range(85)), 0, 1),
            (" ".join(f"w{n}" for n in range(100)), " ".join(f"w{n}" for n in range(75)), 0, 0),
        ],
    )
    def test_exact_and_fuzzy(self, tmp_path, wanted, given, exact, fuzzy):
        own = bench(tmp_path, [record("1", wanted)], [])
        (question,) = own.questions()
        error = None if given is not None else "no picture"
        one = own.predict(question, "p", given) if given else Prediction(question.id, "p", None, None, 0.0, error)
        scores = own.score([one])
        assert (scores["overall"], scores["fuzzy"]["overall"]) == (exact, fuzzy)

    def test_shares_of_each_part(self, tmp_path):
        own = bench(tmp_path, [record("1", "red"), record("2", "a dog")], [record("3", "blue")])
        outputs = ("red", "the dog", "green")
        answered = [own.predict(q, "p", text) for q, text in zip(own.questions(), outputs, strict=True)]
        scores = own.score(answered)
        assert scores["groups"] == {"part": {"training": 0.5, "held-out": 0.0}}
        assert scores["fuzzy"]["groups"] == {"part": {"training": 1.0, "held-out": 0.0}}
        assert own.summary(scores) == "training: 50% exact, 100% fuzzy · held-out: 0% exact, 0% fuzzy"


def test_a_model_is_asked_and_wanted_stands_beside_given(tmp_path):
    save_picture(tmp_path / "images" / "a.png")
    (tmp_path / "boxes.json").write_text(json.dumps([box_record("a.png")]))
    own = bench(tmp_path, [record("1", "red", "blue")], [record("2", "dog"), record("3", "cat", image="gone.png")])
    asking: EvaluationRunner = runner(seeded_assistant(tmp_path / "parts"))
    metrics = asking.run(own, tmp_path / "out", {"checkpoint": "c"}, progress=False)
    assert (metrics["num_questions"], metrics["num_failed"]) == (4, 1)
    assert set(metrics["uncertainty"]["groups"]["part"]) == {"training", "held-out"}
    with (tmp_path / "out" / "answers.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["wanted"] for row in rows] == ["red", "blue", "dog", "cat"]
    assert "gone.png" in rows[-1]["given"]
    page = write_report(own, tmp_path / "out", asking.assistant.image_processor).read_text()
    assert "training: " in page
    (small,) = (tmp_path / "out" / "report_images").glob("*.jpg")  # shared by three questions, written once
    assert small.name in page


def test_the_second_turn_is_asked_as_it_was_trained(tmp_path):
    save_picture(tmp_path / "images" / "a.png")
    own = bench(tmp_path, [record("1", "red", "blue")], [])
    asking = runner(seeded_assistant(tmp_path / "parts"), batch_size=2)
    seen: list[list[int]] = []
    generate = asking.assistant.generate

    def spy(prompts: list[Any], *arguments: Any, **keywords: Any) -> list[str]:
        seen.extend(prompt.input_ids for prompt in prompts)
        return generate(prompts, *arguments, **keywords)

    asking.assistant.generate = spy  # type: ignore[method-assign]
    asking.run(own, tmp_path / "out", {}, progress=False)
    longest = max(seen, key=len)
    red = asking.assistant.tokenizer("red", add_special_tokens=False)["input_ids"]
    assert asking.assistant.tokenizer.eos_token_id in longest
    assert longest[longest.index(asking.assistant.tokenizer.eos_token_id) - 1 :][: len(red)] == red


class TestVideos:
    def test_frames_stand_where_the_record_has_the_video(self, tmp_path: Path) -> None:
        save_picture(tmp_path / "images" / "a.png")
        write_clip(tmp_path / "images" / "v.mp4", count=16)
        turns = [
            *({"from": "human", "value": "what <video> and <image>"}, {"from": "gpt", "value": "red"}),
            *({"from": "human", "value": "<video>\nwhat w1"}, {"from": "gpt", "value": "a dog"}),
        ]
        row = {"id": "a", "image": "a.png", "video": ["v.mp4", "v.mp4#t=1"], "conversations": turns}
        own = replace(bench(tmp_path, [row], []), frame_sampling=FrameSampling(num_frames=2))
        first, second = own.questions()
        assert [picture.key for picture in second.pictures] == ["v.mp4", "a.png", "v.mp4"]
        processor = seeded_assistant(tmp_path).image_processor
        shown = show(own, first, processor)
        assert shown.error is None and shown.words == "what <image><image> and <image>"
        assert [number_of(picture) for picture in shown.opened[:2]] == [0, 15]
        shown = show(own, second, processor)
        assert shown.words == "<image><image>\nwhat w1"
        assert [turn.num_pictures for turn in shown.turns] == [3, 2] and len(shown.opened) == 5
        assert [number_of(picture) for picture in shown.opened[3:]] == [8, 15]

    def test_asked_and_reported(self, tmp_path: Path) -> None:
        write_clip(tmp_path / "images" / "v.mp4", count=16)
        rows = [
            {"id": name, "video": name, "conversations": [
                {"from": "human", "value": "<video>\nwhat"}, {"from": "gpt", "value": "red"},
            ]}
            for name in ("v.mp4", "none.mp4")
        ]  # fmt: skip
        own, assistant = bench(tmp_path, rows, []), seeded_assistant(tmp_path)
        metrics = runner(assistant).run(own, tmp_path / "out", {"config": "tiny"}, progress=False)
        assert (metrics["num_questions"], metrics["num_failed"]) == (2, 1)
        with (tmp_path / "out" / "answers.csv").open(newline="") as file:
            given = {row["picture"]: row["given"] for row in csv.DictReader(file)}
        assert "none.mp4' does not exist" in given["none.mp4"] and "not asked" not in given["v.mp4"]
        page = write_report(own, tmp_path / "out", assistant.image_processor)
        assert page.read_text().count("report_images/") == 8
