"""Requests over HTTP: bounded in time and size, retried where that can help, never half an answer.

The exchange itself is httpx2's, imported at the first request. Each request has a connection of
its own: none that a server closed in the meantime can be met.
"""

import json
import logging
import os
import random
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from ssl import SSLContext

logger = logging.getLogger(__name__)
T = TypeVar("T")
AGAIN = frozenset((408, 409, 425, 429, 500, 502, 503, 504, 529))  # what a server may get over
LONGEST_PAUSE = 30.0  # seconds
LARGEST = 16 << 20  # bytes of an answer
OURS = ("localhost", "127.0.0.1", "::1")


class HttpError(RuntimeError):
    """A request without a usable answer. status: of HTTP, 0 where there was none.

    pause: seconds that the server asks to wait.
    """

    def __init__(self, message: str, status: int = 0, pause: float = 0.0):
        super().__init__(message)
        self.status, self.pause = status, pause

    @property
    def kind(self) -> str:
        """The same words for the same cause, whatever was asked."""
        return f"{type(self).__name__} {self.status or ''}".strip()


class Transient(HttpError):
    """Worth asking again: a cut connection, a busy or broken server, half a JSON."""


class TimedOut(Transient):
    """No whole answer in time."""


class Unreachable(Transient):
    """No connection: refused, no such host, no route."""


class Refused(HttpError):
    """The server understood and said no; the same request would be refused again."""


class TooLarge(Refused):
    """The answer is longer than any that was asked for."""


class GivenUp(ValueError):
    """No request can succeed any more: ends the run, not the question."""


def check_url(url: str, flag: str) -> str:
    """A URL without a closing slash.

    Raises:
        ValueError: no http(s) URL, or one with a password, which manifests would keep.
    """
    try:
        parts = urlsplit(url)
        named = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # a port beyond 65535, half an IPv6 address
        named = False
    if not named:
        raise ValueError(f"{flag} {url}: expected http://HOST:PORT or https://HOST")
    if parts.username or parts.password:
        raise ValueError(f"{flag}: a URL may hold no user or password; keys go to the environment")
    return url.rstrip("/")


@cache
def certificates() -> "SSLContext":
    """What servers are trusted by; takes 20 ms to read, so that it is read once."""
    import httpx2

    return httpx2.create_ssl_context()


def wait_asked_for(value: str) -> float:
    """Seconds that `Retry-After` asks for; 0 where it is absent or a date."""
    try:
        return max(0.0, min(float(value), LONGEST_PAUSE))
    except ValueError:
        return 0.0


async def fetch(url: str, body: bytes | None, headers: Mapping[str, str]) -> bytes:
    """The body of an answer; a redirect is none, since the key would go along to another host."""
    import httpx2

    elsewhere = urlsplit(url).hostname not in OURS  # this machine is asked without a proxy
    settings = dict(verify=certificates(), timeout=None, trust_env=elsewhere)
    method = "GET" if body is None else "POST"
    async with (
        httpx2.AsyncClient(**settings) as client,
        client.stream(method, url, content=body, headers=headers) as response,
    ):
        content = bytearray()
        async for piece in response.aiter_bytes():
            content += piece
            if len(content) > LARGEST:
                raise TooLarge(f"{url} answered more than {LARGEST} bytes")
    if not response.is_success:
        kind = Transient if response.status_code in AGAIN else Refused
        said = " ".join(content[:2000].decode("utf-8", "replace").split())[:300]
        message = f"{url} answered {response.status_code}: {said or response.reason_phrase}"
        pause = wait_asked_for(response.headers.get("Retry-After", ""))
        raise kind(message, response.status_code, pause)
    return bytes(content)


def attempt(url: str, body: bytes | None, headers: Mapping[str, str], timeout: float) -> bytes:
    """One request; `timeout` seconds bound the whole of it, which the library's own do not.

    Raises:
        Transient, Refused: the server answered with an error or too much, or not at all.
    """
    import anyio
    import httpx2
    from anyio.from_thread import start_blocking_portal

    async def bounded() -> bytes:
        with anyio.fail_after(timeout):
            return await fetch(url, body, headers)

    try:
        with start_blocking_portal() as portal:  # a notebook's loop would let none run beside it
            return portal.call(bounded)
    except TimeoutError:
        raise TimedOut(f"{url}: no answer within {timeout:g} s") from None
    except (httpx2.ConnectError, httpx2.ProxyError) as error:
        raise Unreachable(f"{url} cannot be reached: {root(error)}") from None
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        raise Transient(f"{url}: {root(error)}") from None


def root(error: BaseException) -> str:
    """What an error began with, below those that libraries put around it."""
    while cause := error.__cause__ or error.__context__:
        error = cause.exceptions[0] if isinstance(cause, BaseExceptionGroup) else cause
    if isinstance(error, OSError) and (error.errno or 0) > 0:
        return os.strerror(error.errno)
    return str(error) or type(error).__name__


def decoded(content: bytes, url: str) -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        shown = content[:60].decode("utf-8", "replace")
        raise Transient(f"{url} answered no JSON: {shown!r}") from None


@dataclass(slots=True)
class Client:
    """Asks one server; safe to use from threads.

    timeout: seconds for an answer. retries: after the first try. pause: seconds before the first
    retry, doubled with each. patience: failed tries in a row, of all threads, after which the
    server is given up; 0 never does.
    lost: it could not be reached in all tries of a request; until it answers, one try must do.
    """

    timeout: float = 120.0
    retries: int = 4
    pause: float = 1.0
    patience: int = 0
    failures: int = 0
    retried: int = 0
    lost: bool = False
    stopped: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def ask(
        self,
        url: str,
        body: object = None,
        headers: Mapping[str, str] | None = None,
        parse: Callable[[Any], T] = lambda answer: answer,
        explain: Callable[["Transient"], None] = lambda error: None,
    ) -> T:
        """The parsed answer to a GET, or with a body to a POST of JSON.

        parse: may raise `Transient` for an answer that is no use.
        explain: may raise `Refused` for a failure that no other try would mend.

        Raises:
            Transient: also the last try failed. Refused: the server said no.
            GivenUp: it failed too often in a row.
        """
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json", **(headers or {})}
        for number in range(self.retries + 1):
            try:
                answer = parse(decoded(attempt(url, data, headers, self.timeout), url))
            except Transient as error:
                explain(error)
                self.failed(error)
                if self.stopped.is_set():
                    raise GivenUp(
                        f"given up after {self.failures} failed requests in a row, the last: "
                        f"{error}; what is finished is kept: see to the server, then repeat the "
                        "command"
                    ) from None
                if number == self.retries or (self.lost and isinstance(error, Unreachable)):
                    self.lost = isinstance(error, Unreachable)
                    tries = f"{number + 1} {'tries' if number else 'try'}"
                    raise type(error)(f"{error} ({tries})", error.status) from None
                self.wait(number, error)
            else:
                self.failures, self.lost = 0, False
                return answer
        raise AssertionError("a loop of at least one try ends inside")

    def failed(self, error: Transient) -> None:
        with self.lock:
            self.failures += 1
            self.retried += 1
            if self.patience and self.failures >= self.patience:
                self.stopped.set()
        logger.debug("%s", error)

    def wait(self, number: int, error: Transient) -> None:
        """Back off, with jitter so that threads do not come back together."""
        pause = min(self.pause * 2**number, LONGEST_PAUSE) * random.uniform(0.5, 1)
        self.stopped.wait(max(pause, error.pause))


def from_environment(name: str) -> str:
    return os.environ.get(name, "").strip()
