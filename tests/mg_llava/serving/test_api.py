"""The endpoint by OpenAI's own client over a real socket, and what it refuses."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

pytest.importorskip("fastapi", reason="fastapi is not installed: pip install '.[serve]'")
openai = pytest.importorskip("openai", reason="the client package openai is not installed")

from mg_llava.inference.assistant import Assistant  # noqa: E402
from mg_llava.inference.messages import read_messages  # noqa: E402
from mg_llava.inference.prompts import as_picture_boxes  # noqa: E402
from mg_llava.pictures.pooling import ImageTokens  # noqa: E402
from mg_llava.serving.app import make_app  # noqa: E402
from mg_llava.serving.command import listen  # noqa: E402
from mg_llava.serving.requests.settings import Limits  # noqa: E402
from tests.mg_llava.serving.conftest import data_url, found_cup, noise, proxied, serve  # noqa: E402
from xtuner.data.text.templates import Turn  # noqa: E402
from xtuner.errors import XTunerError  # noqa: E402

LIMITS = Limits(max_upload=300_000, max_pixels=1_000_000, max_pictures=3, max_new_tokens=400, max_queue=3, max_batch=2)


class Server:
    """A running server and its client."""

    def __init__(self, url: str, engine: Any) -> None:
        self.url = url
        self.engine = engine
        self.client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)

    def ask(self, words: str = "Is it red", *images: Any, **arguments: Any) -> Any:
        content = [*images, {"type": "text", "text": words}]
        messages = [{"role": "user", "content": content}]
        return self.client.chat.completions.create(
            **{"model": "tiny", "messages": messages, "max_tokens": 6, **arguments}
        )

    def post(self, body: bytes, **headers: str) -> tuple[int, dict[str, Any]]:
        request = urllib.request.Request(f"{self.url}/v1/chat/completions", body, headers)
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read())


def image(url: str, **more: Any) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}, **more}


@pytest.fixture(scope="module", params=["own", "vllm"])
def server(request: pytest.FixtureRequest, assistant: Assistant, exported: Path) -> Iterator[Server]:
    """The endpoint with this project's own engine, and with (a stub of) vLLM behind it: a client sees no difference."""
    with contextlib.ExitStack() as stack:
        engine = stack.enter_context(proxied(assistant, exported, LIMITS)) if request.param == "vllm" else assistant
        app = make_app(engine, LIMITS, "tiny")
        url = stack.enter_context(serve(app))
        yield Server(url, app.state.engine)


class TestAnswers:
    def test_equals_the_assistant(self, assistant: Assistant, server: Server) -> None:
        boxes = [[2, 3, 20, 25], [10, 5, 38, 28]]
        prompt = assistant.prepare([Turn("<image>\nIs it red")], [noise()], [as_picture_boxes(boxes)])
        (expected,) = assistant.generate([prompt], 6)
        answer = server.ask("Is it red", image(data_url(noise()), boxes=boxes))
        choice = answer.choices[0]
        assert choice.message.content == expected and choice.message.role == "assistant"
        assert choice.finish_reason in ("stop", "length")
        assert answer.usage.prompt_tokens == prompt.num_tokens(ImageTokens(4, 4))
        assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens

    def test_streaming(self, server: Server) -> None:
        whole = server.ask("Is it red", image(data_url(noise())))
        chunks = list(
            server.ask("Is it red", image(data_url(noise())), stream=True, stream_options={"include_usage": True})
        )
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        assert text.strip() == whole.choices[0].message.content
        assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == whole.choices[
            0
        ].finish_reason
        assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens

    def test_history_system_and_the_beginning_of_an_answer(self, assistant: Assistant, server: Server) -> None:
        messages = [
            {"role": "system", "content": "red"},
            {"role": "user", "content": "what"},
            {"role": "assistant", "content": "dog"},
            {"role": "user", "content": "Is it blue"},
            {"role": "assistant", "content": "no it"},
        ]
        prompt = assistant.prepare([Turn("what", "dog", "red"), Turn("Is it blue")], answer_start="no it")
        answer = server.client.chat.completions.create(
            model="tiny", messages=messages, max_tokens=4, extra_body={"continue_final_message": True}
        )
        assert answer.choices[0].message.content == assistant.generate([prompt], 4)[0]

    def test_stop_seed_and_temperature(self, server: Server) -> None:
        words = server.ask("what", max_tokens=8).choices[0].message.content.split()
        stop = next(word for word in words[1:] if word != words[0])
        stopped = server.ask("what", max_tokens=8, stop=[stop]).choices[0]
        assert stop not in stopped.message.content and stopped.finish_reason == "stop"
        drawn = [server.ask("what", temperature=1.5, top_p=0.9, seed=3).choices[0].message.content for _ in range(2)]
        assert drawn[0] == drawn[1]

    def test_models_and_health(self, server: Server) -> None:
        assert [model.id for model in server.client.models.list()] == ["tiny"]
        assert server.client.models.retrieve("tiny").owned_by == "mg-llava"
        with pytest.raises(openai.NotFoundError):
            server.client.models.retrieve("other")
        with urllib.request.urlopen(f"{server.url}/health") as answer:
            assert json.load(answer)["status"] == "ok"

    def test_a_detector_looks_at_pictures_without_boxes(self, assistant: Assistant) -> None:
        app = make_app(assistant, LIMITS, "tiny", found_cup)
        with serve(app) as url:
            server = Server(url, app.state.engine)
            with_boxes = server.ask("what", image(data_url(noise())))
            without = server.ask("what", image(data_url(noise())), extra_body={"detect_boxes": False})
        assert with_boxes.usage.prompt_tokens == without.usage.prompt_tokens + 1


