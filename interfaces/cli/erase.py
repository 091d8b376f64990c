"""`uptrail erase`: destroys everything personal of an owner, for good."""

from __future__ import annotations

import asyncio
from typing import Annotated

from cyclopts import App, Parameter

from application.ports.audit import Erasure
from interfaces.cli import console
from interfaces.cli.client import SILENCE_TIMEOUT, Client, run_with_client
from interfaces.cli.console import ClientOptions, UsageError

POLL_INTERVAL = 0.5  # seconds between two queries for its state

app = App(name="erase", help="Destroy everything personal of an owner, for good.")


@app.default
def erase(
    owner: str,
    *,
    reason: str = "",
    yes: Annotated[bool, Parameter(negative="")] = False,
    wait: Annotated[bool, Parameter(negative="")] = False,
    common: ClientOptions | None = None,
) -> None:
    """Destroy the files and the personal fields of an owner; their history stays, without them.

    Parameters
    ----------
    owner
        Owner of the data.
    reason
        Reason, which is recorded.
    yes
        Confirm that it cannot be undone.
    wait
        Wait until the erasure is finished.
    """
    common = common or ClientOptions()
    if not yes:
        raise UsageError(f"this destroys all files of {owner} for good", "say it with --yes")

    async def run(client: Client) -> Erasure:
        body = {"owner": owner, "reason": reason}
        erasure = await client.ask("POST", "/v1/erasures", Erasure, json=body)
        while wait and erasure.finished_at is None:
            await asyncio.sleep(POLL_INTERVAL)
            erasure = await client.ask("GET", f"/v1/erasures/{erasure.id}", Erasure)
        return erasure

    erasure = run_with_client(common, run, patience=SILENCE_TIMEOUT)
    if common.json:
        console.emit(erasure)
    elif erasure.finished_at is not None:
        console.print_line(f"erased: {erasure.batches} batches, {erasure.uploads} uploads")
    else:
        console.print_line(f"{erasure.id}: asked for; uptrail erase list tells when it is done")


@app.command(name="list")
def list_(*, owner: str | None = None, common: ClientOptions | None = None) -> None:
    """List erasures: who requested them, and when they were finished."""
    common = common or ClientOptions()
    params = {} if owner is None else {"owner": owner}

    async def run(client: Client) -> list[Erasure]:
        return [row async for row in client.pages("/v1/erasures", Erasure, params)]

    found = run_with_client(common, run)
    if common.json:
        console.emit(found)
    else:
        head = ("id", "owner", "asked by", "at", "done", "batches", "uploads", "reason")
        console.table(head, (_row(erasure) for erasure in found))


def _row(erasure: Erasure) -> tuple[object, ...]:
    return (
        erasure.id,
        erasure.owner,
        erasure.requested_by,
        console.format_time(erasure.requested_at),
        console.format_time(erasure.finished_at),
        erasure.batches,
        erasure.uploads,
        erasure.reason,
    )
