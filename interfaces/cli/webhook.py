"""`uptrail webhook`: add webhooks, look how they fare, test, rotate, enable, disable, remove."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from cyclopts import App, Parameter

from interfaces.cli import output
from interfaces.cli.client import Client
from interfaces.cli.errors import CommandError, Exit
from interfaces.cli.options import Common
from interfaces.cli.running import ask
from interfaces.cli.webhook_rows import (
    Delivery,
    Secret,
    TestRequested,
    Webhook,
    card,
    sentence,
    standing,
)

app = App(name="webhook", help="Tell your own systems what happened, and see what they heard.")

PATIENCE = 30.0  # seconds until a test has been answered, or has failed
LOOK = 0.1  # seconds between two looks at that

Events = Annotated[list[str] | None, Parameter(name="--event", negative="")]


@app.command
def add(
    address: str,
    /,
    *,
    event: Events = None,
    label: str | None = None,
    on_request: Annotated[bool, Parameter(negative="")] = False,
    description: str = "",
    owner: str | None = None,
    common: Common | None = None,
) -> None:
    """Add a webhook, and print its id and its secret, once.

    Parameters
    ----------
    address
        Where requests are sent, such as https://example.com/hook.
    event
        What is told, such as upload.failed; may be given several times. By default
        batch.completed.
    label
        Only batches with this label.
    on_request
        Only batches whose `notify` names this webhook.
    description
        A note for people.
    owner
        Whose batches; by default those of the key's own owner.
    """
    common = common or Common()
    given = {"events": event, "label": label, "owner": owner}
    body: dict[str, Any] = {"url": address, "on_request": on_request, "description": description}
    body |= {name: value for name, value in given.items() if value is not None}

    async def run(client: Client) -> Secret:
        return await client.ask("POST", "/v1/webhooks", Secret, json=body)

    _tell_secret(common, ask(common, run))


@app.command(name="list")
def list_(*, common: Common | None = None) -> None:
    """List webhooks, newest first, and how each fares."""
    common = common or Common()

    async def run(client: Client) -> list[Webhook]:
        return [row async for row in client.pages("/v1/webhooks", Webhook, {}, latest=True)]

    webhooks = ask(common, run)
    if common.json:
        output.emit(webhooks)
        return
    rows = ((w.id, standing(w), w.pending, w.failed, ", ".join(w.events), w.url) for w in webhooks)
    output.table(("id", "state", "pending", "failed", "events", "url"), rows)


@app.command
def show(id: str, *, common: Common | None = None) -> None:
    """Show one webhook, and how it fares."""
    common = common or Common()

    async def run(client: Client) -> Webhook:
        return await client.ask("GET", f"/v1/webhooks/{id}", Webhook)

    _tell(common, ask(common, run))


@app.command(name="test")
def request_test(id: str, *, common: Common | None = None) -> int:
    """Send a test, also to a disabled webhook, and tell what was answered."""
    common = common or Common()

    async def run(client: Client) -> Delivery:
        asked = await client.ask("POST", f"/v1/webhooks/{id}/test", TestRequested)
        loop = asyncio.get_running_loop()
        end = loop.time() + PATIENCE
        while True:
            for told in await _newest(client, id, 20):
                if told.position == asked.position and (told.last or loop.time() > end):
                    return told
            if loop.time() > end:
                raise CommandError("the test was not sent", "does an orchestrator run?")
            await asyncio.sleep(LOOK)

    told = ask(common, run)
    if common.json:
        output.emit(told)
    else:
        output.say(sentence(told))
    return Exit.OK if told.state == "delivered" else Exit.ERROR


@app.command
def rotate(id: str, *, common: Common | None = None) -> None:
    """Make a new secret and print it, once; the earlier one signs as well for another day."""
    common = common or Common()

    async def run(client: Client) -> Secret:
        return await client.ask("POST", f"/v1/webhooks/{id}/rotate", Secret)

    _tell_secret(common, ask(common, run))


@app.command
def enable(id: str, *, common: Common | None = None) -> None:
    """Tell a webhook again, beginning at once with what waits."""
    common = common or Common()

    async def run(client: Client) -> Webhook:
        return await client.ask("POST", f"/v1/webhooks/{id}/enable", Webhook)

    _tell(common, ask(common, run))


@app.command
def disable(id: str, *, reason: str = "disabled on request", common: Common | None = None) -> None:
    """Stop telling a webhook; what happens meanwhile waits."""
    common = common or Common()

    async def run(client: Client) -> Webhook:
        return await client.ask(
            "POST", f"/v1/webhooks/{id}/disable", Webhook, json={"reason": reason}
        )

    _tell(common, ask(common, run))


@app.command
def remove(id: str, *, common: Common | None = None) -> None:
    """Remove a webhook, and what waits for it."""
    common = common or Common()

    async def run(client: Client) -> None:
        await client.ask("DELETE", f"/v1/webhooks/{id}", type(None))

    ask(common, run)
    if common.json:
        output.emit({"id": id, "removed": True})
    else:
        output.say(f"webhook {id} is removed")


def _tell(common: Common, webhook: Webhook) -> None:
    if common.json:
        output.emit(webhook)
        return
    for line in card(webhook):
        output.say(line)


def _tell_secret(common: Common, made: Secret) -> None:
    if common.json:
        output.emit(made)
        return
    output.say(str(made.webhook.id))
    output.say(made.secret)
    output.tell_people("keep the secret: it is shown this once")


async def _newest(client: Client, id: str, limit: int) -> list[Delivery]:
    path = f"/v1/webhooks/{id}/deliveries"
    return [row async for row in client.pages(path, Delivery, {}, limit=limit, latest=True)]
