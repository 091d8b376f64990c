"""Unreachable servers: reported at once, retried, then exit code 5 after the timeout."""

from __future__ import annotations

import asyncio
import itertools
import re
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID

import msgspec
import pytest

from interfaces.cli.transfer import MAX_BUNDLED_FILE_BYTES
from interfaces.common.api_types import StartedBatchResponse
from tests.interfaces.cli.conftest import Command, Outcome
from tests.support import free_port, run

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
COMMANDS = (
    ("batch", "list"),
    ("upload", "."),
    ("batch", "watch", "00000000-0000-0000-0000-000000000000"),
    ("batch", "retry", "00000000-0000-0000-0000-000000000000"),
    ("key", "list"),
    ("history", "show", "00000000-0000-0000-0000-000000000000"),
)
PROBLEM = b'{"code":"unavailable","detail":"try again soon"}'


class Ask:
    """Run a command against an address with a timeout of half a second."""

    def __init__(self, command: Command, data_dir: Path) -> None:
        self._command = command
        self._data_dir = data_dir

    def __call__(self, url: str, *tokens: str, timeout: float = 0.5) -> Outcome:
        place = ("--url", url, "--key", "up_a_b", "--data-dir", self._data_dir)
        return self._command(*tokens, *place, "--connect-timeout", timeout)


@pytest.fixture
def ask(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Ask:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file.txt").write_text("x")
    return Ask(command, tmp_path / "data")


@contextmanager
def listening(handler: Handler, tls: ssl.SSLContext | None = None) -> Iterator[str]:
    """A server in a thread; gives its address."""
    up = threading.Event()
    stop = asyncio.Event()
    opened: list[tuple[int, asyncio.AbstractEventLoop]] = []
    writers: list[asyncio.StreamWriter] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        with closing(writer), suppress(asyncio.IncompleteReadError, ConnectionError):
            await handler(reader, writer)

    async def main() -> None:
        server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls)
        opened.append((server.sockets[0].getsockname()[1], asyncio.get_running_loop()))
        up.set()
        await stop.wait()
        # A transport that is open when the loop ends fails a later test, as a ResourceWarning.
        closed = asyncio.ensure_future(server.wait_closed())
        await asyncio.sleep(0)  # in Python 3.11 that waits only if it begins before `close`
        server.close()
        for writer in writers:
            writer.transport.abort()
        await closed

    thread = threading.Thread(target=run, args=(main(),))
    thread.start()
    assert up.wait(60)
    ((port, loop),) = opened
    try:
        yield f"{'https' if tls else 'http'}://127.0.0.1:{port}"
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(60)


@pytest.mark.parametrize("tokens", COMMANDS, ids=" ".join)
def test_a_refused_connection_is_reported_at_once_retried_and_given_up(
    ask: Ask, tokens: tuple[str, ...]
) -> None:
    url = f"http://127.0.0.1:{free_port()}"

    failed = ask(url, *tokens)

    first, *_ = failed.err.splitlines()
    assert failed.code == 5
    assert f"{url} does not respond: connection refused; trying again in 0.25 s" in first
    assert f"uptrail: {url} does not respond: connection refused\n" in failed.err


def test_a_server_that_comes_up_in_time_is_used(ask: Ask) -> None:
    port = free_port()

    def come_up() -> None:
        time.sleep(0.3)
        with socket.create_server(("127.0.0.1", port)) as server:
            connection, _ = server.accept()
            with connection:
                connection.recv(65536)
                body = b'{"items":[],"next":null,"position":0}'
                head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\n\r\n"
                connection.sendall(head.encode() + body)

    thread = threading.Thread(target=come_up)
    thread.start()
    listed = ask(f"http://127.0.0.1:{port}", "batch", "list", timeout=60)
    thread.join()

    assert listed.code == 0
    assert "trying again" in listed.err
    assert "responds again" in listed.err


@pytest.mark.parametrize("tokens", COMMANDS[:4], ids=" ".join)
def test_a_server_that_accepts_and_never_answers_is_given_up(
    ask: Ask, tokens: tuple[str, ...]
) -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    with listening(silent) as url:
        failed = ask(url, *tokens, timeout=1.0)

    assert failed.code == 5
    assert f"waiting for {url} to respond, for 1 s at most" in failed.err.splitlines()[0]
    assert "no response within 1 s (--connect-timeout)" in failed.err


