"""The judge's client against a stub endpoint: retried, cached, resumable, honest about what is missing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.stub_endpoint import Stub, stub_endpoint
from xtuner.errors import XTunerError
from xtuner.evaluation.judge import Judge, JudgementFile


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stub]:
    with stub_endpoint(lambda prompt: f"re: {prompt}") as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        monkeypatch.setenv("OPENAI_API_KEY", "test-key")
        yield server


def judge(**arguments: object) -> Judge:
    return Judge("tiny-judge", **{"parallel": 1, **arguments})  # type: ignore[arg-type]


def test_asks_as_openai_has_it(stub: Stub) -> None:
    assert judge().ask("图?", 7) == "re: 图?"
    (request,) = stub.requests
    assert request["path"] == "/v1/chat/completions" and stub.keys == ["Bearer test-key"]
    assert request["model"] == "tiny-judge" and request["temperature"] == 0 and request["max_tokens"] == 7


def test_passing_failures_are_retried(stub: Stub) -> None:
    stub.statuses = [429, 503]
    assert judge().ask("q", 1) == "re: q" and len(stub.requests) == 3


@pytest.mark.parametrize(("status", "requests"), [(401, 1), (500, 3)])
def test_others_and_too_many_are_errors(stub: Stub, status: int, requests: int) -> None:
    stub.statuses = [status] * 9
    with pytest.raises(XTunerError, match=f"HTTP {status}.*OPENAI_BASE_URL"):
        judge(retries=2).ask("q", 1)
    assert len(stub.requests) == requests


def test_no_endpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    monkeypatch.setenv("OPENAI_API_KEY", "x")
    with pytest.raises(XTunerError, match="does not reply"):
        judge(retries=0, timeout=5).ask("q", 1)


def test_the_key_comes_from_the_environment_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(XTunerError, match="OPENAI_API_KEY"):
        judge()


class TestAskAll:
    def test_nothing_is_asked_twice(self, stub: Stub, tmp_path: Path) -> None:
        path = tmp_path / "j.jsonl"
        assert judge(parallel=3).ask_all(["a", "b"], JudgementFile(path), 5, "bench") == 0
        assert judge().ask_all(["a", "b", "c"], JudgementFile(path), 5, "bench") == 0
        assert sorted(request["messages"][0]["content"] for request in stub.requests) == ["a", "b", "c"]
        assert JudgementFile(path).replies("tiny-judge") == {one: f"re: {one}" for one in "abc"}
        assert JudgementFile(path).replies("other") == {}
        assert "test-key" not in path.read_text()

    def test_where_the_limit_is_reached_what_came_is_kept(self, stub: Stub, tmp_path: Path) -> None:
        path = tmp_path / "j.jsonl"
        stub.statuses = [200, 200, 401, 401, 401]
        assert judge().ask_all(["a", "b", "c", "d"], JudgementFile(path), 5, "bench") >= 1
        kept = JudgementFile(path).replies(None)
        assert {"a", "b"} <= set(kept)
        stub.statuses = []
        assert judge().ask_all(["a", "b", "c", "d"], JudgementFile(path), 5, "bench") == 0

    def test_a_line_that_was_cut_off_is_asked_again(self, stub: Stub, tmp_path: Path) -> None:
        path = tmp_path / "j.jsonl"
        judge().ask_all(["a", "b"], JudgementFile(path), 5, "bench")
        path.write_text(path.read_text()[:-10])
        assert len(JudgementFile(path).replies(None)) == 1


def test_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "x")

    words = judge(price=10.0).cost(["x" * 4000] * 100, 0)
    assert words == "100 requests to tiny-judge, about 100000 tokens at most, about $1.00 at most"
    assert judge().cost([], 5) == "0 requests to tiny-judge, about 0 tokens at most"
