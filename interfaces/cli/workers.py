"""`uptrail workers`: the processes of all machines, their roles, and what the workers hold."""

from __future__ import annotations

import msgspec

from application.ports.jobs import OpenAttempt, ProcessView, WorkerView
from interfaces.cli import output
from interfaces.cli.client import Client
from interfaces.cli.options import Common
from interfaces.cli.running import ask

_HEAD = ("machine", "pid", "roles", "version", "since", "last heard", "state", "holds")


class Listing(msgspec.Struct, frozen=True):
    """What `GET /v1/workers` answers."""

    workers: list[WorkerView]
    processes: list[ProcessView]


def workers(*, common: Common | None = None) -> None:
    """List the processes of all machines: roles, versions, signs of life, and running attempts."""
    common = common or Common()

    async def run(client: Client) -> Listing:
        return await client.ask("GET", "/v1/workers", Listing)

    found = ask(common, run)
    if common.json:
        output.emit(found)
        return
    held = {worker.id: worker.attempts for worker in found.workers}
    output.table(_HEAD, (_row(process, held) for process in found.processes))
    for worker in found.workers:
        for attempt in worker.attempts:
            output.say(f"  {worker.name}: {_sentence(attempt)}")


def _row(process: ProcessView, held: dict[int | None, list[OpenAttempt]]) -> tuple[object, ...]:
    attempts = held.get(process.worker, []) if process.worker is not None else None
    return (
        process.machine,
        process.pid,
        ", ".join(process.roles),
        process.version,
        output.moment(process.started_at),
        output.moment(process.last_heartbeat),
        _state(process),
        None if attempts is None else f"{len(attempts)} attempts",
    )


def _state(process: ProcessView) -> str:
    if not process.alive:
        return "silent"
    return "leads" if process.leads else "alive"


def _sentence(attempt: OpenAttempt) -> str:
    where = f" in {attempt.step}" if attempt.step else ""
    done = f", {attempt.percent:.0f} %" if attempt.percent is not None else ""
    return f"attempt {attempt.number} of upload {attempt.upload}{where}{done}"
