"""The engine that asks vLLM, before a stub of it: answers are the own engine's, and what fails there is said here."""

from __future__ import annotations

import base64
import json
import math
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="fastapi is not installed: pip install '.[serve]'")

from mg_llava.inference.assistant import Assistant  # noqa: E402
from mg_llava.inference.messages import read_messages  # noqa: E402
from mg_llava.inference.prompts import as_picture_boxes  # noqa: E402
from mg_llava.inference.video_sources import read_video_source  # noqa: E402
from mg_llava.serving.generation.batch_engine import BatchEngine  # noqa: E402
from mg_llava.serving.generation.sampling import Sampling  # noqa: E402
from mg_llava.serving.generation.tickets import Overloaded, Place, Refused  # noqa: E402
from mg_llava.serving.page.actions import Given, Page  # noqa: E402
from mg_llava.serving.proxy import child as module  # noqa: E402
from mg_llava.serving.proxy.checks import check_reading  # noqa: E402
from mg_llava.serving.proxy.child import Child  # noqa: E402
from mg_llava.serving.proxy.engine import ProxyEngine  # noqa: E402
from mg_llava.serving.proxy.prompts import PromptSender  # noqa: E402
from mg_llava.serving.proxy.upstream import Upstream  # noqa: E402
from mg_llava.serving.requests.chat import RequestReader  # noqa: E402
from mg_llava.serving.requests.settings import Limits  # noqa: E402
from tests.clips import write_clip  # noqa: E402
from tests.mg_llava.serving.conftest import data_url, found_cup, noise, proxied, serve  # noqa: E402
from tests.stub_vllm import StubVLLM  # noqa: E402
from xtuner.data.text.templates import Turn  # noqa: E402
from xtuner.errors import XTunerError  # noqa: E402

LIMITS = Limits(max_batch=2, max_queue=3, max_new_tokens=6)


@pytest.fixture(scope="module")
def engine(assistant: Assistant, exported: Path) -> Iterator[ProxyEngine]:
    with proxied(assistant, exported, LIMITS) as engine:
        yield engine


def asked(engine: ProxyEngine, words: str = "what") -> Any:
    return engine.prepare(read_messages([{"role": "user", "content": words}], lambda _: None), [])  # type: ignore[arg-type,return-value]


def idle(engine: ProxyEngine) -> bool:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if not engine.load()["running"] and not engine.stub.engine.load()["running"]:  # type: ignore[attr-defined]
            return True
        time.sleep(0.02)
    return False


