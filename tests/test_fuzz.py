"""Odd inputs at every reader: a value or a sentence, never another exception."""

from __future__ import annotations

import random
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mg_llava.serving.requests.settings import Limits
from tests.mg_llava.serving.conftest import serve
from tests.tiny_assistant import randomize, tiny_assistant
from tools.benchmarks.fuzzing import DOORS, crash, odd_request
from xtuner.json_values import parse_json

pytestmark = pytest.mark.filterwarnings("ignore")
QUIET = settings(deadline=None, suppress_health_check=list(HealthCheck))


@pytest.fixture(autouse=True)
def cache_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XTUNER_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("door", DOORS)
class TestDoors:
    @settings(QUIET, max_examples=200)
    @given(seed=st.integers(0, 2**64))
    def test_a_value_or_a_sentence(self, door: str, seed: int, tmp_path: Path) -> None:
        assert crash(door, seed, tmp_path) is None

    @pytest.mark.slow
    def test_twenty_thousand(self, door: str, tmp_path: Path) -> None:
        assert [found for seed in range(20_000) if (found := crash(door, seed, tmp_path))] == []


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    pytest.importorskip("fastapi", reason="fastapi is not installed: pip install '.[serve]'")
    from mg_llava.serving.app import make_app

    assistant = randomize(tiny_assistant(tmp_path_factory.mktemp("serving"))[0])
    with serve(make_app(assistant, Limits(max_new_tokens=8), "tiny")) as url:
        yield f"{url}/v1/chat/completions"


class TestAnswers:
    def ask(self, address: str, body: bytes) -> int:
        """Returns the status; an answer is JSON or a stream, an error says what is wrong as OpenAI's do."""
        try:
            with urllib.request.urlopen(urllib.request.Request(address, body), timeout=60) as answer:
                said = answer.read()
                assert said.rstrip().endswith(b"[DONE]") or parse_json(said)["choices"]
                return answer.status
        except urllib.error.HTTPError as error:
            assert parse_json(error.read())["error"]["message"]
            return error.code

    def check(self, address: str, count: int) -> None:
        statuses = [self.ask(address, odd_request(random.Random(seed))) for seed in range(count)]
        assert not [(seed, status) for seed, status in enumerate(statuses) if status >= 500]
        assert statuses.count(200) > count // 20

    def test_an_answer_or_a_4xx(self, address: str) -> None:
        self.check(address, 200)

    @pytest.mark.slow
    def test_twenty_thousand(self, address: str) -> None:
        self.check(address, 20_000)
