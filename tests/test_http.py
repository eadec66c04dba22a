"""Requests end in time, stay small, and a server that is down costs one try per question."""

import asyncio
import json
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from lag.http import Client, Refused, TimedOut, TooLarge, Transient, Unreachable, check_url

ROOT = Path(__file__).resolve().parents[1]
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"


@contextmanager
def raw(*pieces, every=0.0, endless=b""):
    """A server that sends these pieces of bytes, one `every` seconds, then `endless` for ever."""
    listener = socket.create_server(("127.0.0.1", 0))
    asked, closing = [], threading.Event()

    def answer(connection):
        asked.append(connection.recv(1 << 16))
        try:
            for piece in pieces:
                connection.sendall(piece)
                closing.wait(every)
            while endless and not closing.is_set():
                connection.sendall(endless)
                closing.wait(every)
        except OSError:
            pass
        connection.close()

    def accept():
        while True:
            try:
                connection = listener.accept()[0]
            except OSError:
                return
            threading.Thread(target=answer, args=(connection,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", asked
    finally:
        closing.set()
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()


def dead():
    """A URL where nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"http://127.0.0.1:{listener.getsockname()[1]}"


def client(**settings):
    return Client(**{"timeout": 20.0, "retries": 4, "pause": 0.001} | settings)


@pytest.mark.parametrize(
    "pieces", [(b"HTTP/1.1 200 OK\r\n",), (HEAD + b"\r\n",)], ids=["head", "body"]
)
def test_a_server_that_sends_byte_after_byte_is_left_in_time(pieces):
    """Each read ends in time, the whole never did: the library bounds reads only."""
    with raw(*pieces, every=0.1, endless=b"x") as (url, _):
        start = time.monotonic()
        with pytest.raises(TimedOut, match=r"no answer within 0\.5 s"):
            client(timeout=0.5, retries=0).ask(url)
        assert time.monotonic() - start < 30  # without the limit it never ends


def test_an_endless_answer_is_refused_and_not_asked_for_again():
    with raw(HEAD + b"\r\n", endless=b" " * (1 << 20)) as (url, asked):
        with pytest.raises(TooLarge, match="more than 16777216 bytes"):
            client().ask(url)
        assert len(asked) == 1


def test_a_server_that_was_unreachable_gets_one_try_per_question_until_it_answers():
    """Five tries, with pauses that double, for each of a thousand questions took hours."""
    asking, url = client(), dead()
    for tries in (5, 6, 7):
        with pytest.raises(Unreachable, match=f"{url}.* cannot be reached: Connection refused"):
            asking.ask(f"{url}/{tries}")
        assert asking.retried == tries
    with raw(HEAD + b"Content-Length: 2\r\n\r\n{}") as (alive, _):
        assert asking.ask(alive) == {}
    with pytest.raises(Unreachable, match=r"\(5 tries\)"):
        asking.ask(url)


def test_a_name_that_no_one_knows_is_unreachable():
    with pytest.raises(Unreachable, match="cannot be reached"):
        client(retries=0).ask("http://no-such-host.invalid/v1")


def test_the_kind_of_an_error_is_that_of_its_cause():
    def kind(url, **settings):
        with pytest.raises((Transient, Refused)) as error:
            client(retries=0, **settings).ask(url)
        return error.value.kind

    assert kind(dead()) == kind(dead()) == "Unreachable"
    for status, name in ((500, "Transient"), (404, "Refused"), (307, "Refused")):
        with raw(b"HTTP/1.1 %d No\r\nContent-Length: 0\r\n\r\n" % status) as (url, _):
            assert kind(url) == f"{name} {status}"
    with raw(HEAD, every=9.0) as (url, _):
        assert kind(url, timeout=0.2) == "TimedOut"


def test_a_key_never_follows_a_redirect():
    with raw(HEAD + b"Content-Length: 2\r\n\r\n{}") as (elsewhere, stolen):
        moved = b"HTTP/1.1 307 Moved\r\nLocation: %s\r\nContent-Length: 0\r\n\r\n"
        with raw(moved % elsewhere.encode()) as (url, asked):
            with pytest.raises(Refused, match="answered 307"):
                client().ask(url, {}, {"Authorization": "Bearer key"})
            assert len(asked) == 1 and b"Bearer key" in asked[0]
        assert not stolen


def test_retry_after_is_waited_for():
    busy = b"HTTP/1.1 503 Busy\r\nRetry-After: 0.4\r\nContent-Length: 0\r\n\r\n"
    with raw(busy) as (url, asked):
        start = time.monotonic()
        with pytest.raises(Transient, match="answered 503"):
            client(retries=1).ask(url)
        assert time.monotonic() - start >= 0.4 and len(asked) == 2


def test_this_machine_is_asked_directly_whatever_the_proxy(monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", dead())
    monkeypatch.setenv("ALL_PROXY", dead())
    with raw(HEAD + b"Content-Length: 2\r\n\r\n{}") as (url, _):
        assert client().ask(url) == {}
    with pytest.raises(Unreachable):
        client(retries=0).ask("http://elsewhere.invalid")


def test_a_notebook_s_own_loop_is_no_obstacle():
    async def cell():
        return client().ask(url)

    with raw(HEAD + b"Content-Length: 2\r\n\r\n{}") as (url, _):
        assert asyncio.run(cell()) == {}


@pytest.mark.parametrize("content", [b"<html>", b"[" * 100_000, b"\xff\xfe"])
def test_what_is_no_json_is_said_in_one_line(content):
    head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(content)
    with raw(head + content) as (url, asked):
        with pytest.raises(Transient, match=r"answered no JSON.*\(3 tries\)") as error:
            client(retries=2).ask(url)
        assert len(asked) == 3 and "\n" not in str(error.value) and len(str(error.value)) < 200


@pytest.mark.parametrize("url", ["http://h:99999", "http://h:0", "http://[::1", "h:1", "http://"])
def test_a_url_that_is_none_is_refused_before_anything_is_asked(url):
    with pytest.raises(ValueError, match=r"--base-url .*expected http"):
        check_url(url, "--base-url")


def test_the_library_is_imported_with_the_first_request():
    code = "import sys, lag.model.openai_endpoint, lag.retrieval.http_index; print([*sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert not {"httpx2", "anyio"} & set(json.loads(done.stdout.replace("'", '"')))