class TestRefused:
    @pytest.mark.parametrize(
        ("picture", "message"),
        [
            ("data:image/png;base64,bm8gcGljdHVyZQ==", "do not decode"),
            ("data:image/png;base64,", "empty, 0 bytes"),
            ("data:image/png;base64,???", "does not decode"),
            ("data:image/png,abc", "not base64"),
            ("http://127.0.0.1:1/a.png", "does not fetch remote pictures"),
            ("file:///etc/passwd", "expected data:image"),
        ],
    )
    def test_pictures(self, server: Server, picture: str, message: str) -> None:
        with pytest.raises(openai.BadRequestError, match=message):
            server.ask("what", image(picture))

    def test_a_bomb(self, server: Server) -> None:
        bomb = Image.new("1", (10_000, 5_000))
        assert len(data_url(bomb)) < LIMITS.max_upload
        with pytest.raises(openai.BadRequestError, match="50.0 megapixels, but at most 1.0"):
            server.ask("what", image(data_url(bomb)))

    def test_an_animation_gives_its_first_frame(self, server: Server) -> None:
        frames = [Image.new("RGB", (20, 20), color) for color in ("red", "green")]
        stream = io.BytesIO()
        frames[0].save(stream, "GIF", save_all=True, append_images=frames[1:])
        url = f"data:image/gif;base64,{base64.b64encode(stream.getvalue()).decode()}"
        assert server.ask("what", image(url)).choices

    def test_boxes_outside_the_picture(self, server: Server) -> None:
        boxes = [[2, 3, 20, 25], [40, 0, 60, 20]]
        with pytest.raises(openai.BadRequestError, match="1 of the 2 boxes lie outside their picture of 40 x 30"):
            server.ask("what", image(data_url(noise()), boxes=boxes))

    def test_large_requests(self, server: Server) -> None:
        with pytest.raises(openai.APIStatusError, match="larger than") as error:
            server.ask("what " * 100_000)
        assert error.value.status_code == 413
        with pytest.raises(openai.BadRequestError, match="more than 3 pictures"):
            server.ask("what", *[image(data_url(noise())) for _ in range(4)])
        with pytest.raises(openai.BadRequestError, match="the model's context is 512: .* too many"):
            server.ask("what " * 600)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"temperature": 3}, "'temperature' is 3"),
            ({"max_tokens": 0}, "'max_tokens' is 0"),
            ({"n": 2}, "'n' is 2"),
            ({"stop": ["a"] * 5}, "'stop' is"),
            ({"logprobs": True}, "'logprobs' is True, which this server does not support"),
            ({"messages": []}, "no user message to answer"),
            ({"messages": [{"role": "tool", "content": "a"}]}, "has the role 'tool'"),
        ],
    )
    def test_fields(self, server: Server, arguments: dict[str, Any], message: str) -> None:
        with pytest.raises(openai.BadRequestError, match=message):
            server.ask("what", **arguments)

    @pytest.mark.parametrize(
        "body",
        [
            b"{",
            b"[1]",
            b'{"messages": 3}',
            b"\xff",
            b'{"messages": [{"role": "user", "content": "What \\ud83d?"}]}',
            b'{"messages": [{"role": "user", "content": "what"}], "stop": ["\\udc00"]}',
            b'{"messages": [{"role": "\\ud83d", "content": "what"}]}',
            b'{"messages": [{"role": "user", "content": [{"type": "\\ud83d"}]}], "user": "\\ud83d"}',
        ],
    )
    def test_bodies(self, server: Server, body: bytes) -> None:
        status, answer = server.post(body)
        assert status == 400 and answer["error"]["type"] == "invalid_request_error"

    def test_a_taken_port(self) -> None:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            with pytest.raises(XTunerError, match="cannot listen on 127.0.0.1:.*--port"):
                listen("127.0.0.1", taken.getsockname()[1])


