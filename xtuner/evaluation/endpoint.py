"""An OpenAI-compatible endpoint, asked by many requests at a time: for judges and for models under test."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit, urlunsplit

from xtuner.errors import XTunerError, nearest

if TYPE_CHECKING:
    from openai import APIStatusError, OpenAI

_NO_KEY = "none"
"""Sent where there is no key: servers of one's own ask for none, but the header must hold something."""
_THIS_REQUEST = (400, 413, 422)
"""Statuses that speak of one request; another may be answered."""
_LONGEST_REASON = 500
_SNAPSHOT = re.compile(r"-\d[\d.-]*")
"""What providers add to a model's name for the version that answered, e.g. ``-2024-08-06``."""
_OWN = "mg-llava"
"""As the server of this project says whose its model is."""

Job = TypeVar("Job")
Result = TypeVar("Result")


class RefusedError(XTunerError):
    """The endpoint refuses this request, for example as too long; others may be answered."""


class Endpoint:
    """One model at an endpoint; passing failures are tried again, at the time that ``Retry-After`` names.

    Args:
        url: of the endpoint, ending in ``/v1`` as a rule.
        model: its name there; ``NAME=OTHER`` where it answers under another name, such as a deployment's.
        key: that the endpoint wants; None = none. It is written nowhere.
        retries: further tries of a request that failed for a passing reason, with growing pauses.
        timeout: seconds that a reply may take.
        parallel: requests at a time.
    """

    def __init__(
        self, url: str, model: str, key: str | None = None, retries: int = 5, timeout: float = 600.0, parallel: int = 8
    ) -> None:
        self.url = without_login(url)
        self.model, _, answers_as = model.partition("=")
        self.answers_as = answers_as or self.model
        self.parallel = parallel
        self._client = _client(url, key, retries, timeout)
        self._dropped: set[str] = set()

    def complete(self, messages: Sequence[Mapping[str, Any]], max_tokens: int, **settings: Any) -> str:
        """Returns the model's answer.

        Args:
            messages: of the conversation, as OpenAI has them; parts may hold further fields.
            max_tokens: answers are cut there.
            settings: further fields of the request, e.g. ``temperature``.

        Raises:
            RefusedError: the endpoint refuses this request.
            XTunerError: it does not answer, refuses altogether, or another model answers.
        """
        import openai

        fields = {"max_tokens": max_tokens, **settings}
        try:
            reply = self._create(messages, fields)
        except openai.APIStatusError as error:
            reason = f"HTTP {error.status_code}: {_reason(error)}"
            if error.status_code in _THIS_REQUEST:
                raise RefusedError(f"{self.url} refuses the request: {reason}") from error
            raise XTunerError(self._silent(reason)) from error
        except (openai.APIError, ValueError) as error:
            cause = error.__cause__
            raise XTunerError(self._silent(f"{error}{f' {cause}' if cause else ''}")) from error
        return self._read(reply)

    def _create(self, messages: Sequence[Mapping[str, Any]], fields: Mapping[str, Any]) -> Any:
        """Sends a request; settings that the model does not know are left out or renamed from then on."""
        import openai
        from openai.types.chat import ChatCompletion

        while True:
            known = {self._name(key): value for key, value in fields.items() if self._name(key)}
            try:
                return self._client.post(
                    "/chat/completions",
                    # not by the typed method, which refuses what only some servers know
                    body={"model": self.model, "messages": list(messages), **known},
                    cast_to=ChatCompletion,
                )
            except openai.BadRequestError as error:
                # such as "unsupported_parameter" and "unsupported_value"
                refused = str(error.param) if str(error.code).startswith("unsupported") else ""
                if refused not in fields or refused in self._dropped:
                    raise
                self._dropped.add(refused)

    def _name(self, field: str) -> str:
        """How a field is called in requests; "" for one that is left out."""
        if field not in self._dropped:
            return field
        return "max_completion_tokens" if field == "max_tokens" else ""

    @property
    def dropped(self) -> list[str]:
        """Settings that the model does not take and that are not sent."""
        return sorted(name for name in self._dropped if not self._name(name))

    def _read(self, reply: Any) -> str:
        try:
            text = str(reply.choices[0].message.content or "")
            answered = reply.model
        except (AttributeError, IndexError, TypeError) as error:
            raise XTunerError(
                f"{self.url} replied {str(reply)[:200]}: expected choices[0].message.content in the format of OpenAI's "
                "chat completions."
            ) from error
        if answered and not _same_model(answered, self.answers_as):
            raise XTunerError(
                f"{self.url} answers as '{answered}' where '{self.answers_as}' was asked: its scores would be those of "
                f"another model. Name the one that you mean; '{self.model}={answered}' says that both are the same."
            )
        return text

    def _silent(self, reason: str) -> str:
        return (
            f"{self.url} does not reply ({reason}): check the endpoint (OPENAI_BASE_URL), the key (OPENAI_API_KEY), "
            f"the model's name '{self.model}' and your limits there."
        )


