"""What a request may hold, and what every field may be; everything else is one sentence."""

from __future__ import annotations

import base64
import json
import math
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("pydantic", reason="pydantic is not installed: pip install '.[serve]'")

from mg_llava.inference.assistant import Assistant  # noqa: E402
from mg_llava.serving.generation.tickets import Departed, Overloaded, Place, ReadingError  # noqa: E402
from mg_llava.serving.requests.body import read_body  # noqa: E402
from mg_llava.serving.requests.chat import RequestReader, UnknownModel  # noqa: E402
from mg_llava.serving.requests.detecting import SharedDetector  # noqa: E402
from mg_llava.serving.requests.fields import read_fields  # noqa: E402
from mg_llava.serving.requests.settings import Limits  # noqa: E402
from tests.clips import write_clip  # noqa: E402
from tests.mg_llava.serving.conftest import Preparing, data_url, found_cup, noise  # noqa: E402
from xtuner.errors import XTunerError  # noqa: E402

LIMITS = Limits(max_boxes=5, max_text=1000, max_values=2000, max_pictures=2, max_new_tokens=10)
MESSAGES = [{"role": "user", "content": "what"}]


def with_boxes(*lists: Any) -> dict[str, Any]:
    parts = [{"type": "image_url", "image_url": {"url": data_url(noise())}, "boxes": boxes} for boxes in lists]
    return {"messages": [{"role": "user", "content": parts}]}


class TestBody:
    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"", "not JSON"),
            (b"{", "not JSON"),
            (b'{"a": 1', "not JSON"),
            (b'{"a": 1} x', "not JSON"),
            (b"\xff\xfe{\x00}\x00", "UTF-16, expected UTF-8"),
            (b"\xff", "not UTF-8"),
            (b"[1]", "not a JSON object"),
            (b"3", "not a JSON object"),
            (b'{"a": ' + b"1" * 5000 + b"}", "more than 4,300 digits"),
            (b'{"b": {"a": 1, "a": 2}}', "'a' stands twice"),
            (b'{"a": "\\ud83d"}', "half of a character"),
            (b'{"\\ud83d": 1}', "half of a character"),
            (b'{"a":' + b"[" * 70 + b"]" * 70 + b"}", "nested more than 64 deep"),
            (b'{"a":' + b'{"b":' * 1500 + b"1" + b"}" * 1500 + b"}", "nested more than 64 deep"),
            (json.dumps({"a": [0] * 2000}).encode(), "at most 2,000 are taken"),
            (json.dumps({"a": "x" * 1001}).encode(), "1,002 characters of text, at most 1,000"),
            (json.dumps({"a": {"x" * 1001: 1}}).encode(), "characters of text"),
        ],
    )
    def test_refused(self, content: bytes, message: str) -> None:
        with pytest.raises(XTunerError, match=message):
            read_body(content, LIMITS)

    @pytest.mark.parametrize(
        ("boxes", "refused"),
        [
            ([[[0, 0, 1, 1]] * 5], False),
            ([[[0, 0, 1, 1]] * 6], True),
            ([[[0, 0, 1, 1]] * 3, [[0, 0, 1, 1]] * 3], True),
            ([{"boxes": [[0, 0, 1, 1]] * 6, "labels": ["a"]}], True),
            ([{"boxes": [], "scores": [1] * 6}], True),
        ],
    )
    def test_boxes_of_all_pictures_count(self, boxes: Any, refused: bool) -> None:
        content = json.dumps(with_boxes(*boxes)).encode()
        if refused:
            with pytest.raises(XTunerError, match="has 6 boxes, at most 5"):
                read_body(content, LIMITS)
        else:
            assert read_body(content, LIMITS)

    def test_pictures_count_and_are_no_text(self) -> None:
        assert len(data_url(noise())) > LIMITS.max_text
        assert read_body(json.dumps(with_boxes(None, None)).encode(), LIMITS)
        with pytest.raises(XTunerError, match="more than 2 pictures"):
            read_body(json.dumps(with_boxes(None, None, None)).encode(), LIMITS)

    def test_a_name_twice_among_many_costs_nothing(self) -> None:
        names = ",".join(f'"{number}":1' for number in range(49_000))
        start = time.process_time()
        with pytest.raises(XTunerError, match="'48999' stands twice"):
            read_body(f'{{{names},"48999":1,"48999":2}}'.encode(), Limits())
        assert time.process_time() - start < 1

    def test_a_flood_of_boxes_is_refused_before_it_is_parsed(self) -> None:
        content = json.dumps(with_boxes([[0, 0, 1, 1]] * 250_000)).encode()
        start = time.process_time()
        with pytest.raises(XTunerError, match="values"):
            read_body(content, Limits())
        # parsing alone takes several tenths of a second
        assert time.process_time() - start < 0.2