class TestOverload:
    def test_too_many_get_429_and_the_rest_an_answer(
        self, assistant: Assistant, server: Server, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(assistant, "stop_ids", lambda: [])
        streams = [server.ask("what", max_tokens=400, stream=True) for _ in range(2)]
        prompt = server.engine.prepare(read_messages([{"role": "user", "content": "what"}], no_picture), [])
        waiting = [server.engine.submit(prompt, server_sampling()) for _ in range(3)]
        start = time.monotonic()
        with pytest.raises(openai.RateLimitError) as error:
            server.ask("what")
        assert time.monotonic() - start < 5 and error.value.response.headers["retry-after"] == "1"
        # clients that go away free their rows
        for stream in streams:
            stream.close()
        for ticket in waiting:
            assert len(list(ticket)) == 5
        assert idle(server)

    def test_pictures_are_not_looked_at_for_those_that_are_refused(self, assistant: Assistant) -> None:
        """A slow detector is where a flood piles up: at most so many as there are places come to it, one by one."""
        looked: list[int] = []
        inside = threading.Semaphore(1)

        def slow(pictures: list[Image.Image], keys: Any = None) -> Any:
            assert inside.acquire(blocking=False), "two at a time"
            time.sleep(0.5)
            looked.append(1)
            inside.release()
            return found_cup(pictures)

        app = make_app(assistant, LIMITS, "tiny", slow)
        with serve(app) as url, ThreadPoolExecutor(16) as clients:
            server = Server(url, app.state.engine)

            def ask(seed: int) -> tuple[int, float]:
                start = time.monotonic()
                try:
                    server.ask("what", image(data_url(noise(seed))), max_tokens=2)
                except openai.RateLimitError:
                    return 429, time.monotonic() - start
                return 200, time.monotonic() - start

            answers = list(clients.map(ask, range(16)))
            answered = [number for number, (status, _) in enumerate(answers) if status == 200]
            # 2 rows and 3 places; on a slow machine the last clients may come when one is free again
            assert 5 <= len(answered) == len(looked) <= 8
            assert max(seconds for status, seconds in answers if status == 429) < 0.5 * 8
            # the picture of an earlier request is known
            server.ask("what", image(data_url(noise(answered[0]))), max_tokens=2)
            assert len(looked) == len(answered) and idle(server)

    def test_those_who_wait_too_long_get_503(self, assistant: Assistant, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(assistant, "stop_ids", lambda: [])
        app = make_app(assistant, replace(LIMITS, max_batch=1, max_wait=0.05), "tiny")
        with serve(app) as url:
            server = Server(url, app.state.engine)
            stream = server.ask("what", max_tokens=400, stream=True)
            next(iter(stream))
            for streamed in (False, True):
                with pytest.raises(openai.InternalServerError, match="overloaded") as error:
                    server.ask("what", stream=streamed)
                assert error.value.status_code == 503 and error.value.response.headers["retry-after"] == "1"
            stream.close()
            assert idle(server)

    def test_a_client_that_hangs_up_frees_its_row(
        self, assistant: Assistant, server: Server, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(assistant, "stop_ids", lambda: [])
        body = json.dumps({"messages": [{"role": "user", "content": "what"}], "max_tokens": 400}).encode()
        host, port = server.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as client:
            head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
            client.sendall(head.encode() + body)
            deadline = time.monotonic() + 20
            while not server.engine.load()["running"] and time.monotonic() < deadline:
                time.sleep(0.005)
        assert idle(server)

    def test_one_that_leaves_before_the_detector_is_not_looked_at(self, assistant: Assistant) -> None:
        """Two clients send pictures to a slow detector; the second hangs up while the first one's is looked at."""
        looked: list[int] = []
        begun, go_on = threading.Event(), threading.Event()

        def slow(pictures: list[Image.Image], keys: Any = None) -> Any:
            looked.append(1)
            begun.set()
            go_on.wait(20)
            return found_cup(pictures)

        app = make_app(assistant, LIMITS, "tiny", slow)
        with serve(app) as url, ThreadPoolExecutor(1) as clients:
            server = Server(url, app.state.engine)
            first = clients.submit(server.ask, "what", image(data_url(noise(1))), max_tokens=2)
            assert begun.wait(20)
            content = [image(data_url(noise(2)))]
            body = json.dumps({"messages": [{"role": "user", "content": content}]}).encode()
            host, port = url.removeprefix("http://").split(":")
            with socket.create_connection((host, int(port))) as client:
                head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
                client.sendall(head.encode() + body)
                assert waits(server, 2)
            # its place is free while the first one is still looked at
            assert waits(server, 1)
            go_on.set()
            assert first.result(20).choices and idle(server)
        assert len(looked) == 1

    def test_unknown_fields_are_named(self, server: Server) -> None:
        body = {"messages": [{"role": "user", "content": "what"}], "max_tokens": 1, "top_k": 3, "a\r\nX: y": 1}
        request = urllib.request.Request(f"{server.url}/v1/chat/completions", json.dumps(body).encode())
        with urllib.request.urlopen(request, timeout=30) as answer:
            assert answer.headers["X-MG-LLaVA-Ignored-Fields"] == "a%0D%0AX%3A%20y, top_k"

    def test_another_model(self, server: Server) -> None:
        with pytest.raises(openai.NotFoundError, match="no model 'gpt-4'"):
            server.ask("what", model="gpt-4")


def waits(server: Server, count: int) -> bool:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        if server.engine.load()["waiting"] == count:
            return True
        time.sleep(0.01)
    return False


def no_picture(part: Any) -> Any:
    raise AssertionError(part)


def server_sampling() -> Any:
    from mg_llava.serving.generation.sampling import Sampling

    return Sampling(5)


def idle(server: Server) -> bool:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        load = server.engine.load()
        if not load["running"] and not load["waiting"]:
            return True
        time.sleep(0.02)
    return False
