"""The endpoint with a real vLLM behind it, to the token as the own engine answers.

Skipped where vLLM is not installed (some 3.5 GB): ``bash tools/check_vllm.sh`` makes an environment and runs it.
"""

from __future__ import annotations

import io
import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mg_llava.hf import load_assistant
from mg_llava.inference.messages import read_messages
from mg_llava.inference.prompts import as_picture_boxes
from mg_llava.serving.generation.batch_engine import BatchEngine
from mg_llava.serving.generation.engine import Engine
from mg_llava.serving.generation.sampling import Sampling
from mg_llava.serving.generation.tickets import Refused
from mg_llava.serving.proxy.checks import check_reading, find_model
from mg_llava.serving.proxy.child import Child
from mg_llava.serving.proxy.engine import ProxyEngine
from mg_llava.serving.proxy.prompts import PromptSender
from mg_llava.serving.proxy.upstream import Upstream
from tests.mg_llava.serving.conftest import noise
from tests.mg_llava.serving.vllm.families import export
from xtuner.errors import XTunerError

pytest.importorskip("vllm", reason="needs vLLM, some 3.5 GB: bash tools/check_vllm.sh")
pytestmark = pytest.mark.slow

PICTURE = {"type": "image"}
BOXES: list[Any] = [[[2, 3, 20, 25], [10, 5, 38, 28], [0, 0, 40, 30]], None, [[5, 5, 15, 15]]]
TOKENS = 12
OPTIONS = (
    "--dtype",
    "float32",
    "--enforce-eager",
    "--max-model-len",
    "200",
    "--max-num-seqs",
    "4",
    "--gpu-memory-utilization",
    "0.2",
)


def text(words: str) -> dict[str, str]:
    return {"type": "text", "text": words}


CONVERSATIONS: list[tuple[list[Any], list[Any]]] = [
    ([{"role": "user", "content": "what"}], []),
    ([{"role": "user", "content": [PICTURE, text("Is it red")]}], BOXES[:1]),
    ([{"role": "user", "content": [PICTURE, text("Is it red")]}], BOXES[2:]),
    ([{"role": "user", "content": [PICTURE, text("Is it red")]}], [None]),
    ([{"role": "user", "content": [text("A"), PICTURE, text("B"), PICTURE, text("dog")]}], BOXES[:2]),
    ([{"role": "user", "content": [*[PICTURE] * 3, text("w100 w101 blue")]}], BOXES),
    (
        [
            {"role": "system", "content": "red"},
            {"role": "user", "content": [PICTURE, text("A B C D")]},
            {"role": "assistant", "content": "no"},
            {"role": "user", "content": [PICTURE, text("dog cat yes")]},
        ],
        [BOXES[2], BOXES[0]],
    ),
    (
        [{"role": "user", "content": [text("what"), PICTURE]}, {"role": "assistant", "content": "A B"}],
        [BOXES[0]],
    ),
]


class Engines:
    """One folder on vLLM and in the own engine."""

    def __init__(self, folder: Path, child: Child) -> None:
        self.child = child
        model, context = find_model(child.upstream, folder, "tiny")
        assert (model, context) == ("tiny", 200)
        self.vllm = ProxyEngine(PromptSender(folder), child.upstream, model, context, child, max_batch=4)
        self.own = BatchEngine(load_assistant(folder))

    def ask(self, engine: Engine, messages: list[Any], boxes: list[Any], sampling: Sampling) -> Any:
        pictures = iter([(noise(number), as_picture_boxes(found)) for number, found in enumerate(boxes)])
        asked = read_messages(messages, lambda _: next(pictures), messages[-1]["role"] == "assistant")
        files = []
        for picture in asked.pictures:
            stream = io.BytesIO()
            picture.save(stream, "PNG")
            files.append(stream.getvalue())
        prompt = engine.prepare(asked, files)
        return engine.submit(prompt, sampling), engine.num_tokens(prompt)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(tmp_path_factory.mktemp("proxied"), "llama")


@pytest.fixture(scope="module")
def engines(folder: Path) -> Iterator[Engines]:
    with Child(folder, "tiny", OPTIONS) as child:
        child.wait_until_ready()
        both = Engines(folder, child)
        yield both
        both.vllm.close()
        both.own.close()


def test_it_is_the_folders_vllm(engines: Engines, folder: Path) -> None:
    check_reading(engines.child.upstream, "tiny", engines.vllm.sender)
    assert engines.vllm.healthy
    with pytest.raises(XTunerError, match="wants another API key"):
        Upstream(engines.child.upstream.url).get("/v1/models")