class TestFields:
    @pytest.mark.parametrize(
        "value",
        [float("inf"), -0.1, 2.01, 1e300, True, "1", [], {}, 10**200],
    )
    def test_numbers(self, value: Any) -> None:
        for name in ("temperature", "top_p"):
            with pytest.raises(XTunerError, match=f"'{name}' is "):
                read_fields({"messages": MESSAGES, name: value}, LIMITS)

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("seed", 2**63),
            ("seed", 2**64),
            ("seed", 1.5),
            ("seed", True),
            ("seed", 10**400),
            ("max_tokens", -1),
            ("max_tokens", 1.5),
            ("max_completion_tokens", 0),
            ("presence_penalty", 2.5),
            ("frequency_penalty", float("nan")),
            ("stream", "yes"),
            ("stream_options", []),
            ("model", 3),
            ("stop", [1]),
            ("stop", ["a"] * 5),
            ("stop", ["x" * 257]),
            ("stop", ""),
            ("n", 2),
            ("n", 1.0),
            ("n", True),
            ("logprobs", True),
            ("top_logprobs", 3),
            ("logit_bias", {"5": 100}),
            ("tools", [{"type": "function"}]),
            ("response_format", {"type": "json_object"}),
            ("store", True),
            ("detect_boxes", 1),
        ],
    )
    def test_refused(self, name: str, value: Any) -> None:
        with pytest.raises(XTunerError, match=f"'{name}' is ") as error:
            read_fields({"messages": MESSAGES, name: value}, LIMITS)
        assert len(str(error.value)) < 300

    def test_what_asks_for_nothing_is_taken(self) -> None:
        nothing = {
            "n": 1,
            "logprobs": False,
            "tools": [],
            "response_format": {"type": "text"},
            "user": "u",
            "seed": None,
        }
        fields = read_fields({"messages": MESSAGES, "seed": None, **nothing}, LIMITS)
        assert fields.unknown == () and fields.stops == ()

    def test_all_problems_at_once(self) -> None:
        with pytest.raises(XTunerError, match="'temperature' is 3.*'seed' is 'a'.*'n' is 2"):
            read_fields({"messages": MESSAGES, "temperature": 3, "seed": "a", "n": 2}, LIMITS)
        with pytest.raises(XTunerError, match="'messages' is missing"):
            read_fields({}, LIMITS)

    def test_unknown_ones_are_named_or_refused(self) -> None:
        body = {"messages": MESSAGES, "top_k": 5, "guided": None, "stream_options": {"include_usage": True, "other": 1}}
        assert read_fields(body, LIMITS).unknown == ("stream_options.other", "top_k")
        with pytest.raises(XTunerError, match="does not know 'stream_options.other', 'top_k'"):
            read_fields(body, Limits(refuse_unknown=True))


class TestReader:
    def read(self, assistant: Assistant, body: Any, place: Place | None = None, **parts: Any) -> Any:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        return RequestReader(Preparing(assistant), "tiny", LIMITS, **parts).read(content, place or Place(math.inf))

    def test_sampling(self, assistant: Assistant) -> None:
        body = {"messages": MESSAGES, "temperature": 1, "top_p": 0, "seed": -5, "stop": "x", "max_tokens": 99}
        sampling = self.read(assistant, {**body, "presence_penalty": 1.5}).sampling
        assert (sampling.temperature, sampling.top_p, sampling.seed, sampling.presence_penalty) == (1.0, 0.0, -5, 1.5)
        assert sampling.stop[0] == "x" and sampling.max_new_tokens == 10

    def test_another_model(self, assistant: Assistant) -> None:
        with pytest.raises(UnknownModel, match="no model 'gpt-4': this server has 'tiny'"):
            self.read(assistant, {"messages": MESSAGES, "model": "gpt-4"})
        assert self.read(assistant, {"messages": MESSAGES, "model": "tiny"})

    @pytest.mark.parametrize(
        "boxes", [[[0, 0, 10**400, 1]], [[0, 0, 1e300, 1]], {"boxes": [[0, 0, 1, 1]], "scores": ["x"]}]
    )
    def test_boxes_that_are_no_numbers(self, assistant: Assistant, boxes: Any) -> None:
        with pytest.raises(XTunerError):
            self.read(assistant, with_boxes(boxes))

    def test_it_ends_when_nobody_waits_any_more(self, assistant: Assistant) -> None:
        looked: list[int] = []

        def count(pictures: Any) -> Any:
            looked.append(1)
            place.leave()
            return found_cup(pictures)

        place = Place(math.inf)
        with pytest.raises(Departed):
            self.read(assistant, with_boxes(None, None), place, detector=SharedDetector(count))
        assert len(looked) == 1
        with pytest.raises(Overloaded):
            self.read(assistant, with_boxes(None), Place(time.monotonic() - 1))
        slow = RequestReader(Preparing(assistant), "tiny", Limits(max_read=-1.0))
        with pytest.raises(ReadingError, match="too long to read"):
            slow.read(json.dumps(with_boxes(None)).encode(), Place(math.inf))

    def test_one_that_waits_for_the_detector_leaves_the_queue(self, assistant: Assistant) -> None:
        detector, place = SharedDetector(found_cup), Place(math.inf)
        place.leave()
        with detector._lock, pytest.raises(Departed):
            detector.look(noise(), place.check)


