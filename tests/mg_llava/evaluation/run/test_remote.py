"""A model behind an endpoint: this project's server gives the local answers; a server that fails loses none."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")

from mg_llava.evaluation import EvaluationRunner
from mg_llava.evaluation.run.remote import data_url
from mg_llava.inference.assistant import Assistant
from mg_llava.serving.app import make_app
from mg_llava.serving.requests.settings import Limits
from mg_llava.serving.vllm.boxed import split_boxes
from tests.mg_llava.evaluation.world import TEXTS, bench, make_world, runner
from tests.mg_llava.serving.conftest import serve
from tests.stub_endpoint import Stub, stub_endpoint
from tests.tiny_assistant import randomize, tiny_assistant
from xtuner.errors import XTunerError
from xtuner.evaluation.endpoint import Endpoint, find_model

FACTS = {"config": "tiny"}


@pytest.fixture(scope="module")
def assistant(tmp_path_factory: pytest.TempPathFactory) -> Assistant:
    return randomize(tiny_assistant(tmp_path_factory.mktemp("remote"))[0])


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_world(tmp_path_factory.mktemp("world"), [*TEXTS, *(f"w{number} ?" for number in range(20))])


@pytest.fixture(scope="module")
def server(assistant: Assistant) -> Iterator[str]:
    # fewer rows than requests, and a short queue: some must come again
    with serve(make_app(assistant, Limits(max_batch=2, max_queue=2), model_name="tiny")) as address:
        yield f"{address}/v1"


@pytest.fixture
def stub() -> Iterator[Stub]:
    with stub_endpoint(lambda content: "dog") as found:
        yield found


def remote(assistant: Assistant, endpoint: Endpoint, boxes: Any = "send") -> EvaluationRunner:
    return EvaluationRunner(
        tokenizer={},
        image_processor=assistant.image_processor,
        prompt_template="vicuna",
        boxes=assistant.boxes,
        endpoint=endpoint,
        endpoint_boxes=boxes,
    )


def lines(folder: Path) -> str:
    return (folder / "predictions.jsonl").read_text(encoding="utf-8")


class TestThisProjectsServer:
    def test_answers_are_the_local_ones(self, assistant: Assistant, world: Path, server: str, tmp_path: Path) -> None:
        local = runner(assistant).run(bench(world), tmp_path / "local", FACTS)
        model, takes_boxes = find_model(server, None, None)
        assert (model, takes_boxes) == ("tiny", True)
        found = remote(assistant, Endpoint(server, model, retries=40)).run(bench(world), tmp_path / "far", FACTS)
        assert lines(tmp_path / "far") == lines(tmp_path / "local")
        assert {found[key] == local[key] for key in ("overall", "groups", "uncertainty", "prompts_sha256")} == {True}
        assert found["model"] == "tiny" and found["endpoint"] == server and found["boxes_sent"] is True

    def test_boxes_change_answers(self, assistant: Assistant, world: Path, server: str, tmp_path: Path) -> None:
        answers = []
        for boxes in ("send", "omit"):
            run = remote(assistant, Endpoint(server, "tiny", retries=40), boxes)
            run.run(bench(world), tmp_path / boxes, FACTS)
            answers.append(lines(tmp_path / boxes))
        assert answers[0] != answers[1]

    def test_a_prompt_over_the_context_is_that_questions_error(
        self, assistant: Assistant, server: str, tmp_path: Path
    ) -> None:
        context = assistant.model.llm.config.max_position_embeddings
        folder = make_world(tmp_path / "long", ["Is it red ?", "red " * (context + 1), "what"])
        metrics = remote(assistant, Endpoint(server, "tiny", retries=40)).run(bench(folder), tmp_path / "out", FACTS)
        assert metrics["num_failed"] == 1 and metrics["num_questions"] == 3
        rows = [json.loads(line) for line in lines(tmp_path / "out").splitlines()]
        assert "the model's context is" in rows[1]["error"] and rows[1]["hit"] == 0.0
        assert rows[0]["output"] and "error" not in rows[2]


class TestOtherServers:
    def ask(self, assistant: Assistant, world: Path, stub: Stub, out: Path, **more: Any) -> dict[str, Any]:
        endpoint = Endpoint(stub.url, more.pop("model", "m"), retries=0, parallel=1)
        return remote(assistant, endpoint, more.pop("boxes", "omit")).run(bench(world), out, FACTS)

    def test_nothing_that_only_our_server_knows_is_sent(
        self, assistant: Assistant, world: Path, stub: Stub, tmp_path: Path
    ) -> None:
        assert self.ask(assistant, world, stub, tmp_path)["overall"] == 1.0
        assert all(set(one) == {"path", "model", "messages", "max_tokens", "temperature"} for one in stub.requests)
        parts = stub.requests[0]["messages"][0]["content"]
        assert [set(part) for part in parts] == [{"type", "image_url"}, {"type", "text"}]
        assert parts[0]["image_url"]["url"].startswith("data:image/png;base64,")
        # number 4 has no picture
        assert [part["type"] for part in stub.requests[4]["messages"][0]["content"]] == ["text"]

    def test_vllm_gets_boxes_in_the_url(self, assistant: Assistant, world: Path, stub: Stub, tmp_path: Path) -> None:
        found = self.ask(assistant, world, stub, tmp_path, boxes="url")
        assert found["boxes_sent"] and found["boxes_in_url"]
        part = stub.requests[0]["messages"][0]["content"][0]
        assert set(part) == {"type", "image_url"} and "detect_boxes" not in stub.requests[0]
        address, boxes = split_boxes(part["image_url"]["url"])
        assert address.startswith("data:image/png;base64,") and boxes is not None and len(boxes.boxes)

    def test_down_in_the_middle_goes_on_later(
        self, assistant: Assistant, world: Path, stub: Stub, tmp_path: Path
    ) -> None:
        whole = self.ask(assistant, world, stub, tmp_path / "whole")
        stub.requests.clear()
        stub.statuses = [200] * 5 + [503] * 99
        with pytest.raises(XTunerError, match="answers so far are kept"):
            self.ask(assistant, world, stub, tmp_path / "cut")
        assert len(lines(tmp_path / "cut").splitlines()) == 5
        assert not (tmp_path / "cut" / "metrics.json").exists()
        stub.statuses = []
        stub.requests.clear()
        assert self.ask(assistant, world, stub, tmp_path / "cut") == whole
        assert len(stub.requests) == 22 and lines(tmp_path / "cut") == lines(tmp_path / "whole")

    def test_another_models_answers_are_not_taken(
        self, assistant: Assistant, world: Path, stub: Stub, tmp_path: Path
    ) -> None:
        stub.answers_as = "m-mini"
        with pytest.raises(XTunerError, match="answers as 'm-mini' where 'm' was asked"):
            self.ask(assistant, world, stub, tmp_path / "a")
        assert self.ask(assistant, world, stub, tmp_path / "b", model="m=m-mini")["model"] == "m"
        stub.answers_as = "m-2024-08-06"
        assert self.ask(assistant, world, stub, tmp_path / "c")["overall"] == 1.0

    def test_a_server_that_refuses_everything_is_not_asked_everything(
        self, assistant: Assistant, world: Path, stub: Stub, tmp_path: Path
    ) -> None:
        stub.statuses, stub.refusal = [400] * 99, {"error": {"message": "no pictures here"}}
        with pytest.raises(XTunerError, match="none of 16 questions could be asked.*no pictures here"):
            self.ask(assistant, world, stub, tmp_path)
        assert len(stub.requests) < 20

    def test_what_was_refused_is_asked_again(
        self, assistant: Assistant, world: Path, stub: Stub, tmp_path: Path
    ) -> None:
        stub.statuses = [200, 400]
        assert self.ask(assistant, world, stub, tmp_path)["num_failed"] == 1
        assert self.ask(assistant, world, stub, tmp_path)["num_failed"] == 0 and len(stub.requests) == 28


class TestDataUrl:
    @pytest.mark.parametrize(("kind", "sent"), [("PNG", "png"), ("JPEG", "jpeg"), ("BMP", "png"), ("TIFF", "png")])
    def test_formats(self, kind: str, sent: str) -> None:
        picture = Image.effect_noise((9, 7), 50).convert("RGB")
        stream = io.BytesIO()
        picture.save(stream, kind)
        with Image.open(io.BytesIO(stream.getvalue())) as opened:
            rgb = opened.convert("RGB")
        head, _, text = data_url(stream.getvalue(), rgb).partition(",")
        assert head == f"data:image/{sent};base64"
        with Image.open(io.BytesIO(base64.b64decode(text))) as read:
            assert read.convert("RGB").tobytes() == rgb.tobytes()


def test_neither_model_nor_endpoint(assistant: Assistant) -> None:
    with pytest.raises(XTunerError, match="neither a model nor an endpoint"):
        EvaluationRunner({}, assistant.image_processor, "vicuna")
