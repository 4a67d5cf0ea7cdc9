"""Rows of one batch answer as each would alone; they join, leave, are refused, and fail alone."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from mg_llava.inference.assistant import Assistant
from mg_llava.inference.prompts import Prompt, as_picture_boxes
from mg_llava.pictures.pooling import ImageTokens
from mg_llava.serving.generation.batch import RowBatch
from mg_llava.serving.generation.batch_engine import BatchEngine
from mg_llava.serving.generation.sampling import Draw, Sampling
from mg_llava.serving.generation.text import TextAssembler
from mg_llava.serving.generation.tickets import Departed, Overloaded
from tests.mg_llava.serving.conftest import noise
from xtuner.data.text.templates import Turn
from xtuner.errors import XTunerError

BOXES = as_picture_boxes([[2, 3, 20, 25], [10, 5, 38, 28]])


def prompts(assistant: Assistant) -> list[Prompt]:
    return [
        assistant.prepare([Turn("<image>\nIs it red")], [noise(0)], [BOXES]),
        assistant.prepare([Turn("what")]),
        assistant.prepare([Turn("<image>\n<image>\nIs it blue dog")], [noise(1), noise(2)], [None, BOXES]),
        assistant.prepare([Turn("dog cat dog cat dog")]),
    ]


@pytest.fixture
def engine(assistant: Assistant) -> Iterator[BatchEngine]:
    engine = BatchEngine(assistant, max_batch=3, max_queue=4, max_wait=20)
    yield engine
    engine.close()


def alone(assistant: Assistant, prompt: Prompt, count: int) -> list[int]:
    batch = {"input_ids": torch.tensor([prompt.input_ids]), "pixel_values": prompt.pixel_values, "boxes": prompt.boxes}
    ids = assistant.model.generate(**batch, **assistant.greedy(count))[0].tolist()
    stops = assistant.stop_ids()
    return ids[: next((place for place, token in enumerate(ids) if token in stops), len(ids))]


class TestAnswers:
    def test_together_as_alone(self, assistant: Assistant, engine: BatchEngine) -> None:
        """Four requests in three places, of other lengths: the fourth joins when one has left."""
        wanted = [3, 9, 6, 12]
        tickets = [engine.submit(p, Sampling(n)) for p, n in zip(prompts(assistant), wanted, strict=True)]
        for ticket, prompt, count in zip(tickets, prompts(assistant), wanted, strict=True):
            assert list(ticket) == alone(assistant, prompt, count)
            assert ticket.reason in ("stop", "length")
        assert engine.load()["running"] == 0 and len(engine._rows) == 0

    def test_one_that_joins_in_the_middle_changes_nothing(self, assistant: Assistant) -> None:
        """By hand, so that the moment is certain: two rows make three tokens, then a longer and a shorter one join."""
        rows, all_prompts = RowBatch(assistant.model), prompts(assistant)
        from mg_llava.inference.assistant import collate_prompts

        answers: list[list[int]] = [[], [], [], []]
        draw = Draw(Sampling())
        with torch.inference_mode():
            rows.join(collate_prompts(all_prompts[1:3], 0))
            order = [1, 2]
            for step in range(8):
                for number, token in zip(order, rows.sample([draw] * len(order)), strict=True):
                    answers[number].append(token)
                if step == 5:
                    rows.keep([0, 2, 3])
                    order = [order[0], *order[2:]]
                rows.step([answers[number][-1] for number in order])
                if step == 2:
                    rows.join(collate_prompts([all_prompts[0], all_prompts[3]], 0))
                    order += [0, 3]
        for number in (0, 1, 3):
            batch = {"input_ids": torch.tensor([all_prompts[number].input_ids])}
            batch |= {"pixel_values": all_prompts[number].pixel_values, "boxes": all_prompts[number].boxes}
            expected = assistant.model.generate(**batch, max_new_tokens=8, do_sample=False, eos_token_id=None)
            assert answers[number] == expected[0, : len(answers[number])].tolist()

    def test_draws_repeat_with_a_seed(self, assistant: Assistant, engine: BatchEngine) -> None:
        prompt = prompts(assistant)[0]

        def draw(seed: int) -> list[int]:
            return list(engine.submit(prompt, Sampling(12, temperature=2.0, seed=seed)))

        assert draw(1) == draw(1)
        assert len({tuple(draw(seed)) for seed in range(4)}) > 1


class TestOverload:
    def test_a_full_queue_refuses_at_once(self, assistant: Assistant, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(assistant, "stop_ids", lambda: [])
        engine = BatchEngine(assistant, max_batch=1, max_queue=2)
        prompt = prompts(assistant)[1]
        tickets = [engine.submit(prompt, Sampling(200))]
        tickets[0].next_event(10)
        tickets += [engine.submit(prompt, Sampling(5)) for _ in range(2)]
        with pytest.raises(Overloaded, match="2 requests are already waiting") as error:
            engine.submit(prompt, Sampling(5))
        assert not error.value.waited
        # one that goes away makes room, waiting or running
        tickets[1].cancel()
        tickets.append(engine.submit(prompt, Sampling(5)))
        tickets[0].cancel()
        assert len(list(tickets[2])) == 5 and len(list(tickets[3])) == 5
        assert tickets[0].reason == "cancelled" and len(tickets[0].ids) < 200
        engine.close()

    def test_one_that_waited_too_long_is_refused(self, assistant: Assistant, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(assistant, "stop_ids", lambda: [])
        engine = BatchEngine(assistant, max_batch=1, max_queue=2, max_wait=0.05)
        first = engine.submit(prompts(assistant)[1], Sampling(150))
        first.next_event(10)
        late = engine.submit(prompts(assistant)[1], Sampling(5))
        with pytest.raises(Overloaded, match="waited") as error:
            list(late)
        assert error.value.waited
        first.cancel()
        engine.close()

    def test_a_place_is_held_while_pictures_are_read(self, assistant: Assistant) -> None:
        engine = BatchEngine(assistant, max_batch=1, max_queue=1)
        prompt = prompts(assistant)[1]
        with engine.admit() as first, engine.admit():
            for refused in (engine.admit().__enter__, lambda: engine.submit(prompt, Sampling(5))):
                with pytest.raises(Overloaded, match="2 requests are already waiting"):
                    refused()
            ticket = engine.submit(prompt, Sampling(5), first)
        # one became an answer, the other was given up
        assert len(list(ticket)) <= 5 and engine.load()["waiting"] == 0
        engine.close()

    def test_the_time_counts_from_arrival(self, assistant: Assistant) -> None:
        """What the reading of its pictures took is gone from the time that a request may wait."""
        engine = BatchEngine(assistant, max_batch=1, max_queue=3, max_wait=30)
        prompt = prompts(assistant)[1]
        with engine.admit() as place:
            place.check()
            place.deadline -= 31
            with pytest.raises(Overloaded, match="waited") as error:
                place.check()
            late = engine.submit(prompt, Sampling(5), place)
        assert error.value.waited
        with pytest.raises(Overloaded, match="waited"):
            list(late)
        with engine.admit() as place:
            place.leave()
            with pytest.raises(Departed):
                place.check()
        assert engine.load()["waiting"] == 0
        engine.close()

    def test_after_the_end(self, assistant: Assistant) -> None:
        engine = BatchEngine(assistant)
        engine.close()
        assert not engine.healthy
        with pytest.raises(Overloaded, match="stopping"):
            engine.submit(prompts(assistant)[1], Sampling(5))


class TestFailure:
    def test_those_concerned_are_told_and_the_next_is_answered(
        self, assistant: Assistant, engine: BatchEngine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        prompt = prompts(assistant)[1]

        def fail(*_: object, **__: object) -> None:
            raise RuntimeError("out of memory")

        with monkeypatch.context() as patch:
            patch.setattr(assistant.model, "embed", fail)
            with pytest.raises(XTunerError, match="the model failed: out of memory"):
                list(engine.submit(prompt, Sampling(5)))
        assert list(engine.submit(prompt, Sampling(5))) == alone(assistant, prompt, 5)

    def test_a_row_whose_step_fails_is_dropped_alone(
        self, assistant: Assistant, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The language model fails, after its first layer wrote to the cache, at the second row's third token."""
        monkeypatch.setattr(assistant, "stop_ids", list)
        engine = BatchEngine(assistant, max_batch=4)
        forward, poison = assistant.model.llm.forward, threading.Event()
        layer = assistant.model.llm.model.layers[-1]
        poisoned_rows: list[int] = []

        def fail_with_it(*arguments: Any, **keywords: Any) -> Any:
            mask = keywords.get("attention_mask")
            if poison.is_set() and mask is not None and keywords.get("input_ids") is not None:
                lengths = mask.sum(1).tolist()
                if any(length == poisoned for length in lengths for poisoned in poisoned_rows):
                    with pytest.MonkeyPatch.context() as patch:
                        patch.setattr(layer, "forward", raise_error)
                        return forward(*arguments, **keywords)
            return forward(*arguments, **keywords)

        def raise_error(*_: Any, **__: Any) -> Any:
            raise RuntimeError("poisoned")

        monkeypatch.setattr(assistant.model.llm, "forward", fail_with_it)
        chosen = prompts(assistant)
        # the shortest row is told from the others by its length, after two tokens
        poisoned_rows.append(chosen[1].num_tokens(ImageTokens(4, 4)) + 2)
        assert all(chosen[row].num_tokens(ImageTokens(4, 4)) > poisoned_rows[0] for row in (0, 2))
        poison.set()
        tickets = [engine.submit(chosen[row], Sampling(12)) for row in (0, 1, 2)]
        with pytest.raises(XTunerError, match="the model failed: poisoned"):
            list(tickets[1])
        poison.clear()
        for ticket, row in ((tickets[0], 0), (tickets[2], 2)):
            expected = assistant.model.generate(
                input_ids=torch.tensor([chosen[row].input_ids]),
                pixel_values=chosen[row].pixel_values,
                boxes=chosen[row].boxes,
                max_new_tokens=12,
                do_sample=False,
                eos_token_id=None,
            )
            assert list(ticket) == expected[0].tolist()
        assert len(tickets[1].ids) == 2 and tickets[1].reason == "failed"
        engine.close()

    def test_out_of_memory_drops_the_last_row(self, assistant: Assistant, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(assistant, "stop_ids", list)
        engine = BatchEngine(assistant, max_batch=4)
        step = RowBatch.step

        def small(batch: RowBatch, tokens: list[int]) -> None:
            if len(tokens) > 2:
                raise torch.OutOfMemoryError("of 80 GB")
            step(batch, tokens)

        monkeypatch.setattr(RowBatch, "step", small)
        tickets = [engine.submit(prompts(assistant)[1], Sampling(100)) for _ in range(2)]
        tickets[1].next_event(10)
        last = engine.submit(prompts(assistant)[1], Sampling(100))
        with pytest.raises(XTunerError, match="of 80 GB"):
            list(last)
        assert [len(list(ticket)) for ticket in tickets] == [100, 99]
        engine.close()

    @pytest.mark.parametrize("fault", ["embed", "collate"])
    def test_a_prompt_that_cannot_be_read_fails_alone(
        self, assistant: Assistant, engine: BatchEngine, monkeypatch: pytest.MonkeyPatch, fault: str
    ) -> None:
        chosen = prompts(assistant)
        bad = replace(chosen[0], boxes=[torch.zeros(3, 7)])
        if fault == "collate":
            bad = replace(chosen[0], pixel_values=torch.zeros((1, 3, 5, 5), dtype=torch.uint8))
        held = threading.Event()
        choose = engine._choose

        def together() -> Any:
            held.wait(10)
            return choose()

        monkeypatch.setattr(engine, "_choose", together)
        tickets = [engine.submit(prompt, Sampling(6)) for prompt in (chosen[1], bad, chosen[2])]
        held.set()
        with pytest.raises(XTunerError, match="the model failed"):
            list(tickets[1])
        assert list(tickets[0]) == alone(assistant, chosen[1], 6)
        assert list(tickets[2]) == alone(assistant, chosen[2], 6)

    @pytest.mark.parametrize(
        "sampling",
        [
            Sampling(6, temperature=1.0, top_p=0.0),
            Sampling(6, temperature=1.0, top_p=1e-320),
            Sampling(6, temperature=1e-320),
            Sampling(6, temperature=1e-30, top_p=0.5),
            Sampling(6, temperature=float("nan")),
            Sampling(6, temperature=1.0, top_p=float("nan")),
            Sampling(6, temperature=float("inf")),
            Sampling(6, temperature=1e300),
            Sampling(6, temperature=-1.0),
            Sampling(6, temperature=1.0, top_p=-1.0),
            Sampling(6, temperature=1.0, seed=-(2**63)),
            Sampling(6, presence_penalty=float("nan")),
            Sampling(6, temperature=1.0, frequency_penalty=float("inf")),
            Sampling(6, presence_penalty=-1e300, frequency_penalty=1e300),
        ],
    )
    def test_no_sampling_fails_the_others(self, assistant: Assistant, engine: BatchEngine, sampling: Sampling) -> None:
        """Even what the endpoint refuses: the engine does not rely on it."""
        prompt = prompts(assistant)[2]
        first = engine.submit(prompt, Sampling(12))
        bad = engine.submit(prompts(assistant)[1], sampling)
        with contextlib.suppress(XTunerError):
            list(bad)
        assert list(first) == alone(assistant, prompt, 12)
        assert engine.healthy

    def test_a_seed_of_65_bits(self, assistant: Assistant, engine: BatchEngine) -> None:
        for seed in (2**64, -(2**63) - 1, 10**400):
            with pytest.raises(XTunerError, match="signed 64-bit"):
                engine.submit(prompts(assistant)[1], Sampling(6, seed=seed))

    def test_a_prompt_beyond_the_context(self, assistant: Assistant, engine: BatchEngine) -> None:
        with pytest.raises(XTunerError, match="too many"):
            engine.submit(assistant.prepare([Turn("what " * 600)]), Sampling(5))
        near = assistant.prepare([Turn("what " * 500)])
        assert engine.submit(near, Sampling(500)).sampling.max_new_tokens == 512 - len(near.input_ids)


def test_many_threads(assistant: Assistant) -> None:
    engine = BatchEngine(assistant, max_batch=4, max_queue=100)
    prompt = prompts(assistant)[0]
    expected, found = alone(assistant, prompt, 6), []

    def ask() -> None:
        found.append(list(engine.submit(prompt, Sampling(6))))

    threads = [threading.Thread(target=ask) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert found == [expected] * 12
    deadline = time.monotonic() + 5
    while engine.load()["running"] and time.monotonic() < deadline:
        time.sleep(0.01)
    assert engine.load()["running"] == 0
    engine.close()


class TestText:
    def pieces(self, assistant: Assistant, words: str, *stops: str) -> tuple[list[str], TextAssembler]:
        assembler = TextAssembler(assistant.tokenizer, stops)
        found = [assembler.add(token) for token in assistant.tokenizer(words, add_special_tokens=False)["input_ids"]]
        return [*found, assembler.finish()], assembler

    def test_pieces_are_the_text(self, assistant: Assistant) -> None:
        found, assembler = self.pieces(assistant, "red dog yes what A B C D red blue no it Is")
        assert "".join(found) == assembler.text == "red dog yes what A B C D red blue no it Is"

    def test_a_stop_text_ends_it_and_is_held_back(self, assistant: Assistant) -> None:
        found, assembler = self.pieces(assistant, "red dog yes what", "yes what")
        assert "".join(found) == "red dog " and assembler.stopped
        found, assembler = self.pieces(assistant, "red dog yes it", "yes what")
        assert "".join(found) == "red dog yes it" and found[2] == " "