# half characters too
TEXT = st.text(st.characters(exclude_categories=()), max_size=20)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)
NAMES = st.sampled_from(
    ["model", "stream", "temperature", "top_p", "seed", "stop", "n", "max_tokens", "stream_options", "logprobs"]
)
URLS = st.just({"url": data_url(noise())})
PARTS = st.fixed_dictionaries(
    {"type": st.sampled_from(["text", "image_url", "image"]) | JSON},
    optional={"text": JSON, "image_url": JSON | URLS, "boxes": JSON},
)
CONTENTS = st.lists(PARTS | JSON, max_size=3) | JSON
MESSAGE = st.fixed_dictionaries({"role": st.just("user") | JSON, "content": CONTENTS})
BODIES = st.fixed_dictionaries({"messages": st.lists(MESSAGE | JSON, max_size=3)}) | JSON


def check(assistant: Assistant, body: Any, more: dict[str, Any]) -> None:
    """A prompt or a sentence, never another exception."""
    if isinstance(body, dict):
        body = {**body, **more}
    reader = RequestReader(Preparing(assistant), "tiny", LIMITS)
    try:
        asked = reader.read(json.dumps(body).encode(), Place(math.inf))
    except XTunerError as error:
        assert 10 < len(str(error)) < 2000
    else:
        assert asked.prompt.input_ids


@settings(max_examples=200, deadline=None)
@given(body=BODIES, more=st.dictionaries(NAMES, JSON, max_size=3))
def test_whatever_comes_is_read_or_refused(assistant: Assistant, body: Any, more: dict[str, Any]) -> None:
    """JSON near to a request."""
    check(assistant, body, more)


@pytest.mark.slow
@settings(max_examples=20_000, deadline=None)
@given(body=BODIES, more=st.dictionaries(NAMES, JSON, max_size=3))
def test_whatever_comes_many_times(assistant: Assistant, body: Any, more: dict[str, Any]) -> None:
    """The same for longer."""
    check(assistant, body, more)


class TestVideos:
    def read(self, assistant: Assistant, *urls: Any, **part: Any) -> Any:
        content = [{"type": "video_url", "video_url": {"url": url}, **part} for url in urls]
        body = {"messages": [{"role": "user", "content": [*content, {"type": "text", "text": "what"}]}]}
        limits = Limits(max_text=1000, max_frames=4, max_pixels=10_000)
        return RequestReader(Preparing(assistant), "tiny", limits).read(json.dumps(body).encode(), Place(math.inf))

    def url(self, folder: Path, **clip: Any) -> str:
        content = write_clip(folder / "a.mp4", **clip).read_bytes()
        return f"data:video/mp4;base64,{base64.b64encode(content).decode()}"

    def test_frames_are_pictures_and_no_text(self, assistant: Assistant, tmp_path: Path) -> None:
        assert len(self.read(assistant, self.url(tmp_path)).prompt.pixel_values) == 4

    @pytest.mark.parametrize(
        ("url", "message"),
        [
            ("http://a.b/c.mp4", "begins with 'http://a.b/c.mp4'"),
            (None, "begins with none"),
            ("data:video/mp4;base64,", "empty, 0 bytes"),
            ("data:video/mp4;base64,AAAA", "is no MP4"),
            ("data:video/mp4,AAAA", "is not base64"),
            (data_url(noise()), "it is a PNG picture"),
        ],
    )
    def test_what_is_no_video(self, assistant: Assistant, url: Any, message: str) -> None:
        with pytest.raises(XTunerError, match=message):
            self.read(assistant, url)

    def test_limits(self, assistant: Assistant, tmp_path: Path) -> None:
        url = self.url(tmp_path)
        with pytest.raises(XTunerError, match="more than 1 videos"):
            self.read(assistant, url, url)
        with pytest.raises(XTunerError, match="megapixels"):
            self.read(assistant, self.url(tmp_path, size=(128, 96)))
        with pytest.raises(XTunerError, match="a video part has 'boxes'"):
            self.read(assistant, url, boxes=[[0, 0, 1, 1]])
