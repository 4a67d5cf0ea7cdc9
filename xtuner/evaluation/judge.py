"""Letting a language model judge: each reply is kept and none is asked for twice, the cost is shown first."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

from xtuner.errors import XTunerError
from xtuner.evaluation.endpoint import Endpoint, RefusedError, in_parallel
from xtuner.json_values import JSONFault, parse_json
from xtuner.log import get_logger

_CHARACTERS_PER_TOKEN = 4
"""Of English text, near enough to tell a bill of one dollar from one of a hundred."""


_FIELDS = ("key", "model", "prompt", "reply")


class JudgementFile:
    """Replies on disk, one JSON object a line: ``{key, model, prompt, reply}``; what stands there is not asked again.

    Args:
        path: of the file; made when the first reply comes.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._rows: dict[str, dict[str, str]] = {}
        for line in self.path.read_bytes().split(b"\n") if self.path.exists() else ():
            try:
                row = parse_json(line, whole_characters=False)
            except JSONFault:
                # cut off where a run was killed: asked again
                continue
            if isinstance(row, dict) and all(isinstance(row.get(name), str) for name in _FIELDS):
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
        retries: see `Endpoint`.
        timeout: seconds that a reply may take.
        parallel: requests at a time.
        price: dollars per million tokens, for the cost that is shown; None shows tokens only.

    Raises:
        XTunerError: ``OPENAI_API_KEY`` is not set.
    """

    def __init__(
        self, model: str, retries: int = 3, timeout: float = 60.0, parallel: int = 4, price: float | None = None
    ) -> None:
        key = os.environ.get("OPENAI_API_KEY")
        if not key:
            raise XTunerError(
                "a judge needs its key in the environment variable OPENAI_API_KEY (any text for a local endpoint) and "
                "its endpoint in OPENAI_BASE_URL: set both. Neither is written to a file."
            )
        url = os.environ.get("OPENAI_BASE_URL", "https://api.openai.com/v1")
        self.endpoint = Endpoint(url, model, key, retries, timeout, parallel)
        self.model = self.endpoint.model
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
        done = 0
        try:
            replies = in_parallel(lambda one: self._try(one, max_tokens, name), to_ask, self.endpoint.parallel)
            for prompt, reply in replies:
                if reply is not None:
                    file.add(self.model, prompt, reply)
                    done += 1
        except XTunerError as error:
            get_logger().warning(
                "%s: %d of %d judgements are missing. The others are kept; run the command again to continue: %s",
                *(name, len(to_ask) - done, len(prompts), error),
            )
        return len(to_ask) - done

    def _try(self, prompt: str, max_tokens: int, name: str) -> str | None:
        """The reply, or None where this prompt alone is refused."""
        try:
            return self.ask(prompt, max_tokens)
        except RefusedError as error:
            get_logger().warning("%s: the judge leaves out one answer: %s", name, error)
            return None

    def ask(self, prompt: str, max_tokens: int) -> str:
        """Returns the model's reply, at temperature 0.

        Raises:
            XTunerError: the endpoint does not answer, refuses, or answers something else.
        """
        return self.endpoint.complete([{"role": "user", "content": prompt}], max_tokens, temperature=0)
