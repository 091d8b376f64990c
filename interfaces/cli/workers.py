"""`uptrail workers`: the processes of all machines, their roles, and what the workers hold."""

from __future__ import annotations

from application.ports.jobs import OpenAttempt, ProcessView
from interfaces.cli import console
from interfaces.cli.client import Client, run_with_client
from interfaces.cli.console import ClientOptions
from interfaces.common.api_types import WorkersResponse

_HEAD = ("machine", "pid", "roles", "version", "since", "last heard", "state", "holds")


def workers(*, common: ClientOptions | None = None) -> None:
    """List the processes of all machines: roles, versions, last heartbeats, open attempts."""
    common = common or ClientOptions()

    async def run(client: Client) -> WorkersResponse:
        return await client.ask("GET", "/v1/workers", WorkersResponse)

    found = run_with_client(common, run)
    if common.json:
        console.emit(found)
        return
    held = {worker.id: worker.attempts for worker in found.workers}
    console.table(_HEAD, (_row(process, held) for process in found.processes))
    for worker in found.workers:
        for attempt in worker.attempts:
            console.print_line(f"  {worker.name}: {_sentence(attempt)}")


def _row(process: ProcessView, held: dict[int | None, list[OpenAttempt]]) -> tuple[object, ...]:
    attempts = held.get(process.worker, []) if process.worker is not None else None
    return (
        process.machine,
        process.pid,
        ", ".join(process.roles),
        process.version,
        console.format_time(process.started_at),
        console.format_time(process.last_heartbeat),
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
