"""`uptrail webhook deliveries` and `redeliver`: what a webhook was told, and telling it again.

The whole command is imported from here, so that these two are among its others.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Literal

from cyclopts import Parameter
from cyclopts.validators import Number

from interfaces.cli import output
from interfaces.cli.client import Client
from interfaces.cli.errors import UsageError
from interfaces.cli.options import Common
from interfaces.cli.running import ask
from interfaces.cli.webhook import app
from interfaces.cli.webhook_rows import Delivery, Redelivered


@app.command
def deliveries(
    id: str,
    *,
    state: Literal["pending", "delivered", "failed"] | None = None,
    limit: Annotated[int, Parameter(validator=Number(gte=1))] = 20,
    common: Common | None = None,
) -> None:
    """List what a webhook was told, or is to be, newest first.

    Parameters
    ----------
    state
        Only those that wait, that arrived, or that were given up.
    limit
        How many at most.
    """
    common = common or Common()
    params = {"state": state} if state else {}

    async def run(client: Client) -> list[Delivery]:
        path = f"/v1/webhooks/{id}/deliveries"
        return [row async for row in client.pages(path, Delivery, params, limit=limit, latest=True)]

    found = ask(common, run)
    if common.json:
        output.emit(found)
        return
    head = ("position", "queued", "event", "state", "attempts", "status", "next", "error")
    output.table(head, map(_row, found))


@app.command
def redeliver(
    id: str,
    position: int | None = None,
    *,
    failed_since: datetime | None = None,
    common: Common | None = None,
) -> None:
    """Tell a webhook again: of one event by its position, or of all given up since a time.

    Parameters
    ----------
    position
        Of the event, as `deliveries` lists it.
    failed_since
        Everything that was given up at this time or later.
    """
    common = common or Common()
    if (position is None) == (failed_since is None):
        hint = f"uptrail webhook deliveries {id}"
        raise UsageError("name either a position or --failed-since", hint)
    path = f"/v1/webhooks/{id}"

    async def run(client: Client) -> int:
        if failed_since is None:
            one = f"{path}/deliveries/{position}/redeliver"
            await client.ask("POST", one, Delivery)
            return 1
        since = failed_since if failed_since.tzinfo else failed_since.astimezone(UTC)
        again = await client.ask("POST", f"{path}/redeliver", Redelivered, json={"since": since})
        return again.deliveries

    count = ask(common, run)
    if common.json:
        output.emit({"webhook": id, "deliveries": count})
    else:
        output.say(f"{count} {'delivery is' if count == 1 else 'deliveries are'} made again")


def _row(one: Delivery) -> tuple[object, ...]:
    last = one.last
    return (
        one.position,
        output.moment(one.queued_at),
        one.type,
        one.state,
        one.attempts,
        last.status if last else None,
        output.moment(one.next_at),
        last.error if last else None,
    )
