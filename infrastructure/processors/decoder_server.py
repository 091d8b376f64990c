"""Fork server that runs decoders of untrusted files, each in a sandboxed child of its own.

Started by `DecoderPool` with the names of the modules to load and a socket as standard input. A
request is a frame with one open descriptor, the file to decode, and an order: `function`
(`module:name`), `order` (its argument), `memory`, `seconds` and `most` (bytes of the answer). The
function is called with the file, opened for reading, and the order; it returns an `Answer` or a
pair of `Answer` and bytes.

A module may have a function `prepare`, called once: it loads whatever the decoder would otherwise
load later, because a child can open nothing. The server itself never looks into a file nor into an
answer.
Imports the standard library only, so that a child holds nothing worth stealing.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import select
import signal
import socket
import struct
import sys
from collections.abc import Callable
from importlib.util import module_from_spec, spec_from_file_location
from types import ModuleType
from typing import IO, Any, NamedTuple, NoReturn, TypeAlias

from infrastructure.processors import sandbox

Order: TypeAlias = dict[str, Any]
Answer: TypeAlias = dict[str, Any]
Decode: TypeAlias = Callable[[IO[bytes], Order], Answer | tuple[Answer, bytes]]

HEADER = struct.Struct("!II")  # bytes of JSON, bytes of data
MAX_REQUEST_BYTES = 64 * 1024  # bytes
MAX_OPEN_FILES = 16
ALL = ("landlock", "seccomp", "limits")  # what a child applies; probes leave some out

_FILE, _REPLY, _FIRST_UNUSED = 3, 4, 5  # descriptors of a child, besides the three standard ones


class _Request(NamedTuple):
    file: int
    order: Order


def serve(modules: list[str]) -> None:
    """Load the modules, drop privileges, and answer requests until the socket is closed."""
    decoders = {name: _load(name) for name in modules}
    for module in decoders.values():
        if prepare := getattr(module, "prepare", None):
            prepare()
    channel = socket.socket(fileno=os.dup(0))
    null = os.open(os.devnull, os.O_RDWR)
    for standard in range(3):
        os.dup2(null, standard)  # what a library prints about a hostile file is no log of ours
    user = sandbox.drop_privileges()
    sandbox.forbid_new_privileges()
    gc.freeze()  # a collection would copy the pages that the children share
    while (request := _receive(channel)) is not None:
        module, _, name = request.order["function"].partition(":")
        request.order["user"] = user
        _answer(channel, request, getattr(decoders[module], name))
        os.close(request.file)


def _load(name: str) -> ModuleType:
    """Import a module by its name, or by its path where it is in no package."""
    if not name.endswith(".py"):
        return importlib.import_module(name)
    spec = spec_from_file_location(os.path.basename(name).removesuffix(".py"), name)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _receive(channel: socket.socket) -> _Request | None:
    data, files, _, _ = socket.recv_fds(channel, HEADER.size, 1)
    while data and len(data) < HEADER.size:
        data += channel.recv(HEADER.size - len(data))
    if len(data) < HEADER.size or not files:
        return None
    length, _ = HEADER.unpack(data)
    body = bytearray()
    while len(body) < length:
        if not (chunk := channel.recv(length - len(body))):
            return None
        body += chunk
    return _Request(files[0], json.loads(body))


def _answer(channel: socket.socket, request: _Request, decode: Decode) -> None:
    """Run one child and pass its frame on, whole; or say how the child ended."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        _be_the_child(request, decode, writing)
    os.close(writing)
    most = request.order["most"]
    reply = _read_frame(reading, most, channel)
    if reply is None:  # too much, or no frame: whatever it is doing, it is not decoding
        os.kill(child, signal.SIGKILL)
    os.close(reading)
    _, status = os.waitpid(child, 0)
    channel.sendall(reply or _frame(_ended(status, request.order)))


def _read_frame(pipe: int, most: int, channel: socket.socket) -> bytes | None:
    """Return one frame of at most `most` bytes; None where a child wrote something else.

    None, too, where the process that asked is gone: the child must not outlive it.
    """
    content = bytearray()
    poll = select.poll()
    poll.register(pipe, select.POLLIN)
    poll.register(channel, select.POLLIN)  # nothing is sent meanwhile: readable is closed
    while len(content) <= HEADER.size + most:
        if any(ready == channel.fileno() for ready, _ in poll.poll()):
            return None
        if not (chunk := os.read(pipe, 256 * 1024)):
            break
        content += chunk
    if not HEADER.size <= len(content) <= HEADER.size + most:
        return None
    answer, data = HEADER.unpack_from(content)
    return bytes(content) if len(content) == HEADER.size + answer + data else None


def _frame(answer: Answer, data: bytes = b"") -> bytes:
    text = json.dumps(answer).encode()
    return HEADER.pack(len(text), len(data)) + text + data


def _ended(status: int, order: Order) -> Answer:
    if not os.WIFSIGNALED(status):
        code = os.waitstatus_to_exitcode(status)
        return {"failed": f"the decoder ended with status {code} and no answer"}
    number = os.WTERMSIG(status)
    if number == signal.SIGXCPU:
        return {"limit": f"it takes more than {order['seconds']} s of processor time"}
    if number == signal.SIGKILL:
        return {"failed": f"the decoder was killed, or said more than {order['most']} bytes"}
    return {"failed": f"the decoder was killed by signal {number}"}


def _be_the_child(request: _Request, decode: Decode, pipe: int) -> NoReturn:
    """Decode in the sandbox; nothing that the server has set up runs at the end."""
    order = request.order
    try:
        sandbox.end_with_parent()
        file = os.dup(request.file) if request.file <= _REPLY else request.file
        reply = os.dup(pipe) if pipe <= _REPLY else pipe
        os.dup2(file, _FILE)
        os.dup2(reply, _REPLY)
        os.closerange(_FIRST_UNUSED, max(file, reply, os.sysconf("SC_OPEN_MAX")))
        with open(_FILE, "rb") as source:
            applied = _restrict(order)
            argument = {**order["order"], "sandbox": applied}
            found = decode(source, argument)
        answer, data = found if isinstance(found, tuple) else (found, b"")
        content = _frame(answer, data)
    except MemoryError:
        content = _frame({"limit": f"it takes more than {order['memory']} bytes of memory"})
    except BaseException as error:
        content = _frame({"failed": f"{type(error).__name__}: {str(error)[:1000]}"})
    try:
        rest = memoryview(content)
        while rest:
            rest = rest[os.write(_REPLY, rest) :]
    finally:
        os._exit(0)


def _restrict(order: Order) -> dict[str, Any]:
    """Apply what the order names, and return what the kernel accepted."""
    wanted = order.get("restrictions", ALL)
    applied: dict[str, Any] = {"user": order["user"]}
    if "limits" in wanted:
        sandbox.apply_limits(
            sandbox.SandboxLimits(
                memory=order["memory"],
                processor_seconds=order["seconds"],
                file_size=0,
                open_files=MAX_OPEN_FILES,
                processes=0,
            )
        )
    if "landlock" in wanted:
        applied["landlock"] = sandbox.restrict_access()
    if "seccomp" in wanted:
        applied["seccomp"] = sandbox.restrict_system_calls()
    return applied


if __name__ == "__main__":
    serve(sys.argv[1:])
