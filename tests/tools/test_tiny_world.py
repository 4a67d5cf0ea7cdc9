"""The tiny world: same bytes for a seed, balanced questions, honest boxes, parts that the libraries load."""

from __future__ import annotations

import io
import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from safetensors.torch import load_file
from transformers import PreTrainedTokenizerFast

from tools.tiny_world import make, parts
from tools.tiny_world.boxes import detect
from tools.tiny_world.dice import Dice
from tools.tiny_world.drawing import draw, draw_indices, picture_name, png_bytes, shape_mask
from tools.tiny_world.questions import (
    KINDS,
    BalancedAsker,
    every_question,
    majority_baseline,
    reading_question,
)
from tools.tiny_world.records import pretrain_record, sft_records, world_words
from tools.tiny_world.report import accuracy_table, save_asked
from tools.tiny_world.scenes import COLOURS, LETTER_SIZE, LETTERS, SHAPES, THING_SIZE, Scene, Thing, caption, make_scene
from tools.tiny_world.tokenizer import build_tokenizer

SCENES = 60


def quiet() -> Console:
    return Console(file=io.StringIO())


def make_small(out: Path, console: Console | None = None) -> dict[str, Any]:
    """A small world with random parts: these tests are about the formats."""
    return make.make_world(out, 0, SCENES, console or quiet(), random_parts=True)


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [make_scene(0, "train", index) for index in range(400)]


def two_things() -> Scene:
    """A red circle at the top left, a blue ring at the bottom right of a square picture."""
    things = (
        Thing("circle", "red", (10, 12, 22, 24), "top left"),
        Thing("ring", "blue", (170, 165, 184, 179), "bottom right"),
    )
    return Scene("train_00000", 192, 192, things, None, (), (0, 0, 0, 1))


class TestDice:
    def test_known_values(self) -> None:
        """Written down once: any machine and numpy must give them."""
        dice = Dice(7, 1)
        assert [dice.below(100) for _ in range(8)] == [77, 11, 18, 15, 43, 50, 99, 30]

    def test_sample_has_no_repeats(self) -> None:
        assert sorted(Dice(1).sample(range(10), 10)) == list(range(10))


class TestScenes:
    def test_same_for_a_seed_and_different_otherwise(self) -> None:
        assert make_scene(3, "train", 5) == make_scene(3, "train", 5)
        assert make_scene(3, "train", 5).things != make_scene(4, "train", 5).things
        assert make_scene(3, "train", 5).things != make_scene(3, "test", 5).things

    def test_things_lie_inside_and_never_touch(self, scenes: list[Scene]) -> None:
        for scene in scenes:
            covered = np.zeros((scene.height, scene.width), int)
            for thing in (*scene.named_things, *scene.distractors):
                x1, y1, x2, y2 = thing.box
                assert 0 <= x1 < x2 <= scene.width and 0 <= y1 < y2 <= scene.height
                covered[y1:y2, x1:x2] += 1
            assert covered.max() == 1

    def test_place_is_the_quarter(self, scenes: list[Scene]) -> None:
        for scene in scenes:
            for thing in scene.named_things:
                x, y = (thing.box[0] + thing.box[2]) / 2, (thing.box[1] + thing.box[3]) / 2
                vertical = "top" if y < scene.height / 2 else "bottom"
                horizontal = "left" if x < scene.width / 2 else "right"
                assert thing.place == f"{vertical} {horizontal}"

    def test_caption_names_all(self) -> None:
        assert caption(two_things()) == "a red circle at the top left and a blue ring at the bottom right."


class TestDrawing:
    def test_png_decodes_to_the_drawn_picture(self) -> None:
        scene = make_scene(0, "train", 0)
        decoded = Image.open(io.BytesIO(png_bytes(draw_indices(scene))))
        assert np.array_equal(np.asarray(decoded.convert("RGB")), np.asarray(draw(scene)))

    def test_things_have_their_colour(self) -> None:
        pixels = np.asarray(draw(two_things())).astype(int)
        red, blue = pixels[18, 16], pixels[166, 177]
        assert red.argmax() == 0 and blue.argmax() == 2
        assert np.ptp(pixels[172, 177]) < 20, "the middle of a ring shows the ground"

    @pytest.mark.parametrize("kind", SHAPES)
    @pytest.mark.parametrize("side", THING_SIZE)
    def test_shapes_fill_their_box_and_are_mirrored(self, kind: str, side: int) -> None:
        mask = shape_mask(kind, side, side)
        assert mask.any(axis=0).all() and mask.any(axis=1).all()
        assert np.array_equal(mask, mask[:, ::-1])

    @pytest.mark.parametrize("side", THING_SIZE)
    def test_shapes_differ(self, side: int) -> None:
        masks = [shape_mask(kind, side, side) for kind in SHAPES]
        for number, mask in enumerate(masks):
            assert all((mask != other).mean() > 0.1 for other in masks[:number])

    def test_letters_differ(self) -> None:
        assert len({shape_mask(letter, *LETTER_SIZE).tobytes() for letter in LETTERS}) == len(LETTERS)