def test_a_name_that_does_not_exist_is_final_at_once(ask: Ask) -> None:
    failed = ask("http://no-such-host.invalid", "batch", "list", timeout=60)

    assert failed.code == 5
    assert "trying again" not in failed.err or "Temporary failure" in failed.err


def test_an_untrusted_certificate_is_final_at_once(ask: Ask, tmp_path: Path) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    subject = ("-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1")
    made = ("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1")
    files = ("-keyout", str(key), "-out", str(certificate))
    subprocess.run([*made, *files, *subject], check=True, capture_output=True)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)

    async def nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    with listening(nothing, context) as url:
        failed = ask(url, "upload", ".", timeout=60)

    assert failed.code == 5
    assert "trying again" not in failed.err
    assert "certificate" in failed.err


@pytest.mark.parametrize(("answer", "message"), [(b"+PONG\r\n", "does not speak HTTP")])
def test_a_server_that_does_not_speak_http_is_not_retried(
    ask: Ask, answer: bytes, message: str
) -> None:
    async def other(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(10)
        writer.write(answer)
        await writer.drain()
        writer.close()

    with listening(other) as url:
        failed = ask(url, "batch", "list", timeout=60)

    assert failed.code == 5
    assert message in failed.err
    assert "trying again" not in failed.err


@pytest.mark.parametrize("tokens", [("batch", "list"), ("upload", ".")], ids=" ".join)
def test_a_server_that_is_not_ready_is_retried_after_its_retry_after(
    ask: Ask, tokens: tuple[str, ...]
) -> None:
    asked: list[float] = []

    async def busy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        asked.append(time.monotonic())
        head = f"Retry-After: 1\r\nContent-Length: {len(PROBLEM)}\r\nConnection: close"
        writer.write(f"HTTP/1.1 503 Busy\r\n{head}\r\n\r\n".encode() + PROBLEM)
        await writer.drain()
        writer.close()

    with listening(busy) as url:
        failed = ask(url, *tokens, timeout=2.5)

    assert failed.code == 5
    assert re.search(r"try again soon; trying again in 1 s", failed.err)
    assert len(asked) >= 2
    assert all(later - earlier >= 1 for earlier, later in itertools.pairwise(asked))


def test_a_server_lost_during_several_transfers_is_reported_once_and_exits_with_5(
    ask: Ask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("interfaces.cli.upload.SILENCE_TIMEOUT", 1.0)
    names = [f"{number}.bin" for number in range(4)]
    for name in names:
        (tmp_path / name).write_bytes(b"x" * (MAX_BUNDLED_FILE_BYTES + 1))
    batch = "00000000-0000-0000-0000-000000000000"
    known = [
        {"path": name, "upload": str(UUID(int=n)), "status": "added"}
        for n, name in enumerate(names)
    ]
    started = StartedBatchResponse(
        id=UUID(batch),
        owner="acme",
        label="",
        state="open",
        pipeline="default",
        priority=0,
        started_at=datetime.now(UTC),
        version=1,
        uploads=(),
        position=1,
    )
    counts = {"added": len(known), "known": 0, "rejected": 0, "position": 2}
    answers = {
        b"POST /v1/batches ": started,
        b"POST /v1/batches/" + batch.encode(): {"files": known, **counts},
    }

    async def going_away(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        for start, answer in answers.items():
            if head.startswith(start):
                length = re.search(rb"Content-Length: (\d+)", head)
                assert length is not None
                await reader.readexactly(int(length[1]))
                body = msgspec.json.encode(answer)
                head = f"Content-Length: {len(body)}\r\nConnection: close".encode()
                writer.write(b"HTTP/1.1 200 OK\r\n" + head + b"\r\n\r\n" + body)
                await writer.drain()
        writer.close()

    with listening(going_away) as url:
        failed = ask(url, "upload", *names, timeout=60)

    assert failed.code == 5
    assert f"uptrail: {url} does not respond" in failed.err
    assert "run the same command again to go on from there" in failed.err
    tries = [line for line in failed.err.splitlines() if "trying again" in line]
    assert 1 <= len(tries) <= 3  # pauses of 0.25 and 0.5 s, of four transfers
