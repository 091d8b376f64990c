"""One forked child for each order, under limits: whatever a file does to its child ends with it.

For scripts that `Helpers` runs, on standard input and output, one JSON object a line. The process
that reads the orders never opens a file; it forks, which takes a few milliseconds where a new
interpreter takes two hundred. An order holds its limits: `memory` and `bytes` written in bytes,
`seconds` of processor time. Imports nothing but the standard library, so that a child starts
quickly and holds nothing worth stealing.
"""

from __future__ import annotations

import gc
import json
import os
import resource
import signal
import sys
from collections.abc import Callable
from typing import Any, TypeAlias

Order: TypeAlias = dict[str, Any]
Answer: TypeAlias = dict[str, Any]


def serve(answer: Callable[[Order], Answer]) -> None:
    """Answers every order in a child; whatever the children need should be imported by now."""
    gc.freeze()  # a collection would copy the pages that the children share
    for line in sys.stdin:
        print(json.dumps(_in_child(json.loads(line), answer)), flush=True)


def _in_child(order: Order, answer: Callable[[Order], Answer]) -> Answer:
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        _be_the_child(order, answer, writing)
    os.close(writing)
    with open(reading, "rb") as pipe:
        told = pipe.read()
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return _killed(os.WTERMSIG(status), order)
    if not told:
        return {"failed": f"the helper's child ended with status {status}"}
    found: Answer = json.loads(told)
    return found


def _killed(number: int, order: Order) -> Answer:
    if number == signal.SIGXCPU:
        return {"limit": f"it takes more than {order['seconds']} s of processor time"}
    if number == signal.SIGXFSZ:
        return {"limit": f"what is made of it has more than {order['bytes']} bytes"}
    return {"failed": f"the helper's child was killed by signal {number}"}


def _be_the_child(order: Order, answer: Callable[[Order], Answer], pipe: int) -> None:
    """Never returns: the child ends without running anything that the parent has set up."""
    try:
        _limit(order)
        found = answer(order)
    except MemoryError:
        found = {"limit": f"it takes more than {order['memory']} bytes of memory"}
    except BaseException as error:
        found = {"failed": f"{type(error).__name__}: {error}"}
    try:
        os.write(pipe, json.dumps(found).encode())
    finally:
        os._exit(0)


def _limit(order: Order) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (order["memory"], order["memory"]))
    resource.setrlimit(resource.RLIMIT_CPU, (order["seconds"], order["seconds"] + 1))
    resource.setrlimit(resource.RLIMIT_FSIZE, (order["bytes"], order["bytes"]))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
