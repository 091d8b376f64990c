"""Helper processes that are asked one thing at a time, and replaced when one is interrupted."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from contextlib import suppress
from pathlib import Path
from typing import Any


class HelperLost(Exception):
    """The helper process ended while it was asked; another attempt gets a new one."""


class Helpers:
    """At most `most` processes of one script, started when they are needed, kept for the next.

    `free` are those that wait for an order, `busy` those that have one. An order and its answer
    are one line of JSON each. Use as an async context manager.
    """

    def __init__(self, script: Path, most: int | None = None) -> None:
        self._script = script
        self.free: list[Process] = []
        self.busy: set[Process] = set()
        self._slots = asyncio.Semaphore(most or os.cpu_count() or 1)

    async def __aenter__(self) -> Helpers:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Ends the processes that are waiting for an order."""
        while self.free:
            await _end(self.free.pop())

    async def ask(self, order: dict[str, Any]) -> dict[str, Any]:
        """The answer to an order. Raises HelperLost.

        If the caller is cancelled meanwhile, the process ends with all it has started.
        """
        async with self._slots:
            helper = await self._ready()
            self.busy.add(helper)
            try:
                answer = await _exchange(helper, order)
            except BaseException:
                await _end(helper)
                raise
            finally:
                self.busy.discard(helper)
            self.free.append(helper)
            return answer

    async def _ready(self) -> Process:
        """A helper that lives: one may have been killed while nobody asked it."""
        while self.free:
            helper = self.free.pop()
            if helper.returncode is None:
                return helper
            await _end(helper)
        return await self._start()

    async def _start(self) -> Process:
        return await asyncio.create_subprocess_exec(
            sys.executable,
            "-I",  # neither the environment nor the working directory say what it imports
            str(self._script),
            stdin=PIPE,
            stdout=PIPE,
            start_new_session=True,  # so that its children can be ended with it
            env={"PATH": os.defpath},
        )


async def _exchange(helper: Process, order: dict[str, Any]) -> dict[str, Any]:
    assert helper.stdin is not None
    assert helper.stdout is not None
    try:
        helper.stdin.write(json.dumps(order).encode() + b"\n")
        await helper.stdin.drain()
        line = await helper.stdout.readline()
    except (ConnectionError, RuntimeError) as error:  # the latter is uvloop's word for it
        raise HelperLost(f"the helper process is gone: {error}") from error
    if not line:
        raise HelperLost("the helper process ended without an answer")
    answer: dict[str, Any] = json.loads(line)
    return answer


async def _end(helper: Process) -> None:
    with suppress(ProcessLookupError):
        os.killpg(helper.pid, signal.SIGKILL)
    if helper.stdin is not None:
        helper.stdin.close()
    await helper.communicate()
