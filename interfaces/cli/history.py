"""`uptrail history`: recorded events, of one thing or of everything."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import nullcontext
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any
from uuid import UUID

import msgspec
from cyclopts import App, Parameter
from cyclopts.validators import Number

from interfaces.cli import console
from interfaces.cli.client import SILENCE_TIMEOUT, Client, run_with_client
from interfaces.cli.console import ClientOptions, Refusal, UsageError
from interfaces.common.api_types import HistoryItem

app = App(name="history", help="Read recorded events: who did what, and when.")


@app.command
def show(
    id: str,
    *,
    limit: Annotated[int, Parameter(validator=Number(gte=1))] = 1000,
    common: ClientOptions | None = None,
) -> None:
    """Print the recorded events of an upload, a batch or a webhook, in order.

    Parameters
    ----------
    id
        Of an upload, of a batch (then with everything about its uploads), or of a webhook.
    limit
        How many events at most.
    """
    common = common or ClientOptions()

    async def run(client: Client) -> list[HistoryItem]:
        return [event async for event in events_of(client, id, limit=limit)]

    events = run_with_client(common, run)
    if common.json:
        console.emit(events)
    else:
        print_events(events)


@app.command
def export(
    *,
    batch: UUID | None = None,
    upload: UUID | None = None,
    after: int = 0,
    to: Path | None = None,
    plain: Annotated[bool, Parameter(negative="")] = False,
    common: ClientOptions | None = None,
) -> None:
    """Write events as NDJSON with their proofs; `uptrail verify --export` checks the file.

    Parameters
    ----------
    batch
        Only the events of this batch and its uploads.
    upload
        Only the events of this upload.
    after
        Only events beyond this position (of everything: from the seal on that reaches beyond it).
    to
        A file; by default standard output.
    plain
        Plain events as of `history show --json`, without seals and proofs.
    """
    common = common or ClientOptions()
    if batch is not None and upload is not None:
        raise UsageError("an export is of a batch or of an upload", "leave one of them out")
    of = f"/batches/{batch}" if batch else f"/uploads/{upload}" if upload else ""
    path, params = f"/v1{of}/history", {"after": str(after)}

    async def run(client: Client) -> int:
        count = 0
        with nullcontext(sys.stdout.buffer) if to is None else to.open("wb") as file:
            if plain:
                pages = client.pages(path, msgspec.Raw, params, cursor="after", latest=True)
                async for event in pages:
                    file.write(bytes(event) + b"\n")
                    count += 1
                return count
            # Cut off in the middle it would look like a shorter one: it is not tried again.
            async for piece in client.download(f"{path}/export", params):
                file.write(piece)
                count += piece.count(b"\n")
        return count

    count = run_with_client(common, run, patience=SILENCE_TIMEOUT)
    console.print_stderr(f"{count} {'events' if plain else 'lines'}")


async def events_of(
    client: Client, id: str | UUID, *, limit: int = 0
) -> AsyncIterator[HistoryItem]:
    """Return the history of the upload, batch or webhook with this id. Raises Refusal."""
    kinds = ("uploads", "webhooks", "batches")
    for kind in kinds:
        path = f"/v1/{kind}/{id}/history"
        try:
            pages = client.pages(path, HistoryItem, {}, limit=limit, cursor="after", latest=True)
            async for event in pages:
                yield event
            return
        except Refusal as refusal:
            if refusal.status != 404 or kind == kinds[-1]:
                raise


def print_events(events: list[HistoryItem]) -> None:
    """Print events, one per line, with principal and time."""
    rows = ((e.position, _short(e.at), e.by, e.type, _details(e)) for e in events)
    console.table(("position", "when", "who", "what", "details"), rows)


_TOLD = (
    "path",
    "label",
    "number",
    "step",
    "message",
    "retry_at",
    "size",
    "done",
    "reason",
    "outcome",
    "count",
    "duration",
)


def _details(event: HistoryItem) -> str:
    told = ((name, event.data[name]) for name in _TOLD if event.data.get(name) is not None)
    return ", ".join(f"{name} {_short(value)}" for name, value in told)


def _short(value: Any) -> str:
    """Return a value for one line: short numbers, and local times."""
    if isinstance(value, float):
        return f"{value:.3f}"
    try:
        return console.format_time_ms(datetime.fromisoformat(value))
    except (TypeError, ValueError):
        return str(value)