class TestAnswers:
    def test_ids_are_the_own_engines_and_the_end_is_no_part_of_them(
        self, assistant: Assistant, engine: ProxyEngine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (words,) = assistant.generate([assistant.prepare([Turn("what")])], 6)
        ticket = engine.submit(asked(engine), Sampling(6))
        ids = list(ticket)
        assert assistant.decode(ids) == words
        # the third token ends the answer
        monkeypatch.setattr(assistant, "stop_ids", lambda: [ids[2]])
        ended = engine.submit(asked(engine), Sampling(6))
        assert list(ended) == ids[: ids.index(ids[2])] and ended.reason == "stop"

    def test_a_share_of_nothing_is_the_likeliest_token(self, engine: ProxyEngine) -> None:
        greedy = list(engine.submit(asked(engine), Sampling(6)))
        assert list(engine.submit(asked(engine), Sampling(6, temperature=1.5, top_p=0.0))) == greedy

    def test_the_stop_words_of_the_template_are_sent(self, engine: ProxyEngine) -> None:
        list(engine.submit(asked(engine), Sampling(3, stop=("red", "</s>"))))
        body = engine.stub.bodies[-1]  # type: ignore[attr-defined]
        assert body["stop"] == ["red", "</s>"] and body["max_tokens"] == 3 and body["return_token_ids"]

    def test_an_answer_ends_where_the_context_of_the_server_does(self, engine: ProxyEngine) -> None:
        prompt = asked(engine)
        engine.context = engine.num_tokens(prompt) + 2
        try:
            assert len(list(engine.submit(prompt, Sampling(6)))) <= 2
            with pytest.raises(XTunerError, match=r"but the model's context is .*too many"):
                engine.submit(asked(engine, "what what what what"), Sampling(6))
        finally:
            engine.context = 512

    def test_one_that_is_cancelled_is_broken_off_there(
        self, assistant: Assistant, engine: ProxyEngine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(assistant, "stop_ids", lambda: [])
        ticket = engine.submit(asked(engine), Sampling(480))
        next(iter(ticket))
        ticket.cancel()
        assert idle(engine) and ticket.reason == "cancelled" and len(ticket.ids) < 480


class TestVideos:
    def test_vllm_is_shown_the_very_frames_and_boxes(
        self, assistant: Assistant, engine: ProxyEngine, tmp_path: Path
    ) -> None:
        content = write_clip(tmp_path / "a.mp4", count=16, size=(40, 30)).read_bytes()
        url = f"data:video/mp4;base64,{base64.b64encode(content).decode()}"
        parts = [{"type": "image_url", "image_url": {"url": data_url(noise())}}]
        parts += [{"type": "video_url", "video_url": {"url": url}}, {"type": "text", "text": "Is it red"}]
        body = json.dumps({"messages": [{"role": "user", "content": parts}], "max_tokens": 6}).encode()
        detector: Any = SimpleNamespace(look=lambda picture, _: found_cup([picture])[0])
        own = BatchEngine(assistant)
        try:
            for finder, frames in ((None, 8), (detector, 5)):
                limits = replace(LIMITS, max_frames=frames)
                one = RequestReader(own, "tiny", limits, finder).read(body, Place(math.inf))
                other = RequestReader(engine, "tiny", limits, finder).read(body, Place(math.inf))
                assert engine.num_tokens(other.prompt) == own.num_tokens(one.prompt)
                assert other.prompt.size == one.prompt.size() and other.prompt.size.frames == frames
                assert list(engine.submit(other.prompt, other.sampling)) == list(own.submit(one.prompt, one.sampling))
        finally:
            own.close()

    def test_frames_without_their_video(self, engine: ProxyEngine) -> None:
        parts = [{"type": "video"}, {"type": "text", "text": "what"}]
        frames = read_video_source([noise()])
        read = read_messages([{"role": "user", "content": parts}], lambda _: None, open_video=lambda _: frames)  # type: ignore[arg-type,return-value]
        with pytest.raises(XTunerError, match="has 1 frame of videos, but the videos given have 0"):
            engine.prepare(read, [])


class TestFaults:
    def test_what_vllm_refuses_is_a_refusal(self, engine: ProxyEngine, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(engine, "model", "other")
        with pytest.raises(Refused, match="vLLM: The model `other` does not exist"):
            list(engine.submit(asked(engine), Sampling(2)))
        assert engine.healthy

    def test_a_server_that_sends_no_ids(self, engine: ProxyEngine, monkeypatch: pytest.MonkeyPatch) -> None:
        events = [{"choices": [{"delta": {"content": "a"}, "finish_reason": None}]}]
        monkeypatch.setattr(engine.upstream, "stream", lambda *_: iter(events))
        with pytest.raises(XTunerError, match="sends no token_ids"):
            list(engine.submit(asked(engine), Sampling(2)))

    def test_a_stream_without_an_end_and_an_odd_one(self, engine: ProxyEngine, monkeypatch: pytest.MonkeyPatch) -> None:
        for events, message in (
            ([], "has no end"),
            ([{"choices": [{"finish_reason": "abort", "token_ids": []}]}], "'abort'"),
        ):
            monkeypatch.setattr(engine.upstream, "stream", lambda *_, events=events: iter(events))
            with pytest.raises(XTunerError, match=message):
                list(engine.submit(asked(engine), Sampling(2)))
        monkeypatch.setattr(engine.upstream, "stream", lambda *_: iter([{"choices": [1]}]))
        with pytest.raises(XTunerError, match="the request to vLLM failed"):
            list(engine.submit(asked(engine), Sampling(2)))

    def test_nothing_answers(self, exported: Path) -> None:
        engine = ProxyEngine(PromptSender(exported), Upstream("http://127.0.0.1:9"), "tiny", 512, max_batch=1)
        assert not engine.healthy
        with pytest.raises(XTunerError, match=r"vLLM at http://127.0.0.1:9 does not answer"):
            list(engine.submit(asked(engine), Sampling(2)))
        engine.close()

    def test_waiting_too_long_and_closing(
        self, assistant: Assistant, exported: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(assistant, "stop_ids", lambda: [])
        with proxied(assistant, exported, Limits(max_batch=1, max_queue=2, max_wait=0.1)) as engine:
            first = engine.submit(asked(engine), Sampling(480))
            next(iter(first))
            late = engine.submit(asked(engine), Sampling(2))
            with pytest.raises(Overloaded, match="waited too long"):
                list(late)
            engine.close()
            with pytest.raises(Overloaded, match="is stopping"):
                list(first)
            with pytest.raises(Overloaded, match="is stopping"):
                engine.submit(asked(engine), Sampling(2))


class TestTheSameModel:
    def test_its_ids_are_compared(self, assistant: Assistant, exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        stub, sender = StubVLLM(assistant, exported, key="a key"), PromptSender(exported)
        with serve(stub.app()) as url:
            check_reading(Upstream(url, "a key"), "tiny", sender)
            with pytest.raises(XTunerError, match="wants another API key"):
                check_reading(Upstream(url), "tiny", sender)
            monkeypatch.setattr(stub, "_prompt_ids", lambda _: [1, 2, 3])
            with pytest.raises(XTunerError, match="makes 3 ids of a question .*serves another model"):
                check_reading(Upstream(url, "a key"), "tiny", sender)
            monkeypatch.setattr(stub, "_prompt_ids", lambda _: None)
            with pytest.raises(XTunerError, match="makes no ids of a question"):
                check_reading(Upstream(url, "a key"), "tiny", sender)
        stub.close()


def test_the_page(assistant: Assistant, engine: ProxyEngine, tmp_path: Path) -> None:
    """Its buttons do what they do with the own engine; regions are refused by name."""
    picture = tmp_path / "noise.png"
    noise().save(picture)
    page = Page(engine, LIMITS, found_cup, str(tmp_path))
    *_, (turns, _) = page.answer(Given(str(picture)), [], "Is it red")
    found = [as_picture_boxes(found_cup([noise()])[0])]
    assert turns == [
        ["Is it red", assistant.generate([assistant.prepare([Turn("<image>\nIs it red")], [noise()], found)], 6)[0]]
    ]
    *_, (with_objects, without) = page.compare(Given(str(picture)), "Is it red")
    plain = assistant.prepare([Turn("<image>\nIs it red")], [noise()], [None])
    assert with_objects == turns[0][1] and without == assistant.generate([plain], 6)[0]
    (tmp_path / "chat.json").write_text(page.save(Given(str(picture)), turns))
    assert page.load(str(tmp_path / "chat.json")).turns == turns
    before = len(engine.stub.bodies)  # type: ignore[attr-defined]
    with pytest.raises(XTunerError, match="here vLLM answers: serve with --backend own"):
        page.explain(Given(str(picture)), "Is it red")
    with pytest.raises(XTunerError, match="here vLLM answers"):
        engine.explain(asked(engine), "no")
    assert len(engine.stub.bodies) == before  # type: ignore[attr-defined]


DYING = """
import http.server, json, os, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.end_headers()
        choice = {"delta": {"content": "a"}, "token_ids": [4], "finish_reason": None}
        self.wfile.write(b"data: " + json.dumps({"choices": [choice]}).encode() + b"\\n\\n")
        self.wfile.flush()
        print("RuntimeError: CUDA error: an illegal memory access was encountered", flush=True)
        os._exit(3)
http.server.HTTPServer(("127.0.0.1", int(sys.argv[sys.argv.index("--port") + 1])), Handler).serve_forever()
"""


@pytest.mark.multi_process
def test_a_child_that_dies_in_the_middle_of_an_answer(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PROGRAM", ("-c", DYING))
    with Child(exported, "tiny") as child:
        child.wait_until_ready()
        engine = ProxyEngine(PromptSender(exported), child.upstream, "tiny", 512, child, max_batch=2)
        assert engine.healthy
        ticket = engine.submit(asked(engine), Sampling(6))
        with pytest.raises(XTunerError, match="ended with exit code 3: CUDA error: .*The request was not answered"):
            list(ticket)
        assert ticket.ids == [4] and not engine.healthy
        engine.close()