class TestQuestions:
    def test_answers_of_a_scene_worked_by_hand(self) -> None:
        answers = {question.text: question.answer for question in every_question(two_things())}
        assert answers["Is there a red circle?"] == "yes"
        assert answers["Is there a red ring?"] == "no"
        assert answers["How many blue things are there?"] == "1"
        assert answers["What colour is the ring?"] == "blue"
        assert answers["What shape is the red thing?"] == "circle"
        assert answers["Where is the blue ring?"] == "bottom right"
        assert not any("letter" in text for text in answers)

    def test_one_answer_per_question(self, scenes: list[Scene]) -> None:
        for scene in scenes:
            answers: dict[str, set[str]] = {}
            for question in every_question(scene):
                answers.setdefault(question.text, set()).add(question.answer)
            assert all(len(found) == 1 for found in answers.values())

    def test_guessing_does_not_pay(self, scenes: list[Scene]) -> None:
        asker = BalancedAsker(Dice(0))
        asked = [(q.kind, q.answer) for scene in scenes for q in asker.ask(scene)]
        baseline = majority_baseline(asked)
        assert set(baseline) == {*KINDS, "overall"}
        assert all(share <= 0.51 for share in baseline.values()), baseline
        assert baseline["overall"] <= 0.35

    def test_baseline_on_known_numbers(self) -> None:
        pairs = [("a", "x"), ("a", "x"), ("a", "y"), ("b", "z")]
        assert majority_baseline(pairs) == {"a": 2 / 3, "b": 1.0, "overall": 0.75}

    def test_reading_question_is_answered_by_its_text(self) -> None:
        for index in range(20):
            question = reading_question(Dice(index))
            told, asked = question.text.split(". ")
            known = asked.rstrip("?").split()
            key = known[-1] if "colour" in asked else known[-2]
            words = told.split()
            pairs = [words[n : n + 2] for n in range(len(words) - 1) if words[n] in COLOURS]
            pair = next(pair for pair in pairs if key in [word.rstrip(".") for word in pair])
            assert question.answer in [word.rstrip(".") for word in pair]


class TestBoxes:
    def test_most_things_are_found_near_their_place(self, scenes: list[Scene]) -> None:
        counts: Counter[str] = Counter()
        for scene in scenes:
            record = detect(scene, Dice(*scene.noise_keys, 4))
            assert len(record["boxes"]) == len(record["labels"]) == len(record["scores"])
            assert record["scores"] == sorted(record["scores"], reverse=True)
            assert record["image"] == picture_name(scene) and record["id"] == scene.name
            boxes = np.array(record["boxes"]).reshape(-1, 4)
            assert (boxes >= 0).all() and (boxes <= [scene.width, scene.height] * 2).all()
            assert (boxes[:, :2] < boxes[:, 2:]).all()
            for group, things in (("thing", scene.named_things), ("bar", scene.distractors)):
                for thing in things:
                    near = np.abs(boxes - thing.box).max(axis=1, initial=0) <= 1.8 + 1e-9
                    counts[group] += 1
                    counts[f"{group} found"] += bool(near.any())
        assert 0.92 < counts["thing found"] / counts["thing"] < 0.98
        assert 0.15 < counts["bar found"] / counts["bar"] < 0.35


class TestRecords:
    def test_pretrain_record_is_llava_json(self) -> None:
        record = pretrain_record(two_things())
        assert record["image"] == "images/train_00000.png"
        human, gpt = record["conversations"]
        assert human["from"] == "human" and human["value"].startswith("<image>\n")
        assert gpt == {"from": "gpt", "value": caption(two_things())}

    def test_sft_records_mix(self, scenes: list[Scene]) -> None:
        records = sft_records(scenes, 0)
        assert len({record["id"] for record in records}) == len(records)
        text_only = [record for record in records if "image" not in record]
        single = [r for r in records if "image" in r and len(r["conversations"]) == 2]
        assert 0.03 < len(text_only) / len(scenes) < 0.15
        assert 0.15 < len(single) / len(scenes) < 0.35
        for record in records:
            marks = sum(turn["value"].count("<image>") for turn in record["conversations"])
            assert marks == ("image" in record)