def test_ids_are_the_own_engines(engines: Engines) -> None:
    """All at once, twice: the second time from vLLM's caches."""
    sampling = Sampling(TOKENS)
    own = [engines.ask(engines.own, *asked, sampling) for asked in CONVERSATIONS]
    expected = [(list(ticket), ticket.reason, count) for ticket, count in own]
    for _ in range(2):
        asked = [engines.ask(engines.vllm, *one, sampling) for one in CONVERSATIONS]
        assert [(list(ticket), ticket.reason, count) for ticket, count in asked] == expected
    # boxes matter
    assert len({tuple(ids) for ids, _, _ in expected[1:4]}) == 3


def test_a_stop_text_and_a_seed(engines: Engines) -> None:
    (ticket, _) = engines.ask(engines.own, *CONVERSATIONS[1], Sampling(TOKENS))
    words = engines.own.maker.tokenizer.decode(list(ticket)).split()
    (stopped, _) = engines.ask(engines.vllm, *CONVERSATIONS[1], Sampling(TOKENS, stop=(words[2],)))
    assert len(list(stopped)) == 3 and stopped.reason == "stop"
    drawn = Sampling(TOKENS, temperature=1.5, top_p=0.9, seed=3, presence_penalty=0.5, frequency_penalty=0.5)
    first, second = (list(engines.ask(engines.vllm, *CONVERSATIONS[0], drawn)[0]) for _ in range(2))
    assert first == second
    least = Sampling(TOKENS, temperature=1.5, top_p=0.0)
    assert list(engines.ask(engines.vllm, *CONVERSATIONS[1], least)[0]) == list(
        engines.ask(engines.own, *CONVERSATIONS[1], least)[0]
    )


def test_a_cancelled_request_leaves_vllm(engines: Engines) -> None:
    def running() -> float:
        metrics = engines.child.upstream.get("/metrics").decode()
        return sum(map(float, re.findall(r"^vllm:num_requests_running\{.*\} (\S+)$", metrics, re.MULTILINE)))

    # nothing else than the limit ends it: drawn at random, the end is one of 128 tokens
    tickets = [engines.ask(engines.vllm, *CONVERSATIONS[0], Sampling(180, temperature=2.0))[0] for _ in range(4)]
    for ticket in tickets:
        ticket.next_event(60)
        ticket.cancel()
    deadline = time.monotonic() + 60
    while running() or engines.vllm.load()["running"]:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_what_vllm_refuses(engines: Engines) -> None:
    many = [{"role": "user", "content": [PICTURE, text("what " * 300)]}]
    with pytest.raises(XTunerError, match="but the model's context is 200"):
        engines.ask(engines.vllm, many, [None], Sampling(2))
    outside = [[[50, 50, 60, 60]]]
    ticket, _ = engines.ask(engines.vllm, *CONVERSATIONS[1][:1], outside, Sampling(2))
    with pytest.raises(Refused, match="vLLM: .*1 of the 1 boxes lie outside their picture of 40 x 30 pixels"):
        list(ticket)
    prompt = {"messages": [{"role": "user", "content": "what"}], "model": "tiny", "max_tokens": 1}
    with pytest.raises(Refused, match="trust-request-mm-kwargs"):
        engines.child.upstream.post({**prompt, "mm_processor_kwargs": {"boxes": []}})


def test_a_context_longer_than_the_models(folder: Path) -> None:
    with Child(folder, "tiny", ("--max-model-len", "9000")) as child, pytest.raises(XTunerError) as error:
        child.wait_until_ready()
    assert "max_model_len (9000) is greater than" in str(error.value) and "--max-model-len N" in str(error.value)


def test_more_than_the_memory(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "100000")
    with Child(folder, "tiny", OPTIONS) as child, pytest.raises(XTunerError, match="exit code 1: .*[Mm]emory"):
        child.wait_until_ready()


def test_its_end_is_named(engines: Engines) -> None:
    """The last one: vLLM's engine process is killed in the middle of an answer."""
    ticket, _ = engines.ask(engines.vllm, *CONVERSATIONS[0], Sampling(180, temperature=2.0))
    ticket.next_event(60)
    os.killpg(engines.child._process.pid, signal.SIGKILL)
    with pytest.raises(XTunerError, match="which served '.*', was ended by SIGKILL.*The request was not answered"):
        list(ticket)
    assert not engines.vllm.healthy
