"""Asking a language model behind an OpenAI-compatible endpoint: cached, retried, resumable, its cost shown first."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from xtuner.data.records.json_values import JSONFault, parse_json
from xtuner.errors import XTunerError
from xtuner.log import get_logger

_CHARACTERS_PER_TOKEN = 4
_LONGEST_REPLY = 16 << 20
"""Of English text, near enough to tell a bill of one dollar from one of a hundred."""
_RETRIED = (408, 409, 429, 500, 502, 503, 504)


class JudgementFile:
    """Replies on disk, one JSON object a line: ``{key, model, prompt, reply}``; what stands there is not asked again.

    Args:
        path: of the file; made when the first reply comes.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._rows: dict[str, dict[str, str]] = {}
        for line in self.path.read_text(encoding="utf-8").split("\n") if self.path.exists() else ():
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                # cut off where a run was killed: asked again
                continue
            self._rows[row["key"]] = row

    def replies(self, model: str | None) -> dict[str, str]:
        """Returns reply by prompt, of one model or, with None, of any (the last one wins)."""
        return {row["prompt"]: row["reply"] for row in self._rows.values() if model in (None, row["model"])}

    def models(self) -> set[str]:
        """Returns the models that replied."""
        return {row["model"] for row in self._rows.values()}

    def add(self, model: str, prompt: str, reply: str) -> None:
        """Writes a reply; it is on disk when this returns."""
        key = hashlib.sha256(f"{model}\n{prompt}".encode()).hexdigest()
        row = {"key": key, "model": model, "prompt": prompt, "reply": reply}
        self._rows[key] = row
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            file.flush()
            os.fsync(file.fileno())


class Judge:
    """A model at ``OPENAI_BASE_URL`` (default https://api.openai.com/v1) with the key in ``OPENAI_API_KEY``.

    Args:
        model: its name at the endpoint.
        retries: further tries of a request that failed for a passing reason, with growing pauses.
        pause: seconds before the first of them; it doubles.
        timeout: seconds that a reply may take.
        parallel: requests at a time.
        price: dollars per million tokens, for the cost that is shown; None shows tokens only.

    Raises:
        XTunerError: ``OPENAI_API_KEY`` is not set.
    """

    def __init__(
        self,
        model: str,
        retries: int = 3,
        pause: float = 2.0,
        timeout: float = 60.0,
        parallel: int = 4,
        price: float | None = None,
    ) -> None:
        self.model = model
        self.url = os.environ.get("OPENAI_BASE_URL", "https://api.openai.com/v1").rstrip("/") + "/chat/completions"
        key = os.environ.get("OPENAI_API_KEY")
        if not key:
            raise XTunerError(
                "a judge needs its key in the environment variable OPENAI_API_KEY (any text for a local endpoint) and "
                "its endpoint in OPENAI_BASE_URL: set both. Neither is written to a file."
            )
        self._key = key
        self.retries = retries
        self.pause = pause
        self.timeout = timeout
        self.parallel = parallel
        self.price = price

    def cost(self, prompts: Sequence[str], max_tokens: int) -> str:
        """Returns what asking these prompts takes at most, in words."""
        tokens = sum(len(prompt) // _CHARACTERS_PER_TOKEN + max_tokens for prompt in prompts)
        dollars = "" if self.price is None else f", about ${tokens / 1e6 * self.price:.2f} at most"
        return f"{len(prompts)} requests to {self.model}, about {tokens} tokens at most{dollars}"

    def ask_all(self, prompts: Sequence[str], file: JudgementFile, max_tokens: int, name: str) -> int:
        """Asks what `file` has no reply of; replies are written as they come.

        After a failure that no retry mended nothing more is asked: what came so far is kept, a later run goes on.

        Returns:
            How many prompts are left without a reply.
        """
        known = file.replies(self.model)
        to_ask = [prompt for prompt in prompts if prompt not in known]
        get_logger().info(
            "%s: judgements that exist already: %d; %s", name, len(prompts) - len(to_ask), self.cost(to_ask, max_tokens)
        )
        pool = ThreadPoolExecutor(self.parallel)
        futures = {pool.submit(self.ask, prompt, max_tokens): prompt for prompt in to_ask}
        done = 0
        try:
            for future in as_completed(futures):
                file.add(self.model, futures[future], future.result())
                done += 1
        except XTunerError as error:
            get_logger().warning(
                "%s: %d of %d judgements are missing. The others are kept; run the command again to continue: %s",
                name,
                len(to_ask) - done,
                len(prompts),
                error,
            )
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
            for future, prompt in futures.items():
                # replies that came while the first failure ended the wait
                came = future.done() and not future.cancelled() and future.exception() is None
                if came and prompt not in file.replies(self.model):
                    file.add(self.model, prompt, future.result())
        return sum(prompt not in file.replies(self.model) for prompt in prompts)

    def ask(self, prompt: str, max_tokens: int) -> str:
        """Returns the model's reply, at temperature 0.

        Raises:
            XTunerError: the endpoint does not answer, refuses, or answers something else.
        """
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": prompt}],
            "temperature": 0,
            "max_tokens": max_tokens,
        }
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {self._key}"}
        request = urllib.request.Request(self.url, json.dumps(body).encode(), headers)
        for attempt in range(self.retries + 1):
            try:
                with urllib.request.urlopen(request, timeout=self.timeout) as response:
                    return _content(parse_json(response.read(_LONGEST_REPLY)), self.url)
            except urllib.error.HTTPError as error:
                reason, passing = f"HTTP {error.code} {error.reason}", error.code in _RETRIED
            except (OSError, http.client.HTTPException, JSONFault) as error:
                reason, passing = str(error) or type(error).__name__, True
            if not passing or attempt == self.retries:
                break
            time.sleep(self.pause * 2**attempt)
        raise XTunerError(
            f"the judge at {self.url} does not reply ({reason}): check OPENAI_BASE_URL, the key, the model's name "
            f"'{self.model}' and your limits there."
        )


def _content(reply: Any, url: str) -> str:
    try:
        return str(reply["choices"][0]["message"]["content"] or "")
    except (KeyError, IndexError, TypeError) as error:
        raise XTunerError(
            f"{url} replied {json.dumps(reply)[:200]}: expected choices[0].message.content in the format of OpenAI's "
            "chat completions."
        ) from error