def find_model(url: str, asked: str | None, key: str | None) -> tuple[str, bool]:
    """Returns the model of an endpoint, and whether the server is this project's, which takes boxes.

    Args:
        url: of the endpoint.
        asked: name of the model, perhaps ``NAME=OTHER``; None = the only one that it has.
        key: that it wants, or None.

    Raises:
        XTunerError: it does not reply, does not have that model, or has several where none is named.
    """
    import openai

    try:
        listed = {one.id: getattr(one, "owned_by", None) for one in _client(url, key, 2, 60.0).models.list()}
    except openai.APIConnectionError as error:
        raise XTunerError(
            f"{without_login(url)} cannot be reached ({error.__cause__ or error}): is the server running, and does "
            "--endpoint name its address, as in http://localhost:8000/v1?"
        ) from error
    except (openai.APIError, ValueError, AttributeError, TypeError) as error:
        if asked is None:
            raise XTunerError(
                f"{without_login(url)} does not list its models ({str(error)[:_LONGEST_REASON]}): name one by --model."
            ) from error
        return asked, False
    names = ", ".join(listed) or "none"
    if asked is None and len(listed) != 1:
        raise XTunerError(f"{without_login(url)} has {len(listed)} models: name one by --model. It has: {names}.")
    name = next(iter(listed)) if asked is None else asked.partition("=")[0]
    if name not in listed:
        raise XTunerError(f"{without_login(url)} has no model '{name}'.{nearest(name, listed)} It has: {names}.")
    return asked or name, listed[name] == _OWN


def in_parallel(work: Callable[[Job], Result], jobs: Iterable[Job], parallel: int) -> Iterator[tuple[Job, Result]]:
    """Yields each job with its result, as they come.

    After a failure no further job begins; those under way are yielded before it is raised.

    Args:
        work: is called in threads, at most `parallel` at a time.
        jobs: taken as they are needed.
        parallel: how many threads.

    Raises:
        Exception: the first that `work` raised.
    """
    rest = iter(jobs)
    failure: BaseException | None = None
    under_way: dict[Future[Result], Job] = {}
    pool = ThreadPoolExecutor(parallel)
    try:
        under_way |= {pool.submit(work, job): job for job in islice(rest, 2 * parallel)}
        while under_way:
            done, _ = wait(under_way, return_when=FIRST_COMPLETED)
            for future in done:
                job = under_way.pop(future)
                if (error := future.exception()) is None:
                    yield job, future.result()
                elif failure is None:
                    failure = error
                    under_way = {other: job for other, job in under_way.items() if not other.cancel()}
            if failure is None:
                under_way |= {pool.submit(work, job): job for job in islice(rest, len(done))}
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
    if failure is not None:
        raise failure


def without_login(url: str) -> str:
    """Returns a URL without the name and password that may stand in it."""
    parts = urlsplit(url.rstrip("/"))
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def _client(url: str, key: str | None, retries: int, timeout: float) -> OpenAI:
    from openai import OpenAI

    return OpenAI(base_url=url, api_key=key or _NO_KEY, max_retries=retries, timeout=timeout)


def _same_model(answered: str, asked: str) -> bool:
    return answered == asked or (answered.startswith(asked) and _SNAPSHOT.fullmatch(answered[len(asked) :]) is not None)


def _reason(error: APIStatusError) -> str:
    body = error.body
    message = body.get("message") if isinstance(body, Mapping) else None
    return str(message or error.response.reason_phrase or error.message)[:_LONGEST_REASON]