class TestTokenizer:
    def test_every_word_is_one_token(self) -> None:
        tokenizer = build_tokenizer()
        for word in world_words():
            assert len(tokenizer(word, add_special_tokens=False).input_ids) == 1, word

    def test_llama_like(self) -> None:
        tokenizer = build_tokenizer()
        assert (tokenizer.unk_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1, 2)
        assert tokenizer.pad_token_id == 0
        assert tokenizer("red").input_ids[0] == 1

    @pytest.mark.parametrize("text", ["a red circle, top left.", "\nIs there a ring?", "Grüße 42 ~ 音"])
    def test_round_trip(self, text: str) -> None:
        tokenizer = build_tokenizer()
        assert tokenizer.decode(tokenizer(text, add_special_tokens=False).input_ids) == text


class TestParts:
    def test_libraries_load_them(self, tmp_path: Path) -> None:
        import open_clip
        from transformers import AutoModelForCausalLM, AutoTokenizer, CLIPVisionModel

        for name in parts.PART_NAMES:
            parts.make_part(name, tmp_path / name, seed=0)
        llm = AutoModelForCausalLM.from_pretrained(tmp_path / "llm")
        tokenizer = AutoTokenizer.from_pretrained(tmp_path / "llm")
        assert llm.config.vocab_size == len(tokenizer) and llm.config.bos_token_id == tokenizer.bos_token_id
        clip = CLIPVisionModel.from_pretrained(tmp_path / "clip")
        assert (clip.config.image_size // clip.config.patch_size) == 6
        convnext = open_clip.create_model(f"local-dir:{tmp_path / 'convnext'}", require_pretrained=True)
        pixels = torch.zeros(1, 3, 192, 192)
        sides = [tuple(stage.shape[-2:]) for stage in convnext.visual.trunk.forward_intermediates(pixels)[1]]
        assert sides == [(48, 48), (24, 24), (12, 12), (6, 6)]

    def test_seed_decides_the_weights(self, tmp_path: Path) -> None:
        digests = []
        for number, seed in enumerate((1, 1, 2)):
            parts.make_part("clip", tmp_path / str(number), seed)
            digests.append((tmp_path / str(number) / "model.safetensors").read_bytes())
        assert digests[0] == digests[1] != digests[2]


class TestShippedParts:
    def ship(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Ships untrained parts to ``folder``."""
        monkeypatch.setattr(parts, "SHIPPED", folder)
        monkeypatch.setattr(make, "SHIPPED", folder)
        for name in parts.PART_NAMES:
            with parts.ship_part(name, folder / name, {"seed": 3, "out": folder}) as (partial, figures):
                parts.make_part(name, partial, seed=3)
                figures["right"] = 0.5

    def test_weights_in_half_precision_become_whole_again(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.ship(tmp_path / "shipped", monkeypatch)
        parts.check_shipped()
        parts.make_part("clip", tmp_path / "clip", seed=None)
        parts.make_part("clip", tmp_path / "same", seed=3)
        shipped, made, exact = (
            load_file(tmp_path / folder / "model.safetensors") for folder in ("shipped/clip", "clip", "same")
        )
        for name, value in exact.items():
            assert made[name].dtype == value.dtype
            if value.is_floating_point():
                assert shipped[name].dtype == torch.float16
                # float16 keeps 11 bits
                assert (made[name] - value).abs().max() <= 2**-11 * value.abs().max()

    def test_every_fault_is_named_with_its_command(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        shipped = tmp_path / "shipped"
        self.ship(shipped, monkeypatch)
        shutil.rmtree(shipped / "llm")
        note = json.loads((shipped / "clip" / "training.json").read_text())
        (shipped / "clip" / "training.json").write_text(json.dumps(note | {"version": 0}))
        with (shipped / "convnext" / "open_clip_model.safetensors").open("ab") as file:
            file.write(b"0")
        with pytest.raises(SystemExit) as caught:
            make.make_world(tmp_path / "world", 0, 4, quiet())
        said = str(caught.value)
        assert "llm: the pre-trained part is missing; make it: python tools/tiny_world/pretrain_llm.py" in said
        assert "made for version 0" in said and "pretrain_towers.py clip" in said
        assert "is not the file" in said and "pretrain_towers.py convnext" in said
        assert "--parts random" in said
        assert not (tmp_path / "world").exists()

    def test_a_training_that_fails_leaves_what_stood(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ship(tmp_path, monkeypatch)
        with pytest.raises(KeyboardInterrupt), parts.ship_part("clip", tmp_path / "clip", {}):
            raise KeyboardInterrupt
        parts.check_shipped()

    def test_those_of_the_repository_fit_this_world(self) -> None:
        parts.check_shipped()
        vocabulary = PreTrainedTokenizerFast.from_pretrained(parts.SHIPPED / "llm").get_vocab()
        assert vocabulary == build_tokenizer().get_vocab(), "retrain the LLM and raise PARTS_VERSION"
        size = sum(path.stat().st_size for path in parts.SHIPPED.rglob("*") if path.is_file())
        assert size <= 10 * 2**20


class TestMake:
    def test_same_bytes_reuse_and_repair(self, tmp_path: Path) -> None:
        first = make_small(tmp_path / "a")
        second = make_small(tmp_path / "b")
        assert first == second
        # A half-made folder: no manifest, a file cut off, a file too many.
        (tmp_path / "b" / "manifest.json").unlink()
        (tmp_path / "b" / "data" / "sft.json").write_text("[")
        (tmp_path / "b" / "data" / "images" / "train_99999.png").touch()
        assert make_small(tmp_path / "b") == first
        said = quiet()
        stamp = (tmp_path / "b" / "manifest.json").stat().st_mtime_ns
        make_small(tmp_path / "b", said)
        assert "reused" in said.file.getvalue()
        assert (tmp_path / "b" / "manifest.json").stat().st_mtime_ns == stamp

    def test_train_and_test_share_no_scene(self) -> None:
        made = make._scenes(0, 400)
        train = {(scene.things, scene.letter) for scene in made["train"]}
        assert all((scene.things, scene.letter) not in train for scene in made["test"])
        assert not {s.name for s in made["train"]} & {s.name for s in made["test"]}

    def test_known_bytes_of_the_data(self, tmp_path: Path) -> None:
        """Written down once: any machine must give them. WORLD_VERSION rises when they change."""
        make.make_data(tmp_path / "data", 0, 12, quiet())
        names = ("pretrain.json", "sft.json", "boxes.json", "test.json")
        digests = {name: parts.file_digest(tmp_path / "data" / name)[:12] for name in names}
        digests["png"] = parts.file_digest(tmp_path / "data" / "images" / "train_00000.png")[:12]
        assert digests == {
            "pretrain.json": "31ff5edbf06d",
            "sft.json": "83bf0f3ecd4b",
            "boxes.json": "1fcfc8da6724",
            "test.json": "790273eaee25",
            "png": "8811c653bfc7",
        }

    def test_refuses_a_foreign_folder(self, tmp_path: Path) -> None:
        (tmp_path / "thesis.txt").touch()
        with pytest.raises(SystemExit, match="not a tiny world"):
            make_small(tmp_path)
        assert (tmp_path / "thesis.txt").exists()


class TestReport:
    def test_question_and_table(self, tmp_path: Path) -> None:
        manifest = {"majority_baseline": {"exist": 0.5, "overall": 0.5}}
        world, image = tmp_path / "world", "images/test_00000.png"
        (world / "data" / "images").mkdir(parents=True)
        (world / "manifest.json").write_text(json.dumps(manifest))
        (world / "data" / image).write_bytes(png_bytes(draw_indices(two_things())))
        question = {"id": "q", "image": image, "kind": "exist"}
        question |= {"question": "Is there a red circle?", "answer": "yes"}
        (world / "data" / "test.json").write_text(json.dumps([question]))
        record = {"image": image, "boxes": [[10, 12, 22, 24]], "labels": ["circle"], "scores": [0.9]}
        (world / "data" / "boxes.json").write_text(json.dumps([record]))
        save_asked(world, 0, tmp_path / "asked")
        assert (tmp_path / "asked" / "question.txt").read_text() == "Is there a red circle?\n"
        assert json.loads((tmp_path / "asked" / "boxes.json").read_text()) == [record]
        with pytest.raises(SystemExit, match="questions 0 to 0"):
            save_asked(world, 1, tmp_path / "asked")
        metrics = tmp_path / "metrics.json"
        metrics.write_text(json.dumps({"overall": 0.75, "groups": {"kind": {"exist": 0.75}}}))
        printed = quiet()
        printed.print(accuracy_table(world, metrics))
        assert "75.0%" in printed.file.getvalue() and "50.0%" in printed.file.getvalue()
