"""`uptrail webhook`: add webhooks, look how they fare, test, rotate, enable, disable, remove."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from cyclopts import App, Parameter
from cyclopts.validators import Number

from interfaces.cli import console
from interfaces.cli.client import Client, run_with_client
from interfaces.cli.console import ClientOptions, CommandError, Exit, UsageError
from interfaces.common.api_types import (
    DeliveryResponse,
    RedeliveryResponse,
    SecretResponse,
    TestRequestedResponse,
    WebhookResponse,
)

# Text for webhooks and deliveries.


def health_label(webhook: WebhookResponse) -> str:
    """Return the health of a webhook in a few words."""
    if not webhook.enabled:
        return f"disabled: {webhook.reason}"
    if webhook.failing_since is not None:
        return f"failing since {console.format_time(webhook.failing_since)}"
    return "enabled"


def webhook_details(webhook: WebhookResponse) -> Iterator[str]:
    """Yield the lines that describe one webhook."""
    limits = [f"label {webhook.label}"] if webhook.label is not None else []
    limits += ["on request"] if webhook.on_request else []
    yield f"{webhook.id}  {webhook.url}"
    yield f"  {health_label(webhook)}; {webhook.pending} pending, {webhook.failed} failed"
    yield f"  events: {', '.join(webhook.events)}{''.join(f'; {one}' for one in limits)}"
    if webhook.description:
        yield f"  {webhook.description}"
    if webhook.last_error:
        yield f"  last error: {webhook.last_error}"
    if webhook.missed:
        yield f"  {webhook.missed} events were missed, after position {webhook.missed_after}"
    if webhook.earlier_secrets_until:
        yield f"  earlier secrets sign until {console.format_time(webhook.earlier_secrets_until)}"
    yield f"  added {console.format_time(webhook.added_at)} by {webhook.added_by}"
    yield f"  changed {console.format_time(webhook.changed_at)} by {webhook.changed_by}"


def delivery_summary(delivery: DeliveryResponse) -> str:
    """Describe the state of a delivery."""
    last = delivery.last
    if last is None:
        return f"{delivery.type}: {delivery.state}, not sent yet"
    answer = f"answered {last.status}" if last.status and not last.error else last.error
    told = f"{delivery.type}: {delivery.state}, {answer} after {1000 * last.duration:.0f} ms"
    if delivery.next_at is not None:
        told += f"; again at {console.format_time(delivery.next_at)}"
    return f"{told}: {last.excerpt.strip()}" if last.excerpt.strip() else told


app = App(name="webhook", help="Tell your own systems what happened, and see what they heard.")

TEST_TIMEOUT = 30.0  # seconds until a test has been answered, or has failed
POLL_INTERVAL = 0.1  # seconds between two queries for the result

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
    common: ClientOptions | None = None,
) -> None:
    """Add a webhook, and print its id and its secret, once.

    Parameters
    ----------
    address
        Address of the receiver, for instance https://example.com/hook.
    event
        Event type, for instance upload.failed; may be repeated. By default
        batch.completed.
    label
        Only batches with this label.
    on_request
        Only batches whose `notify` names this webhook.
    description
        Description.
    owner
        Owner of the batches; by default that of the key.
    """
    common = common or ClientOptions()
    given = {"events": event, "label": label, "owner": owner}
    body: dict[str, Any] = {"url": address, "on_request": on_request, "description": description}
    body |= {name: value for name, value in given.items() if value is not None}

    async def run(client: Client) -> SecretResponse:
        return await client.ask("POST", "/v1/webhooks", SecretResponse, json=body)

    _tell_secret(common, run_with_client(common, run))


@app.command(name="list")
def list_(*, common: ClientOptions | None = None) -> None:
    """List webhooks and the state of their deliveries, newest first."""
    common = common or ClientOptions()

    async def run(client: Client) -> list[WebhookResponse]:
        return [row async for row in client.pages("/v1/webhooks", WebhookResponse, {}, latest=True)]

    webhooks = run_with_client(common, run)
    if common.json:
        console.emit(webhooks)
        return
    rows = (
        (w.id, health_label(w), w.pending, w.failed, ", ".join(w.events), w.url) for w in webhooks
    )
    console.table(("id", "state", "pending", "failed", "events", "url"), rows)


@app.command
def show(id: str, *, common: ClientOptions | None = None) -> None:
    """Show one webhook and the state of its deliveries."""
    common = common or ClientOptions()

    async def run(client: Client) -> WebhookResponse:
        return await client.ask("GET", f"/v1/webhooks/{id}", WebhookResponse)

    _tell(common, run_with_client(common, run))


@app.command(name="test")
def request_test(id: str, *, common: ClientOptions | None = None) -> int:
    """Send a test delivery, also to a disabled webhook, and print the response."""
    common = common or ClientOptions()

    async def run(client: Client) -> DeliveryResponse:
        asked = await client.ask("POST", f"/v1/webhooks/{id}/test", TestRequestedResponse)
        loop = asyncio.get_running_loop()
        end = loop.time() + TEST_TIMEOUT
        while True:
            for told in await _newest(client, id, 20):
                if told.position == asked.position and (told.last or loop.time() > end):
                    return told
            if loop.time() > end:
                raise CommandError("the test was not sent", "does an orchestrator run?")
            await asyncio.sleep(POLL_INTERVAL)

    told = run_with_client(common, run)
    if common.json:
        console.emit(told)
    else:
        console.print_line(delivery_summary(told))
    return Exit.OK if told.state == "delivered" else Exit.ERROR


@app.command
def rotate(id: str, *, common: ClientOptions | None = None) -> None:
    """Make a new secret and print it, once; the earlier one signs as well for another day."""
    common = common or ClientOptions()

    async def run(client: Client) -> SecretResponse:
        return await client.ask("POST", f"/v1/webhooks/{id}/rotate", SecretResponse)

    _tell_secret(common, run_with_client(common, run))


@app.command
def enable(id: str, *, common: ClientOptions | None = None) -> None:
    """Enable a webhook; its pending deliveries begin at once."""
    common = common or ClientOptions()

    async def run(client: Client) -> WebhookResponse:
        return await client.ask("POST", f"/v1/webhooks/{id}/enable", WebhookResponse)

    _tell(common, run_with_client(common, run))


@app.command
def disable(
    id: str, *, reason: str = "disabled on request", common: ClientOptions | None = None
) -> None:
    """Disable a webhook; deliveries are queued until it is enabled."""
    common = common or ClientOptions()

    async def run(client: Client) -> WebhookResponse:
        return await client.ask(
            "POST", f"/v1/webhooks/{id}/disable", WebhookResponse, json={"reason": reason}
        )

    _tell(common, run_with_client(common, run))


@app.command
def remove(id: str, *, common: ClientOptions | None = None) -> None:
    """Remove a webhook and its queued deliveries."""
    common = common or ClientOptions()

    async def run(client: Client) -> None:
        await client.ask("DELETE", f"/v1/webhooks/{id}", type(None))

    run_with_client(common, run)
    if common.json:
        console.emit({"id": id, "removed": True})
    else:
        console.print_line(f"webhook {id} is removed")


def _tell(common: ClientOptions, webhook: WebhookResponse) -> None:
    if common.json:
        console.emit(webhook)
        return
    for line in webhook_details(webhook):
        console.print_line(line)


def _tell_secret(common: ClientOptions, made: SecretResponse) -> None:
    if common.json:
        console.emit(made)
        return
    console.print_line(str(made.webhook.id))
    console.print_line(made.secret)
    console.print_stderr("keep the secret: it is shown this once")


async def _newest(client: Client, id: str, limit: int) -> list[DeliveryResponse]:
    path = f"/v1/webhooks/{id}/deliveries"
    return [row async for row in client.pages(path, DeliveryResponse, {}, limit=limit, latest=True)]


# `uptrail webhook deliveries` and `redeliver`.


@app.command
def deliveries(
    id: str,
    *,
    state: Literal["pending", "delivered", "failed"] | None = None,
    limit: Annotated[int, Parameter(validator=Number(gte=1))] = 20,
    common: ClientOptions | None = None,
) -> None:
    """List the deliveries of a webhook, newest first.

    Parameters
    ----------
    state
        Only pending, delivered or failed ones.
    limit
        Maximum number.
    """
    common = common or ClientOptions()
    params = {"state": state} if state else {}

    async def run(client: Client) -> list[DeliveryResponse]:
        path = f"/v1/webhooks/{id}/deliveries"
        return [
            row
            async for row in client.pages(path, DeliveryResponse, params, limit=limit, latest=True)
        ]

    found = run_with_client(common, run)
    if common.json:
        console.emit(found)
        return
    head = ("position", "queued", "event", "state", "attempts", "status", "next", "error")
    console.table(head, map(_row, found))


@app.command
def redeliver(
    id: str,
    position: int | None = None,
    *,
    failed_since: datetime | None = None,
    common: ClientOptions | None = None,
) -> None:
    """Redeliver one event by its position, or all that failed since a time.

    Parameters
    ----------
    position
        Position of the event, as in `deliveries`.
    failed_since
        All deliveries that failed at this time or later.
    """
    common = common or ClientOptions()
    if (position is None) == (failed_since is None):
        hint = f"uptrail webhook deliveries {id}"
        raise UsageError("name either a position or --failed-since", hint)
    path = f"/v1/webhooks/{id}"

    async def run(client: Client) -> int:
        if failed_since is None:
            one = f"{path}/deliveries/{position}/redeliver"
            await client.ask("POST", one, DeliveryResponse)
            return 1
        since = failed_since if failed_since.tzinfo else failed_since.astimezone(UTC)
        again = await client.ask(
            "POST", f"{path}/redeliver", RedeliveryResponse, json={"since": since}
        )
        return again.deliveries

    count = run_with_client(common, run)
    if common.json:
        console.emit({"webhook": id, "deliveries": count})
    else:
        console.print_line(
            f"{count} {'delivery is' if count == 1 else 'deliveries are'} made again"
        )


def _row(one: DeliveryResponse) -> tuple[object, ...]:
    last = one.last
    return (
        one.position,
        console.format_time(one.queued_at),
        one.type,
        one.state,
        one.attempts,
        last.status if last else None,
        console.format_time(one.next_at),
        last.error if last else None,
    )
