"""The training data set on a few drawn pictures: samples, lengths, batches, faults."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, PreTrainedTokenizerFast

from mg_llava.boxes.selection import BoxSelection
from mg_llava.data.dataset import MGLLaVADataset
from mg_llava.pictures.preprocess import ImageProcessor
from mg_llava.pictures.statistics import CLIP_MEAN, CLIP_STD
from xtuner.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from xtuner.errors import ProblemsError, XTunerError

SIZE, IMAGE_TOKENS = 24, 4
WORDS = ["<unk>", "<s>", "</s>", "USER", "ASSISTANT", ":", "What", "is", "this", "A", "dog", "."]


def talk(question: str, answer: str = "A dog.") -> list[dict[str, str]]:
    return [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]


def box_record(image: str, count: int, **more: Any) -> dict[str, Any]:
    """`count` boxes side by side, all of different classes, the last the surest."""
    boxes = [[2 * i, 0, 2 * i + 2, 8] for i in range(count)]
    scores = [(i + 1) / 100 for i in range(count)]
    return {
        "image": image,
        "boxes": boxes,
        "labels": [f"c{i}" for i in range(count)],
        "scores": scores,
        **more,
    }


RECORDS = [
    {"id": "one", "image": "a.png", "conversations": talk("<image>\nWhat is this")},
    {"id": "text", "conversations": talk("What is this dog", "This.")},
    {"id": "two", "image": ["a.png", "b/b.png"], "conversations": talk("What is <image> this <image>")},
    {"id": "bare", "image": "c.png", "conversations": talk("<image>\nWhat is this")},
    {"id": "silent", "image": "a.png", "conversations": [{"from": "human", "value": "<image>"}]},
]
BOXES = [box_record("a.png", 3, width=12, height=8), box_record("b/b.png", 2)]


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """Writes a data set and returns the arguments of `MGLLaVADataset`, everything by node or path."""
    monkeypatch.setenv("XTUNER_CACHE", str(tmp_path / "cache"))
    for name, size in (("a.png", (12, 8)), ("b/b.png", (8, 8)), ("c.png", (5, 9))):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", size, (len(name), 100, 200)).save(tmp_path / name)
    clip = tmp_path / "clip"
    clip.mkdir()
    preprocessor = {"image_mean": CLIP_MEAN, "image_std": CLIP_STD, "do_center_crop": True}
    (clip / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    config = {"model_type": "clip_vision_model", "image_size": 28, "patch_size": 14}
    (clip / "config.json").write_text(json.dumps(config))
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    specials = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=words, **specials).save_pretrained(tmp_path / "llm")

    def make(records: Any = RECORDS, boxes: Any = BOXES, context: int | None = None, **changes: Any) -> dict[str, Any]:
        (tmp_path / "data.json").write_text(json.dumps(records))
        (tmp_path / "boxes.json").write_text(json.dumps(boxes))
        LlamaConfig(max_position_embeddings=context or 4096).save_pretrained(tmp_path / "llm")
        return {
            "data_path": str(tmp_path / "data.json"),
            "image_folder": str(tmp_path),
            "tokenizer": {
                "type": "xtuner.data.text.tokenizer.build_tokenizer",
                "name_or_path": str(tmp_path / "llm"),
            },
            "image_processor": {"type": ImageProcessor, "name_or_path": str(clip), "image_size": SIZE},
            "prompt_template": "vicuna",
            "max_length": 100,
            "box_json_path": str(tmp_path / "boxes.json"),
            "boxes": {"type": BoxSelection},
            "llm_name_or_path": str(tmp_path / "llm") if context else None,
            **changes,
        }

    return make


class TestSamples:
    def test_a_sample(self, world: Any) -> None:
        dataset = MGLLaVADataset(**world())
        sample = dataset[0]
        assert sample["sample_id"] == "one"
        assert sample["pixel_values"].shape == (1, 3, SIZE, SIZE)
        assert sample["pixel_values"].dtype == torch.uint8
        # 12x8 is padded by two rows and doubled; best score first
        assert sample["boxes"][0].tolist() == [[8, 4, 12, 20], [4, 4, 8, 20], [0, 4, 4, 20]]
        assert sample["boxes"][0].dtype == torch.float32
        assert (sample["input_ids"] == IMAGE_TOKEN_INDEX).sum() == 1
        supervised = sample["labels"] != IGNORE_INDEX
        assert dataset.tokenizer.decode(sample["labels"][supervised]) == "A dog . </s>"

    def test_a_text_only_sample_has_no_picture(self, world: Any) -> None:
        sample = MGLLaVADataset(**world())[1]
        assert sample["pixel_values"].shape == (0, 3, SIZE, SIZE) and sample["boxes"] == []

    def test_several_pictures_stand_in_order(self, world: Any) -> None:
        sample = MGLLaVADataset(**world())[2]
        assert [len(boxes) for boxes in sample["boxes"]] == [3, 2]
        # the red of a picture is the length of its name
        middle = sample["pixel_values"][:, 0, SIZE // 2, SIZE // 2]
        assert middle.tolist() == [len("a.png"), len("b/b.png")]

    def test_lengths_are_those_of_the_samples(self, world: Any) -> None:
        dataset = MGLLaVADataset(**world())
        assert len(dataset) == len(dataset.lengths) == 4
        assert dataset.modality.tolist() == [True, False, True, True]
        assert dataset.groups.tolist() == [1, 0, 1, 1]
        for index in range(len(dataset)):
            sample = dataset[index]
            objects = sum(len(boxes) for boxes in sample["boxes"])
            pictures = len(sample["pixel_values"])
            expected = len(sample["input_ids"]) + pictures * (IMAGE_TOKENS - 1) + objects
            assert dataset.lengths[index] == expected

    def test_without_a_box_file_there_are_no_objects(self, world: Any) -> None:
        dataset = MGLLaVADataset(**world(box_json_path=None))
        assert [len(boxes) for boxes in dataset[2]["boxes"]] == [0, 0]
        assert dataset.report["pictures without boxes"] == 0

    def test_what_is_left_out_is_counted(self, world: Any) -> None:
        odd = box_record("a.png", 3, width=12, height=8)
        odd["boxes"][0] = [9, 0, 5, 5]
        odd["boxes"][1] = [50, 50, 60, 60]
        dataset = MGLLaVADataset(**world(boxes=[odd]))
        assert len(dataset[0]["boxes"][0]) == 1
        # a.png is in two samples; b and c have no boxes
        assert dataset.report["inverted boxes left out"] == 2
        assert dataset.report["boxes outside the picture left out"] == 2
        assert dataset.report["pictures not in the box file"] == 2
        assert dataset.report["pictures"] == 4

    def test_several_files_follow_each_other(self, world: Any, tmp_path: Path) -> None:
        arguments = world()
        (tmp_path / "more.jsonl").write_text(json.dumps(RECORDS[1]) + "\n")
        dataset = MGLLaVADataset(**{**arguments, "data_path": [arguments["data_path"], str(tmp_path / "more.jsonl")]})
        assert [dataset[i]["sample_id"] for i in range(len(dataset))] == [
            "one",
            "text",
            "two",
            "bare",
            "text",
        ]

    def test_describe(self, world: Any) -> None:
        dataset = MGLLaVADataset(**world())
        text = dataset.describe(2)
        assert f"{dataset.lengths[2]} tokens" in text
        assert "picture a.png (12x8): 4 image tokens, 3 object tokens (c2, c1, c0)" in text
        assert "picture" not in dataset.describe(1).splitlines()[1:]


class TestContext:
    def test_the_lowest_scored_boxes_of_all_pictures_go(self, world: Any) -> None:
        whole = MGLLaVADataset(**world())
        # sample 2 has 5 boxes with scores 0.01 to 0.03 and 0.01 to 0.02; room for three
        context = int(whole.lengths[2]) - 2
        dataset = MGLLaVADataset(**world(context=context))
        assert dataset.lengths[2] == context
        first, second = dataset[2]["boxes"]
        assert first.tolist() == whole[2]["boxes"][0][:2].tolist()
        assert second.tolist() == whole[2]["boxes"][1][:1].tolist()
        assert dataset.report["boxes cut for the context"] == 2

    def test_samples_that_do_not_fit_without_boxes_are_left_out(self, world: Any) -> None:
        text_only = MGLLaVADataset(**world()).lengths[1]
        dataset = MGLLaVADataset(**world(context=int(text_only)))
        assert [dataset[i]["sample_id"] for i in range(len(dataset))] == ["text"]
        assert dataset.report["samples longer than the context left out"] == 3

    def test_nothing_left(self, world: Any) -> None:
        with pytest.raises(XTunerError, match="4 samples longer than the context left out"):
            MGLLaVADataset(**world(context=3))


class TestCollate:
    def test_a_mixed_batch(self, world: Any) -> None:
        dataset = MGLLaVADataset(**world())
        batch = dataset.collate_fn([dataset[i] for i in range(4)])
        assert batch["sample_ids"] == ["one", "text", "two", "bare"]
        assert batch["pixel_values"].shape == (4, 3, SIZE, SIZE)
        assert [len(boxes) for boxes in batch["boxes"]] == [3, 3, 2, 0]
        assert (batch["input_ids"] == IMAGE_TOKEN_INDEX).sum() == 4
        assert (batch["attention_mask"].sum(dim=1) == torch.tensor([len(dataset[i]["labels"]) for i in range(4)])).all()

    def test_a_batch_of_text(self, world: Any) -> None:
        dataset = MGLLaVADataset(**world())
        batch = dataset.collate_fn([dataset[1], dataset[1]])
        assert batch["pixel_values"].shape == (0, 3, SIZE, SIZE) and batch["boxes"] == []

    def test_through_a_loader_with_workers(self, world: Any) -> None:
        dataset = MGLLaVADataset(**world())
        loader = torch.utils.data.DataLoader(dataset, 2, collate_fn=dataset.collate_fn, num_workers=1)
        assert [batch["sample_ids"] for batch in loader] == [["one", "text"], ["two", "bare"]]


class TestFaults:
    def test_a_missing_picture_names_sample_and_path(self, world: Any, tmp_path: Path) -> None:
        dataset = MGLLaVADataset(**world())
        (tmp_path / "a.png").unlink()
        with pytest.raises(XTunerError, match=r"sample 'one' \(number 0\): picture '.*a.png' does not exist"):
            dataset[0]

    def test_missing_pictures_are_found_before_training(self, world: Any, tmp_path: Path) -> None:
        node = world()
        (tmp_path / "b" / "b.png").unlink()
        with pytest.raises(ProblemsError, match=r"missing picture: 'b/b.png' \(sample 'two'\) does not exist"):
            MGLLaVADataset(**node)

    def test_all_that_stops_a_start_is_named_at_once(self, world: Any, tmp_path: Path) -> None:
        gone = [
            {"id": f"gone{number}", "image": f"{number}.png", "conversations": talk("<image>")} for number in range(12)
        ]
        role = {"id": "role", "conversations": [{"from": "robot", "value": "x"}]}
        twice = [box_record("a.png", 1), box_record("a.png", 2)]
        nan = {**box_record("c.png", 1), "scores": [float("nan")]}
        with pytest.raises(ProblemsError) as caught:
            MGLLaVADataset(**world([*RECORDS, *gone, role], [*twice, nan]))
        assert "(16 in all; `xtuner check-dataset` shows them)" in str(caught.value)
        kinds = Counter(problem.partition(": ")[0] for problem in caught.value.problems)
        assert kinds == {"unknown role": 1, "missing picture": 10, "malformed box record": 1, "ambiguous boxes": 2}
        with pytest.raises(ProblemsError) as prepared:
            MGLLaVADataset.prepare(world([*RECORDS, *gone, role], [*twice, nan]), str(tmp_path / "out"), 1)
        assert prepared.value.problems == caught.value.problems and not (tmp_path / "out").exists()

    def test_paths_of_windows_are_one_sentence_at_the_start_and_in_the_check(self, world: Any) -> None:
        names = ("b\\b.png", "C:\\pictures\\a.png", "c.png")
        records = [{"id": name, "image": name, "conversations": talk("<image>\nWhat is this")} for name in names]
        said = "2 of 3 pictures have paths of Windows, the first is 'b\\b.png': write '/' in place of each backslash"
        # other pictures' boxes: whether they fit cannot be said of such paths
        node = world(records, [box_record("other.png", 1)])
        for _ in range(2):
            with pytest.raises(ProblemsError) as caught:
                MGLLaVADataset(**node)
            assert [problem.split(", here")[0] for problem in caught.value.problems] == [f"paths of Windows: {said}"]
        (found,) = MGLLaVADataset.check_records(node).problems
        assert found == caught.value.problems[0]

    def test_nothing_is_said_of_boxes_where_no_picture_is_there(self, world: Any) -> None:
        records = [{"id": "1", "image": "wrong/a.png", "conversations": talk("<image>\nWhat is this")}]
        node = world(records, [box_record("other.png", 1)])
        with pytest.raises(ProblemsError) as caught:
            MGLLaVADataset(**node)
        for problems in (caught.value.problems, MGLLaVADataset.check_records(node).problems):
            assert [problem.partition(":")[0] for problem in problems] == ["missing picture"]

    def test_a_box_file_of_other_pictures(self, world: Any) -> None:
        with pytest.raises(XTunerError, match="no record for any of the 4 pictures"):
            MGLLaVADataset(**world(boxes=[box_record("elsewhere.png", 1)]))

    def test_boxes_of_another_size(self, world: Any) -> None:
        dataset = MGLLaVADataset(**world(boxes=[box_record("a.png", 3, width=8, height=12)]))
        with pytest.raises(XTunerError, match="has 12x8 pixels, but .* was made for 8x12"):
            dataset[0]

    def test_boxes_by_id_for_several_pictures(self, world: Any) -> None:
        record = {**box_record("a.png", 1), "id": "two"}
        del record["image"]
        with pytest.raises(XTunerError, match="that sample has 2 pictures"):
            MGLLaVADataset(**world(boxes=[record]))

    def test_faulty_records(self, world: Any) -> None:
        bad = {"id": "bad", "image": "a.png", "conversations": talk("no place for it")}
        with pytest.raises(ProblemsError, match="'bad'"):
            MGLLaVADataset(**world(records=[*RECORDS, bad]))


class TestPrepare:
    def test_a_prepared_folder_is_used(self, world: Any, tmp_path: Path) -> None:
        arguments = world()
        counts = MGLLaVADataset.prepare({"type": MGLLaVADataset, **arguments}, str(tmp_path / "out"), 1)
        assert counts["kept"] == 4
        prepared = MGLLaVADataset(**{**arguments, "offline_processed_text_folder": str(tmp_path / "out")})
        np.testing.assert_array_equal(prepared.lengths, MGLLaVADataset(**arguments).lengths)
        alone = {**arguments, "data_path": None, "offline_processed_text_folder": str(tmp_path / "out")}
        assert MGLLaVADataset(**alone)[0]["sample_id"] == "one"

    def test_another_setting_is_refused(self, world: Any, tmp_path: Path) -> None:
        arguments = world()
        MGLLaVADataset.prepare(arguments, str(tmp_path / "out"), 1)
        with pytest.raises(XTunerError, match="max_length: prepared with 100, now 50"):
            MGLLaVADataset(**{**arguments, "max_length": 50, "offline_processed_text_folder": str(tmp_path / "out")})

    def test_several_files(self, world: Any, tmp_path: Path) -> None:
        arguments = world()
        arguments["data_path"] = [arguments["data_path"]] * 2
        counts = MGLLaVADataset.prepare(arguments, str(tmp_path / "out"), 1)
        assert counts["kept"] == 8
        arguments["offline_processed_text_folder"] = str(tmp_path / "out")
        assert len(MGLLaVADataset(**arguments)) == 8


class TestCheck:
    def test_good_data_has_no_problems(self, world: Any) -> None:
        found = MGLLaVADataset.check_records({"type": MGLLaVADataset, **world()})
        assert found.problems == []
        assert {"turns", "words of an answer", "pictures", "boxes of a picture"} <= dict(found.statistics).keys()

    def test_every_fault_is_found_in_one_pass(self, world: Any, tmp_path: Path) -> None:
        (tmp_path / "broken.png").write_bytes((tmp_path / "a.png").read_bytes()[:45])
        records = [
            *RECORDS,
            {"id": "gone", "image": "gone.png", "conversations": talk("<image>")},
            {"id": "broken", "image": "broken.png", "conversations": talk("<image>")},
            {"id": "count", "image": "a.png", "conversations": talk("<image> <image>")},
            {"id": "role", "conversations": [{"from": "robot", "value": "x"}]},
            {"id": "nobody", "conversations": [{"from": "gpt", "value": "x"}]},
            {"id": "by_id", "image": ["d.png", "d.png"], "conversations": talk("<image> <image>")},
        ]
        Image.new("RGB", (4, 4)).save(tmp_path / "d.png")
        odd = box_record("a.png", 3, width=12, height=8)
        odd["boxes"][:2] = [[5, 0, 1, 5], [20, 20, 30, 30]]
        by_id = {**box_record("", 1), "id": "by_id"}
        del by_id["image"]
        boxes = [odd, box_record("c.png", 1, width=7, height=7), {"image": "x.png"}, by_id]
        node = world(records, boxes, prompt_template="vicunna")
        found = MGLLaVADataset.check_records(node).problems
        kinds = [problem.split(": ")[0] for problem in found]
        assert sorted(set(kinds)) == sorted(
            [
                "prompt template",
                "missing picture",
                "picture does not decode",
                "wrong number of pictures",
                "unknown role",
                "no human turn",
                "malformed box record",
                "inverted box",
                "box outside the picture",
                "boxes of another size",
                "ambiguous boxes",
            ]
        )
        text = "\n".join(found)
        assert "did you mean 'vicuna'" in text
        assert "gone.png' does not exist" in text and "(sample 'gone')" in text
        # a picture of several samples is named once
        assert kinds.count("inverted box") == kinds.count("box outside the picture") == 1

    def test_what_length_leaves_out_is_named_and_equals_the_preparing(self, world: Any, tmp_path: Path) -> None:
        long = "dog " * 20
        two_turns = [*talk("<image>"), *talk(f"{long} <image><image>")]
        records = [
            *RECORDS,
            {"id": "whole", "image": "a.png", "conversations": talk(f"<image>\n{long}")},
            {"id": "part", "image": "a.png", "conversations": talk("<image>\nWhat", long)},
            {"id": "later", "image": ["a.png"] * 3, "conversations": two_turns},
            {"id": "many", "image": ["a.png"] * 5, "conversations": talk("<image>" * 5)},
        ]
        # "whole": bos, USER, :, the picture, 20 words, ASSISTANT, :, and the answer's A dog. </s>
        node = world(records, context=24, max_length=20)
        found = MGLLaVADataset.check_records(node)
        assert found.problems == []
        assert found.notes == [
            "no answer: record 'silent' (number 5) has no answer to a question; it is left out. [data.json]",
            "answer beyond max_length: sample 'whole' (number 6) has 30 text tokens, and the first 20 hold none of an "
            "answer; it is left out. [data.json]",
            "cut at max_length: sample 'part' (number 7) has 28 text tokens; training drops the last 8, with 8 "
            "tokens of answers. [data.json]",
            "cut at max_length: sample 'later' (number 8) has 41 text tokens; training drops the last 21, with 4 "
            "tokens of answers and 2 pictures. [data.json]",
            "longer than the context: sample 'many' (number 9) has 29 text and image tokens, but the language model "
            "takes 24; it is left out: beside its 9 tokens of text 3 pictures of 4 would fit, it has 5: take fewer, or "
            "a longer context. [data.json]",
            f"box file: '{node['box_json_path']}' has no record of 1 of 3 pictures: no object tokens for them.",
        ]
        report = MGLLaVADataset.prepare(node, str(tmp_path / "out"), 1)
        assert report["dropped: no supervised token within max_length"] == report["dropped: nobody answers"] == 1
        assert report["samples longer than the context left out"] == 1 and report["cut off: samples"] == 2
        # without the data file the prepared folder tells how many
        node.update(data_path=None, offline_processed_text_folder=str(tmp_path / "out"))
        told = MGLLaVADataset.check_records(node).notes
        assert "prepared data: 2 cut off: samples" in told and "prepared data: 1 dropped: nobody answers" in told

    def test_a_foreign_box_file(self, world: Any) -> None:
        (found,) = MGLLaVADataset.check_records(world(boxes=[box_record("other.png", 1)])).problems
        assert found.startswith("boxes without pictures: ") and "belongs to another data set" in found

    def test_a_box_file_is_not_called_foreign_after_a_data_file_that_ends_early(self, world: Any) -> None:
        node = world(boxes=[box_record("other.png", 1)])
        path = Path(node["data_path"])
        path.write_text(path.read_text()[:-30])
        kinds = [problem.split(": ")[0] for problem in MGLLaVADataset.check_records(node).problems]
        assert kinds and "boxes without pictures" not in kinds

    def test_missing_files_and_unreadable_parts(self, world: Any, tmp_path: Path) -> None:
        node = world(box_json_path=str(tmp_path / "none.json"), data_path=str(tmp_path / "none.json"))
        node["tokenizer"]["name_or_path"] = node["image_processor"]["name_or_path"] = str(tmp_path)
        kinds = [problem.split(": ")[0] for problem in MGLLaVADataset.check_records(node).problems]
        assert kinds == ["tokenizer", "image processor", "data file", "box file"]

    def test_no_data_at_all(self, world: Any) -> None:
        (found,) = MGLLaVADataset.check_records(world(data_path=None)).problems
        assert found.startswith("settings: no training data")

    def test_a_prepared_folder_alone(self, world: Any, tmp_path: Path) -> None:
        node = world()
        MGLLaVADataset.prepare(node, str(tmp_path / "out"), 1)
        node.update(data_path=None, offline_processed_text_folder=str(tmp_path / "out"))
        assert MGLLaVADataset.check_records(node).problems == []
        (tmp_path / "c.png").unlink()
        (found,) = MGLLaVADataset.check_records(node).problems
        assert found.startswith("missing picture") and "(sample 'bare')" in found


class TestTextAsItWasWritten:
    RECORDS = (
        RECORDS[0],
        {"id": "strike", "image": "a.png", "conversations": talk("<image>\nWhat is this", "before <s>9</s> A dog.")},
        {"id": "tag", "conversations": talk("What is <image>"), "source": "web"},
    )

    def test_questions_and_answers_without_a_word_are_counted_and_named(
        self, world: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        records = [
            {"id": "asks nothing", "conversations": talk(" \n")},
            {"id": "two answers", "conversations": [*talk("What"), {"from": "gpt", "value": "A"}]},
            {"id": "a picture asks", "image": "a.png", "conversations": talk("<image>")},
            {"id": "says nothing", "conversations": talk("What", "")},
            {"id": "need not", "conversations": [*talk("What"), *talk("is", "")[:1], {"from": "gpt", "value": ""}]},
            {"id": "blank", "conversations": [*talk("What"), *talk("is", "\u3000\u200b ")]},
        ]
        records[4]["conversations"][-1]["loss"] = False
        node = world(records)
        found = MGLLaVADataset.check_records(node)
        assert found.problems == []
        kinds = {
            "records with an empty question": [1, 2],
            "records with an empty answer (only its end is learned)": [4],
            "records with an answer of spaces only": [6],
        }
        told = [note.removesuffix(". [data.json]") for note in found.notes]
        names = {number: f"record '{record['id']}' (number {number})" for number, record in enumerate(records, start=1)}
        expected = sorted(f"{kind}: {names[number]}" for kind, numbers in kinds.items() for number in numbers)
        assert sorted(note for note in told if note.startswith("records")) == expected
        with caplog.at_level("INFO"):
            report = MGLLaVADataset.prepare(node, str(tmp_path / "out"), 1)
        assert {kind: report[kind] for kind in kinds} == {kind: len(numbers) for kind, numbers in kinds.items()}
        assert "2 records with an empty question: asks nothing, two answers" in caplog.text

    @pytest.mark.parametrize(("policy", "done"), [("split", "read as text"), ("keep", "kept as tokens")])
    def test_special_tokens_are_counted_and_named(
        self, world: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture, policy: str, done: str
    ) -> None:
        node = world(list(self.RECORDS), special_tokens_in_text=policy)
        kind = f"records with special tokens in their text, {done}"
        found = MGLLaVADataset.check_records(node)
        assert found.problems == []
        assert f"{kind}: record 'strike' (number 2). [data.json]" in found.notes
        with caplog.at_level("INFO"):
            report = MGLLaVADataset.prepare(node, str(tmp_path / "out"), 1)
        assert report[kind] == 2 and report["records with <image> without a picture, read as text"] == 1
        assert report["records with a field 'source', which is not read,"] == 1
        assert f"2 {kind}: strike, tag" in caplog.text
        dataset = MGLLaVADataset(**world(list(self.RECORDS), special_tokens_in_text=policy))
        eos = dataset.tokenizer.eos_token_id
        assert int((dataset[1]["labels"] == eos).sum()) == (1 if policy == "split" else 2)
        assert len(dataset[2]["pixel_values"]) == 0 and IMAGE_TOKEN_INDEX not in dataset[2]["input_ids"]

    def test_refused(self, world: Any, tmp_path: Path) -> None:
        node = world(list(self.RECORDS), special_tokens_in_text="refuse")
        found = MGLLaVADataset.check_records(node).problems
        assert [problem.split(":")[1] for problem in found] == [
            " record 'strike' (number 2)",
            " record 'tag' (number 3)",
        ]
        with pytest.raises(ProblemsError, match="special token in text: record 'strike'.*holds <s>, </s>"):
            MGLLaVADataset.prepare(node, str(tmp_path / "out"), 1)

    def test_the_policy_is_part_of_what_was_prepared(self, world: Any, tmp_path: Path) -> None:
        node = world(list(self.RECORDS))
        MGLLaVADataset.prepare(node, str(tmp_path / "out"), 1)
        with pytest.raises(XTunerError, match="special_tokens_in_text: prepared with 'split', now 'keep'"):
            MGLLaVADataset.prepare({**node, "special_tokens_in_text": "keep"}, str(tmp_path / "out"), 1)
        with pytest.raises(XTunerError, match="expected one of split, keep, refuse"):
            MGLLaVADataset(**world(special_tokens_in_text="drop"))

    def test_answers_without_loss(self, world: Any, tmp_path: Path) -> None:
        silent = [*talk("<image>\nWhat", "A dog."), *talk("is this", "this dog.")]
        silent[1] = {**silent[1], "loss": False}
        nothing = [silent[0], {**silent[3], "weight": 0}]
        records = [{"id": "l", "image": "a.png", "conversations": silent}]
        records.append({"id": "n", "image": "a.png", "conversations": nothing})
        sample = MGLLaVADataset(**world(records))[0]
        tokenizer = MGLLaVADataset(**world(records)).tokenizer
        learned = sample["labels"][sample["labels"] != IGNORE_INDEX]
        assert tokenizer.decode(learned) == "this dog.</s>" or learned.tolist()[-1] == tokenizer.eos_token_id
        assert len(learned) == len(tokenizer("this dog.", add_special_tokens=False)["input_ids"]) + 1
        report = MGLLaVADataset.prepare(world(records), str(tmp_path / "out"), 1)
        assert report["dropped: no answer with loss"] == 1 and report["kept"] == 1
        notes = MGLLaVADataset.check_records(world(records)).notes
        assert any(note.startswith("no answer with loss: the answers of sample 'n' (number 2) have") for note in notes)

    @pytest.mark.parametrize(
        ("record", "expected"),
        [
            ({"id": "emoji", "image": "a.png", "conversations": talk("<image>\nWhat \ud83d")}, "record 'emoji'"),
            ({"id": "x\ud83d", "image": "a.png", "conversations": talk("<image>")}, r"record 'x\ud83d'"),
            ({"id": "x", "image": "a\ud83d.png", "conversations": talk("<image>")}, "record 'x'"),
            ({"id": "x", "image": "a.png", "conversations": talk("<image>", "\udc00")}, "record 'x'"),
        ],
    )
    def test_half_a_character(self, world: Any, tmp_path: Path, record: Any, expected: str) -> None:
        node = world([*RECORDS, record])
        (found,) = MGLLaVADataset.check_records(node).problems
        assert found.startswith(f"half a character: {expected} (number 6): ") and found.isascii()
        with pytest.raises(ProblemsError, match="half a character"):
            MGLLaVADataset.prepare(node, str(tmp_path / "out"), 1)

    def test_half_a_character_in_a_label(self, world: Any) -> None:
        boxes = [{**BOXES[0], "labels": ["c0", "c\ud83d", "c2"]}, BOXES[1]]
        (found,) = MGLLaVADataset.check_records(world(boxes=boxes)).problems
        assert found.startswith("malformed box record: box record number 1 ('a.png'): a label holds U+D83D")


class TestOddBoxes:
    # two samples show a.png
    def fractions(self) -> list[dict[str, Any]]:
        odd = box_record("a.png", 3, width=12, height=8)
        odd["boxes"] = [[0.1, 0.1, 0.5, 0.5]] * 3
        return [odd]

    def test_a_file_of_fractions_is_refused_or_taken_and_counted(self, world: Any) -> None:
        with pytest.raises(XTunerError, match="6 boxes within 0 to 1 among 6 .*allow_odd_boxes=True"):
            MGLLaVADataset(**world(boxes=self.fractions()))
        dataset = MGLLaVADataset(**world(boxes=self.fractions(), allow_odd_boxes=True))
        assert dataset.report["boxes within 0 to 1"] == 6
        (found,) = MGLLaVADataset.check_records(world(boxes=self.fractions())).problems
        assert found.startswith("boxes within 0 to 1: box record number 1 ('a.png'), all 3 boxes, the first is")

    def test_boxes_without_area_are_counted(self, world: Any) -> None:
        odd = box_record("a.png", 3, width=12, height=8)
        odd["boxes"][0] = [5, 5, 5, 5]
        assert MGLLaVADataset(**world(boxes=[odd])).report["boxes without area"] == 2
        (found,) = MGLLaVADataset.check_records(world(boxes=[odd])).problems
        assert found.startswith("box without area: box record number 1 ('a.png'), box number 1 is [5.0, 5.0, 5.0, 5.0]")


class TestStrictPaths:
    def test_pictures_outside_are_counted_or_refused(self, world: Any, tmp_path: Path) -> None:
        inside = tmp_path / "inside"
        inside.mkdir()
        (inside / "a.png").write_bytes((tmp_path / "a.png").read_bytes())
        (inside / "link.png").symlink_to(tmp_path / "a.png")
        (inside / "near.png").symlink_to(inside / "a.png")
        paths = ["../a.png", str(tmp_path / "a.png"), "link.png", "near.png", "x/../a.png"]
        records = [
            {"id": f"s{number}", "image": path, "conversations": talk("<image>")} for number, path in enumerate(paths)
        ]
        (inside / "x").mkdir()
        arguments = {**world(records=records, boxes=[]), "image_folder": str(inside), "box_json_path": None}
        assert len(MGLLaVADataset(**arguments)) == 5
        found = MGLLaVADataset.check_records(arguments)
        assert found.problems == [] and len(found.notes) == 3
        assert all(note.startswith("picture outside image_folder: ") for note in found.notes)
        with pytest.raises(XTunerError) as caught:
            MGLLaVADataset(**arguments, strict_paths=True)
        assert "by '..'" in str(caught.value) and "an absolute path" in str(caught.value)
        assert len(MGLLaVADataset.check_records({**arguments, "strict_paths": True}).problems) == 3


class TestFailures:
    @pytest.mark.parametrize("error", [MemoryError(), RuntimeError("broken decoder"), IndexError("x")])
    def test_any_failure_of_a_sample_is_skipped_by_name(
        self, world: Any, monkeypatch: pytest.MonkeyPatch, error: Exception
    ) -> None:
        dataset = MGLLaVADataset(**world(on_bad_sample="skip"))
        own = dataset._reader.sample

        def fail(row: Any, files: Any) -> Any:
            if row["id"] == "one":
                raise error
            return own(row, files)

        monkeypatch.setattr(dataset._reader, "sample", fail)
        (bad,) = dataset[0]["bad_samples"]
        assert bad.sample_id == "one"
        assert bad.kind == ("out of memory" if isinstance(error, MemoryError) else "cannot be read")
        dataset.on_bad_sample = "raise"
        with pytest.raises(XTunerError, match="sample 'one'"):
            dataset[0]
