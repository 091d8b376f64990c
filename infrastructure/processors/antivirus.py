"""`antivirus`: asks clamd; what it finds infected goes to quarantine."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from msgspec import Meta

from application.pipeline import PermanentError, Quarantine, StepContext, StepInput
from infrastructure.processors.options import Options, parse_options

# A client of clamd, ClamAV's scanner: one file, streamed to it, one verdict.
#
# Source of the protocol: clamd(8), command INSTREAM: chunks with their length as four bytes in
# network order, a chunk of length zero at the end, one answer that ends with a zero byte.

CHUNK_BYTES = 1024 * 1024  # bytes
MAX_RESPONSE_BYTES = 4096  # bytes

_CLEAN, _FOUND, _TOO_LARGE = " OK", " FOUND", "size limit exceeded"


class ScannerUnavailable(Exception):
    """clamd is unreachable or ended without a verdict; another attempt may succeed."""


class StreamLimitExceeded(Exception):
    """The file exceeds clamd's StreamMaxLength."""


async def scan(address: str, chunks: AsyncIterator[bytes], silence: float) -> str | None:
    """Return the name of the signature that was found, None for a clean file.

    `address` is `unix:/path/of/the.socket` or `tcp://host:port`; `silence` is how many seconds
    clamd may take to connect, to accept a chunk, and to respond. Raises ScannerUnavailable,
    StreamLimitExceeded.
    """
    try:
        async with asyncio.timeout(silence):
            line = await _connect(address)
    except (OSError, TimeoutError) as error:
        raise ScannerUnavailable(f"no virus scanner answers at {address}: {error}") from error
    with line:
        # It may answer before the end, and hang up: a transport would lose what it said.
        answering = asyncio.create_task(_answer(line))
        try:
            sent = await _send(line, chunks, silence, answering)
            answer = await _in_time(answering, silence)
        finally:
            answering.cancel()
            await asyncio.wait((answering,))
    if not answer.endswith(b"\0"):
        raise ScannerUnavailable(f"the virus scanner hung up after {sent} bytes without a verdict")
    return _verdict(answer[:-1].decode(errors="replace").strip())


def is_address(address: str) -> bool:
    """Return whether `scan` accepts the address."""
    parts = urlsplit(address)
    try:
        if parts.scheme == "unix":
            return bool(parts.path)
        return parts.scheme == "tcp" and bool(parts.hostname and parts.port)
    except ValueError:  # a port that is no number
        return False


async def _connect(address: str) -> socket.socket:
    parts, loop = urlsplit(address), asyncio.get_running_loop()
    if parts.scheme == "unix":
        return await _connected(socket.AF_UNIX, parts.path)
    found = await loop.getaddrinfo(parts.hostname, parts.port, type=socket.SOCK_STREAM)
    return await _connected(found[0][0], found[0][4])


async def _connected(family: int, address: object) -> socket.socket:
    line = socket.socket(family, socket.SOCK_STREAM)
    line.setblocking(False)
    try:
        await asyncio.get_running_loop().sock_connect(line, address)  # type: ignore[arg-type]
    except BaseException:
        line.close()
        raise
    return line


async def _send(
    line: socket.socket,
    chunks: AsyncIterator[bytes],
    silence: float,
    answering: asyncio.Task[bytes],
) -> int:
    """Send until the end, or until clamd responds early; return the number of bytes sent."""
    sent, loop = 0, asyncio.get_running_loop()
    try:
        await loop.sock_sendall(line, b"zINSTREAM\0")
        async for content in chunks:
            for at in range(0, len(content), CHUNK_BYTES):
                if answering.done():
                    return sent
                chunk = content[at : at + CHUNK_BYTES]
                async with asyncio.timeout(silence):
                    await loop.sock_sendall(line, len(chunk).to_bytes(4, "big") + chunk)
                sent += len(chunk)
        await loop.sock_sendall(line, bytes(4))
    except ConnectionError:
        pass  # it hung up: it may have said why
    except TimeoutError:
        raise ScannerUnavailable(f"the virus scanner took nothing for {silence:g} s") from None
    return sent


async def _answer(line: socket.socket) -> bytes:
    """Read the response up to its zero byte, or as far as it arrived."""
    answer = b""
    try:
        while not answer.endswith(b"\0") and len(answer) < MAX_RESPONSE_BYTES:
            part = await asyncio.get_running_loop().sock_recv(line, MAX_RESPONSE_BYTES)
            if not part:
                break
            answer += part
    except ConnectionError:
        pass  # it is gone: whether it had said enough is for the caller to see
    return answer


async def _in_time(answering: asyncio.Task[bytes], silence: float) -> bytes:
    try:
        async with asyncio.timeout(silence):
            return await answering
    except TimeoutError:
        raise ScannerUnavailable(f"the virus scanner said nothing for {silence:g} s") from None


def _verdict(answer: str) -> str | None:
    if answer.endswith(_CLEAN):
        return None
    if answer.endswith(_FOUND):
        return answer.removesuffix(_FOUND).removeprefix("stream: ")
    if _TOO_LARGE in answer:
        raise StreamLimitExceeded(answer)
    raise ScannerUnavailable(f"the virus scanner has no verdict: {answer}")


DEBIAN = "unix:/var/run/clamav/clamd.ctl"  # where Debian's clamd listens


class AntivirusOptions(Options, frozen=True, kw_only=True):
    """Address of clamd (`unix:/path` or `tcp://host:port`) and limits.

    `silence` is the response timeout in seconds. `too_large` is the outcome of a file above clamd's
    limit: `fail`, or skip the step.
    """

    address: str = DEBIAN
    silence: Annotated[float, Meta(gt=0)] = 60.0
    too_large: Literal["fail", "skip"] = "fail"

    def __post_init__(self) -> None:
        if not is_address(self.address):
            raise ValueError("`address` must be unix:/path or tcp://host:port")


class Infected(Quarantine):
    """clamd knows this file by a signature."""


class TooLargeToScan(PermanentError):
    """The file is larger than clamd accepts."""


async def antivirus(
    subject: StepInput, bench: StepContext, options: dict[str, Any]
) -> dict[str, Any]:
    """Return `{"clean": True}`, or `{"skipped": reason}`.

    Raises Infected with the name of the signature, TooLargeToScan, ScannerUnavailable, BadOption.
    """
    chosen = parse_options(AntivirusOptions, options)
    try:
        signature = await scan(chosen.address, _read_with_progress(subject, bench), chosen.silence)
    except StreamLimitExceeded as error:
        reason = f"{subject.size} bytes are more than the virus scanner takes ({error})"
        if chosen.too_large == "skip":
            return {"skipped": reason}
        raise TooLargeToScan(f"{reason}: raise its StreamMaxLength") from None
    if signature is not None:
        raise Infected(f"{signature} was found")
    return {"clean": True}


async def _read_with_progress(subject: StepInput, bench: StepContext) -> AsyncIterator[bytes]:
    """Yield the bytes of the file, and report the progress."""
    done = 0
    async for chunk in bench.read():
        yield chunk
        done += len(chunk)
        await bench.progress(min(done, subject.size), subject.size)
