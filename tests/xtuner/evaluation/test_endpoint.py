"""The client of endpoints: which failures pass, whose answers are taken, and many requests at a time."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from tests.stub_endpoint import Stub, stub_endpoint
from xtuner.errors import XTunerError
from xtuner.evaluation.endpoint import Endpoint, RefusedError, find_model, in_parallel, without_login

ASK = [{"role": "user", "content": "q"}]


@pytest.fixture
def stub() -> Iterator[Stub]:
    with stub_endpoint(lambda content: f"re: {content}") as found:
        yield found


class TestComplete:
    def test_retry_after_is_waited_for(self, stub: Stub) -> None:
        stub.statuses, stub.headers = [429], {"Retry-After": "2"}
        start = time.monotonic()
        assert Endpoint(stub.url, "m").complete(ASK, 3) == "re: q"
        # the client's own first pause is half a second
        assert time.monotonic() - start >= 2 and len(stub.requests) == 2

    @pytest.mark.parametrize("status", [400, 413, 422])
    def test_a_refusal_of_one_request(self, stub: Stub, status: int) -> None:
        stub.statuses, stub.refusal = [status], {"error": {"message": "the prompt has 9000 tokens"}}
        with pytest.raises(RefusedError, match="9000 tokens"):
            Endpoint(stub.url, "m").complete(ASK, 3)
        assert len(stub.requests) == 1

    @pytest.mark.parametrize("status", [401, 403, 404])
    def test_a_refusal_of_all_is_not_of_one(self, stub: Stub, status: int) -> None:
        stub.statuses = [status]
        with pytest.raises(XTunerError, match=f"HTTP {status}.*OPENAI_API_KEY") as caught:
            Endpoint(stub.url, "m").complete(ASK, 3)
        assert not isinstance(caught.value, RefusedError)

    def test_settings_that_a_model_does_not_know(self, stub: Stub) -> None:
        endpoint = Endpoint(stub.url, "m")
        stub.statuses = [400]
        stub.refusal = {"error": {"message": "no", "code": "unsupported_parameter", "param": "max_tokens"}}
        assert endpoint.complete(ASK, 3, temperature=0) == "re: q"
        stub.statuses = [400]
        stub.refusal = {"error": {"message": "no", "code": "unsupported_value", "param": "temperature"}}
        assert endpoint.complete(ASK, 3, temperature=0) == "re: q" and endpoint.dropped == ["temperature"]
        # known from then on
        endpoint.complete(ASK, 3, temperature=0)
        assert len(stub.requests) == 5 and stub.requests[-1]["max_completion_tokens"] == 3
        assert set(stub.requests[-1]) == {"path", "model", "messages", "max_completion_tokens"}

    @pytest.mark.parametrize(
        ("asked", "answered", "taken"),
        [
            ("m", "m", True),
            ("m", "m-2024-08-06", True),
            ("m", "m-0613", True),
            ("m", "m-mini", False),
            ("m", "M", False),
            ("m", "other", False),
            ("deployment=m", "m", True),
            ("deployment=m", "deployment", False),
        ],
    )
    def test_whose_answer_it_is(self, stub: Stub, asked: str, answered: str, taken: bool) -> None:
        stub.answers_as = answered
        endpoint = Endpoint(stub.url, asked)
        if taken:
            assert endpoint.complete(ASK, 3) == "re: q"
        else:
            with pytest.raises(XTunerError, match=f"answers as '{answered}'"):
                endpoint.complete(ASK, 3)

    def test_a_login_in_the_url_is_not_shown(self) -> None:
        endpoint = Endpoint("http://me:secret@127.0.0.1:9/v1/", "m", retries=0, timeout=5)
        assert endpoint.url == "http://127.0.0.1:9/v1" == without_login(endpoint.url)
        with pytest.raises(XTunerError, match="does not reply") as caught:
            endpoint.complete(ASK, 3)
        assert "secret" not in str(caught.value)


class TestFindModel:
    def test_the_only_one(self, stub: Stub) -> None:
        stub.models = {"a/b": "mg-llava"}
        assert find_model(stub.url, None, None) == ("a/b", True)

    def test_one_of_several(self, stub: Stub) -> None:
        stub.models = {"one": "x", "two": "x"}
        assert find_model(stub.url, "two", "key") == ("two", False)
        assert find_model(stub.url, "two=2", "key") == ("two=2", False)
        with pytest.raises(XTunerError, match="has 2 models: name one by --model. It has: one, two"):
            find_model(stub.url, None, None)
        with pytest.raises(XTunerError, match="no model 'tow'. Did you mean 'two'?"):
            find_model(stub.url, "tow", None)

    def test_servers_without_a_list(self, stub: Stub) -> None:
        assert find_model(stub.url, "m", None) == ("m", False)
        with pytest.raises(XTunerError, match="name one by --model"):
            find_model(stub.url, None, None)

    def test_no_server(self) -> None:
        with pytest.raises(XTunerError, match="cannot be reached"):
            find_model("http://127.0.0.1:9/v1", None, None)


class TestInParallel:
    def test_all_come_and_so_many_at_a_time(self) -> None:
        running, most, lock = 0, 0, threading.Lock()

        def work(job: int) -> int:
            nonlocal running, most
            with lock:
                running += 1
                most = max(most, running)
            time.sleep(0.005)
            with lock:
                running -= 1
            return job * job

        assert dict(in_parallel(work, range(40), 4)) == {job: job * job for job in range(40)}
        assert 2 <= most <= 4

    def test_jobs_are_taken_as_they_are_needed(self) -> None:
        taken: list[int] = []

        def jobs() -> Iterator[int]:
            for job in range(1000):
                taken.append(job)
                yield job

        results = in_parallel(lambda job: job, jobs(), 2)
        next(results)
        assert len(taken) <= 10
        results.close()  # type: ignore[attr-defined]

    def test_what_is_under_way_comes_before_the_failure(self) -> None:
        failed = threading.Event()

        def work(job: int) -> int:
            if job == 1:
                failed.set()
                raise XTunerError("down")
            # the first is under way when the second fails
            failed.wait(5)
            time.sleep(0.05)
            return job

        found = []
        with pytest.raises(XTunerError, match="down"):
            for job, _ in in_parallel(work, range(1000), 2):
                found.append(job)
        assert 0 in found and len(found) < 10
